"""What a terminal and what a log shows of a run."""

import io
import re

from rich.console import Console

from ijepa_jax.host.console import Display

RESULTS = {"rankme": 41.27, "knn/count": 28.125, "linear/count": 37.65}
BASELINE = {"rankme": 4.3, "knn/count": 18.4, "linear/count": 25.15}


def shown(terminal: bool, recall: bool = False) -> str:
    """What a run of ten steps with a probe prints."""
    out = io.StringIO()
    console = Console(force_terminal=terminal, file=out, width=120, height=40, soft_wrap=True, highlight=False, markup=False)
    display = Display(line_seconds=0.0, console=console)
    if recall:
        display.recall_probes("random init", BASELINE)
    else:
        display.probes("random init", BASELINE, "probes of a random encoder: linear/count 25.1")
    display.start("step", 10)
    display.update(4, "loss 0.1234 409 images/s")
    display.probes("I-JEPA", RESULTS, "step 4 probes: linear/count 37.6")
    display.log("[a message]")
    display.update(5, "loss 0.1111 410 images/s")
    display.stop()
    return out.getvalue()


def test_a_terminal_shows_rate_loss_probes_and_what_is_left():
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(terminal=True))
    last = out[out.rindex("5/10") :].splitlines()
    assert re.search(r"loss 0\.1111 410 images/s \d+ s left", last[0])
    rows = [line.split() for line in last[1:] if line.strip()]
    assert rows[0] == ["probe", "random", "init", "I-JEPA"]
    assert rows[1:4] == [["linear/count", "25.1", "37.6"], ["rankme", "4.3", "41.3"], ["knn/count", "18.4", "28.1"]]
    assert "[a message]" in out and "step 4 probes" not in out


def test_without_a_terminal_there_are_plain_lines():
    out = shown(terminal=False)
    assert "\x1b" not in out and "\r" not in out
    lines = out.splitlines()
    assert lines[0] == "probes of a random encoder: linear/count 25.1"
    assert lines[1:3] == ["step 0/10 compiling", "step 4/10 loss 0.1234 409 images/s"]  # of which nothing follows for the rest
    assert lines[3:5] == ["step 4 probes: linear/count 37.6", "[a message]"]
    assert re.fullmatch(r"step 5/10 loss 0\.1111 410 images/s \d+ s left", lines[5])


def test_earlier_probes_are_shown_again_on_terminals_only():
    assert "25.1" in shown(terminal=True, recall=True)
    assert "25.1" not in shown(terminal=False, recall=True)


def test_a_quiet_display_prints_nothing(capsys):
    display = Display(quiet=True, line_seconds=0.0)
    display.start("step", 10)
    display.update(5, "loss")
    display.probes("pixels", RESULTS, "probes")
    display.stop()
    assert capsys.readouterr().out == ""
