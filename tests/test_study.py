"""The study runner: lengths at equal images and compute, runs that are there already, failures, the table, the plot."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from ijepa_jax.settings import plain
from tests import study, study_results

ROOT = Path(__file__).resolve().parent.parent

# stands in for launch.py: writes what a finished run of these settings would, or fails
LAUNCHER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from ijepa_jax import build, cli
from ijepa_jax.settings import plain
given = cli.read(sys.argv[1:])
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
said = {{"words": sys.argv[1:], "cores": cores, "leads": os.getsid(0) == os.getpid()}}
Path({tmp!r}, "launched.txt").open("a").write(json.dumps(said) + chr(10))
workdir = Path(getattr(given, "workdir", None) or given.checkpoint)
kept = workdir / "report" / "report.json"
if given.command_name == "evaluate":
    if given.config.protocol == "knn":
        sys.exit("error: no kNN here")
    digest = json.loads(kept.read_text())["encoder_digest"]
    found = {{"accuracy": 70.0, "baselines": {{"random_init": 60.0, "supervised": 90.0}}, "encoder_digest": digest,
              "settings": plain.to_plain(given.config)}}
    Path(given.out).mkdir(parents=True, exist_ok=True), (Path(given.out) / "found.json").write_text(json.dumps(found))
    sys.exit()
config = build.completed(given.config)
workdir.mkdir(parents=True, exist_ok=True)
(workdir / "config.json").write_text(json.dumps(plain.to_plain(config)))
kind = config.optim.clip
if kind == 0.5:
    sys.exit("error: this one cannot be")
if kind in (0.125, 0.25):
    (workdir / "begun").mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(given.stopped_code))
    print("step 7/20 loss 0.5", flush=True)
    time.sleep(60 if kind == 0.25 else 1)
if kind == 0.0625:  # as a run that is stopped, by a launcher that then says nothing of it
    sys.exit()
lr = config.optim.peak_lr * 1e4 + config.seed
probes = {{"count": {{"trained": 30 + lr, "random_init": 25.0, "pixels": 20.0}},
           "shape": {{"trained": 50 + 3 * lr, "random_init": 35.0, "pixels": 40.0}}}}
report = {{"probes": probes, "knn": probes, "rankme": {{"trained": 3.0, "random_init": 2.0}}, "steps": config.optim.steps,
           "seconds": 10.0, "params_digest": "f" * 64, "encoder_digest": "e" * 64,
           "resumed_from": 5 * (kind == 0.75), "config": plain.to_plain(config)}}
kept.parent.mkdir(parents=True, exist_ok=True)
kept.write_text(json.dumps(report))
lines = [{{"step": step, "loss": 1.0, "target_std": step / 10}} for step in range(1, config.optim.steps + 1)]
lines.append({{"step": 10, "probe/linear/count": 20.0, "probe/linear/shape": 30.0, "probe/knn/count": 10.0}})
(workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines) + '{{"step": 1')
"""
FAILS, SLOW, WAITS, QUIET, RESUMED = ({"optim.clip": value} for value in (0.5, 0.25, 0.125, 0.0625, 0.75))


class Table:
    """A folder with a study and the launcher's stand-in."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.runs, self.monkeypatch = folder, folder / "runs", monkeypatch
        (folder / "launch.py").write_text(LAUNCHER.format(root=str(ROOT), tmp=str(folder)))
        monkeypatch.setattr(study, "ROOT", folder)
        monkeypatch.chdir(ROOT)

    def __call__(self, text: str, *words: str) -> int:
        (self.folder / "some.py").write_text(text)
        self.monkeypatch.setattr(sys, "argv", ["study.py", str(self.folder / "some.py"), "--runs", str(self.runs), *words])
        return study.main()

    def launched(self) -> list[dict]:
        listing = self.folder / "launched.txt"
        return [json.loads(line) for line in listing.read_text().splitlines()] if listing.exists() else []

    def kept(self) -> dict:
        return json.loads((self.runs / "study.json").read_text())


@pytest.fixture
def table(tmp_path, monkeypatch):
    return Table(tmp_path, monkeypatch)


def planned(variants, settings=None, config="configs/quickstart.py", equal="images"):
    return study.trials(study.Study("some.py", config, variants, settings or {}), equal)


def text(**variants) -> str:
    return f"""
CONFIG = "configs/tiny.py"
SETTINGS = {{"optim.steps": 20}}
METRICS = ("target_std",)
VARIANTS = {variants}
"""


STUDY = text(**{"as it is": {}, "faster": {"optim.peak_lr": 2e-3}})


def test_variants_get_as_much_as_the_first():
    modes = {"subset": {}, "pad": {"masks.mode": "pad"}, "large": {"optim.batch_size": 128}, "long": {"optim.steps": 4800}}
    images = planned(modes)
    assert [trial.config.optim.steps for trial in images] == [2400, 2400, 600, 4800]
    assert [trial.config.optim.warmup for trial in images] == [240, 240, 60, 480]
    assert [trial.config.probe.every for trial in images] == [1200, 1200, 300, 2400]
    subset, pad, large, long = planned(modes, equal="compute")
    assert pad.config.optim.steps == 996 and large.config.optim.steps == 600 and long.config.optim.steps == 4800
    assert pad.flops == pytest.approx(subset.flops, rel=1e-3) and large.flops == subset.flops
    assert long.flops == 2 * subset.flops


def test_what_all_runs_are_given_is_stretched_too_and_what_a_variant_gives_is_not():
    variants = {"a": {}, "b": {"optim.batch_size": 64}, "c": {"optim.batch_size": 64, "optim.warmup": 7.0}}
    first, second, third = planned(variants, {"optim.steps": 600, "probe.every": 100})
    assert (first.config.optim.warmup, first.config.probe.every, first.config.checkpoint.every) == (60, 100, 100)
    assert (second.config.optim.steps, second.config.optim.warmup, second.config.probe.every) == (300, 30, 50)
    assert third.config.optim.warmup == 7
    short, off = planned({"a": {"optim.steps": 2}, "b": {"probe.every": 0}})
    assert short.config.probe.every == short.config.checkpoint.every == 1 and off.config.probe.every == 0


def test_a_configuration_in_epochs_can_be_given_steps():
    in_steps = {"optim.epochs": 0.0, "optim.steps": 100, "optim.warmup": 10.0}
    first, second = planned({"a": {}, "b": {"optim.batch_size": 1024}}, in_steps, "configs/in1k_vith14.py")
    assert (first.config.optim.steps, second.config.optim.steps, second.config.optim.warmup) == (100, 200, 20)
    assert second.config.probe.every == 2 * first.config.probe.every > 0


def test_seeds_differ_in_nothing_else():
    trial = planned({"a, b": {"optim.clip": 1.0}})[0].at(2)
    assert trial.name == "a_b_2" and trial.config.seed == 2 and trial.overrides[-1] == "--config.seed=2"
    changed = plain.differences(plain.to_plain(trial.config), plain.to_plain(trial.at(0).config))
    assert changed == {"seed": (2, 0)}


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ({"a": {"optim.steps": "many"}}, "a: .*optim.steps"),
        ({"a": {}, "b": {"masks.kind": "other"}}, "b: .*masks.kind"),
        ({"a": {}, "b": {"method": "nowhere.py:Mine"}}, "b: .*there is no file nowhere.py"),
        ({"a": {}, "b": {"masks.context_patches": 65}}, "b: masks.context_patches is 65"),
        ({"a": {"config": "configs/in1k_vith14.py"}}, "a: configs/in1k_vith14.py counts epochs: give optim.steps and"),
        (
            {"a": {"config": "configs/in1k_vith14.py", "optim.epochs": 0.0, "optim.steps": 9, "optim.warmup": 1.0}},
            "counts epochs",
        ),
        ({"a": {}, "b": {"optim.epochs": 2.0, "optim.steps": 0}}, "b counts epochs: .* give optim.steps"),
        ({"a": {}, "b": {"optim.batch_size": 200_000}}, "b: a single step of it is more than all of a"),
        ({"a b": {}, "a-b": {"optim.clip": 1.0}}, "two variants' names differ in signs alone"),
    ],
)
def test_what_the_launcher_would_refuse_is_refused_before_anything_runs(variants, says):
    with pytest.raises(study.Refused, match=says):
        planned(variants)


def test_equal_compute_needs_flops(monkeypatch):
    monkeypatch.setattr(study, "_flops", lambda variant, config: None if config.masks.mode == "pad" else 1)
    with pytest.raises(study.Refused, match="^error: b: its method does not tell its FLOPs: --equal images"):
        planned({"a": {}, "b": {"masks.mode": "pad"}}, equal="compute")
    with pytest.raises(study.Refused, match="^error: b: its method does not tell its FLOPs"):
        planned({"b": {"masks.mode": "pad"}, "a": {}}, equal="compute")
    assert planned({"a": {}, "b": {"masks.mode": "pad"}})[1].flops is None


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("CONFIG = 'configs/tiny.py'", "it has no VARIANTS"),
        ("CONFIG = 'configs/tiny.py'\nVARIANTS = [{}]", "VARIANTS must be {name: {setting: value}}"),
        (text(a=None), "VARIANTS must be"),
        (text(a={}) + "METRICS = 'loss'", "METRICS must be a list of names, not 'loss'"),
        (text(a={}) + "METRICS = (1,)", r"METRICS must be a list of names, not \(1,\)"),
        (text(a={}) + "SETTINGS = []", r"SETTINGS must be \{setting: value\}, not \[\]"),
        (text(a={}) + "EVALUATE = ['configs/evaluate/none.py']", "EVALUATE: .*none.py"),
        (text(a={}) + "EVALUATE = ['configs/evaluate/rank.py']", "EVALUATE: .*rank.py gives no accuracy"),
        (text(a={}) + "EVALUATE = ['configs/evaluate/knn.py', './configs/evaluate/knn.py']", "two files of EVALUATE have one"),
        (text(a={}) + "x = 1 +", r"study '.*some.py' cannot be made: .*some.py, line 6: SyntaxError"),
        (text(a={}) + "x = nothing", "NameError: name 'nothing'"),
        (text(**{"a|b": {}}), r"'a\|b' is no name of a variant"),
        (text(**{"": {}}), "'' is no name"),
        (text(**{"ひ" * 67: {}}), "is no name"),
        (text(a={"seed": 3}), "a: a study gives the seeds itself, all variants the same: --seeds"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_a_line(table, said, says):
    with pytest.raises(study.Refused, match=says):
        table(said, "--dry-run")
    assert not table.runs.exists()


def test_names_may_be_of_any_language():
    first, second = planned({"обычный": {}, "ひとつ": {"optim.clip": 1.0}})
    assert (first.stem, second.stem) == ("обычный", "ひとつ")


def test_a_study_is_run_tabled_drawn_and_only_read_the_next_time(table, capsys):
    assert table(STUDY, "--seeds", "2", "--parallel", "2") == 0
    launched = table.launched()
    assert [line["words"][-1] for line in launched] in ([f"--config.seed={i}" for i in (0, 0, 1, 1)],)  # seed by seed
    assert all(line["leads"] and "--stopped-code=75" in line["words"] for line in launched)
    if shutil.which("taskset"):
        assert {line["cores"] for line in launched} == {max(len(os.sched_getaffinity(0)) // 2, 1)}
    said, written = capsys.readouterr().out, (table.runs / "study.md").read_text()
    assert written in said and said.count(": linear ") == 4 and "[4/4] " in said and "; about 0 min left" in said
    head, _, base, faster, pixels = written.splitlines()
    assert head.split(" | ")[4:8] == ["s", "linear", "random init", "difference"] and "rankme" in head
    assert "| 61.0 ± 1.4 | 30.0 |  |" in base and base.rstrip(" |").endswith("1.95")  # of the steps 19 and 20
    assert "| 81.0 ± 1.4 | 30.0 | +20.0 (+20.0 .. +20.0) |" in faster
    assert "| 30.0 |" in pixels
    assert (table.runs / "study.png").read_bytes()[:4] == b"\x89PNG"
    kept = table.kept()
    assert [(one["variant"], one["seed"]) for one in kept["runs"]] == [(v, s) for v in ("as it is", "faster") for s in (0, 1)]
    assert kept["runs"][0]["probed"] == [{"step": 10, "linear": 25.0, "knn": 10.0}]
    assert kept["runs"][0]["metrics"]["target_std"] == pytest.approx([(2 * i + 1.5) / 10 for i in range(10)])

    assert table(STUDY, "--seeds", "3", "--finished") == 0 and len(table.launched()) == 4
    assert table(STUDY, "--seeds", "1", "--only", "as it is") == 0  # what is finished stays in the table
    assert (table.runs / "study.md").read_text() == written and len(table.launched()) == 4
    with pytest.raises(study.Refused, match=r"another run, with .*optim.steps 20.*: give another folder by --runs, or delete"):
        table(STUDY.replace("20", "30"))
    assert table(STUDY.replace('"as it is": {}', '"as it is": {"checkpoint.every": 7}'), "--finished") == 0


def test_a_dry_run_says_what_is_there_and_leaves_nothing(table, capsys):
    assert table(STUDY, "--dry-run") == 0 and not table.runs.exists() and not table.launched()
    assert capsys.readouterr().out.count(": to run, 20 steps, ") == 4
    one = text(**{"as it is": {}})
    table(one, "--seeds", "1")
    (table.runs / "as_it_is_1").mkdir()
    capsys.readouterr()
    table(one, "--seeds", "3", "--dry-run")
    states = [line.split(", ")[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["as_it_is_0: finished", "as_it_is_1: continues", "as_it_is_2: to run"]


def test_evaluations_are_scores_too_and_of_these_weights(table):
    one = text(**{"as it is": {}}) + 'EVALUATE = ("configs/evaluate/attentive.py",)'
    assert table(one, "--seeds", "1") == 0
    assert [line["words"][0] for line in table.launched()] == ["pretrain", "evaluate"]
    assert "--config.step=-1" in table.launched()[1]["words"]  # the final weights, as the report's
    kept = table.kept()
    assert kept["runs"][0]["scores"]["attentive"] == 70.0 and kept["runs"][0]["random_init"]["attentive"] == 60.0
    assert kept["baselines"]["supervised"] == {"attentive": 90.0}
    assert table(one, "--seeds", "1") == 0 and len(table.launched()) == 2
    result = table.runs / "as_it_is_0" / "study" / "attentive" / "found.json"
    for old, new in (("e" * 64, "a" * 64), ('"epochs": ', '"epochs": 1')):  # other weights, another protocol
        result.write_text(result.read_text().replace(old, new))
        assert table(one, "--seeds", "1") == 0
        assert table.launched().pop()["words"][0] == "evaluate"
    assert len(table.launched()) == 4


def test_a_run_whose_evaluation_fails_keeps_its_row(table, capsys):
    one = text(**{"as it is": {}}) + 'EVALUATE = ("configs/evaluate/attentive.py", "configs/evaluate/knn.py")'
    assert table(one, "--seeds", "1") == 1
    assert "failed: as_it_is_0: exit code 1: error: no kNN here" in capsys.readouterr().err
    assert table.kept()["runs"][0]["scores"].keys() == {"linear", "knn", "rankme", "attentive"}


def test_a_run_that_fails_is_named_and_the_others_go_on(table, capsys):
    assert table(text(**{"as it is": {}, "broken": FAILS, "quiet": QUIET}), "--seeds", "1") == 1
    said = capsys.readouterr().err
    assert "failed: broken_0: exit code 1: error: this one cannot be" in said
    assert "failed: quiet_0: it ended without a report" in said
    assert [one["variant"] for one in table.kept()["runs"]] == ["as it is"]


def test_others_are_compared_with_the_first_even_where_that_fails(table):
    assert table(text(**{"first": FAILS, "second": {}, "third": {"optim.peak_lr": 2e-3}}), "--seeds", "1") == 1
    assert "Note: there is nothing of 'first', with which others would" in (table.runs / "study.md").read_text()
    assert not any("difference" in row["scores"]["linear"] for row in table.kept()["rows"])


def test_a_damaged_report_is_made_anew(table):
    one = text(**{"as it is": {}})
    table(one, "--seeds", "1")
    (table.runs / "as_it_is_0" / "report" / "report.json").write_text("{")
    assert table(one, "--seeds", "1") == 0 and len(table.launched()) == 2
    assert len(table.kept()["runs"]) == 1


def test_what_should_be_known_of_a_table_is_said(table, monkeypatch):
    one = text(**{"as it is": RESUMED}).replace("target_std", "no_such")
    assert table(one, "--seeds", "1") == 0
    said = (table.runs / "study.md").read_text()
    assert "Note: no run has METRICS no_such: there is loss, target_std" in said and "code is another" not in said
    assert table.kept()["rows"][0]["seconds"] is None  # which are of a part of it
    monkeypatch.setattr(study, "_identity", lambda method: {"source": "other", "file": "here"})
    table(one, "--seeds", "1")
    assert "Note: the method's code is another since these ran: as_it_is_0; delete" in (table.runs / "study.md").read_text()
    monkeypatch.setattr(study, "_identity", lambda method: {"file": "elsewhere"})
    table(one, "--seeds", "1")
    assert "code is another" not in (table.runs / "study.md").read_text()


def test_a_run_goes_on_with_the_settings_and_the_code_that_it_began_with(table, monkeypatch):
    table(text(**{"as it is": QUIET}), "--seeds", "1")
    with pytest.raises(study.Refused, match=r"as_it_is_0 holds another run, with optim.clip 0.0625: give another folder"):
        table(text(**{"as it is": {}}), "--seeds", "1")
    monkeypatch.setattr(study, "_identity", lambda method: {"source": "other"})
    with pytest.raises(study.Refused, match="holds another run, with an earlier version of its method's code"):
        table(text(**{"as it is": QUIET}), "--seeds", "1")
    assert len(table.launched()) == 1


def test_a_run_of_another_method_or_data_is_another_run(table):
    table(text(**{"as it is": {}}), "--seeds", "1")
    for other in ({"method": "tests/trials.py:Trial"}, {"data.size": 300}, {"masks.context_patches": 8}, {"model.depth": 1}):
        with pytest.raises(study.Refused, match="holds another run, with "):
            table(text(**{"as it is": other}), "--seeds", "1")


def test_other_runs_that_were_not_asked_for_are_left_out_and_said(table, capsys):
    table(STUDY, "--seeds", "1")
    changed = STUDY.replace("'optim.peak_lr': 0.002", "'optim.peak_lr': 0.003")
    assert table(changed, "--seeds", "1", "--only", "as it is") == 0
    assert "left out of the table: faster_0: error: " in capsys.readouterr().err
    assert [one["variant"] for one in table.kept()["runs"]] == ["as it is"]
    shutil.rmtree(table.runs / "as_it_is_0")
    assert table(changed, "--finished", "--only", "as it is") == 0  # no table of what is not there any more
    assert "nothing was finished" in capsys.readouterr().out and not (table.runs / "study.json").exists()


def test_flags_change_what_runs(table, capsys, monkeypatch):
    three = text(**{"first": {}, "padded": {"masks.mode": "pad"}, "third": {}}).replace(
        "'third': {}", "'third': {'optim.clip': 1.0}"
    )
    words = ["--seeds", "1", "--dry-run", "--only", "padded", "--equal", "compute", "--config.masks.context_patches=8"]
    table(three, *words, "--config", "configs/quickstart.py")
    first, padded = capsys.readouterr().out.splitlines()
    assert first.startswith("first_0: to run, 20 steps") and "context_patches=8" in first
    assert padded.startswith("padded_0: to run, 6 steps")  # whose contexts are padded to 60 patches
    monkeypatch.setattr(sys, "argv", ["study.py", "tests/studies/scenes.py"])
    assert study._arguments().runs == ROOT / "runs" / "study" / "scenes"


def test_what_runs_is_shown_meanwhile(table, capsys, monkeypatch):
    monkeypatch.setattr(study, "_LINE_SECONDS", 0.2)
    assert table(text(**{"slow": WAITS}), "--seeds", "1") == 0
    assert "  slow_0: step 7/20 loss 0.5\n" in capsys.readouterr().out


def test_a_study_ends_with_its_terminal_but_not_under_nohup(table):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for had, has in ((signal.SIG_IGN, signal.SIG_IGN), (signal.SIG_DFL, study._interrupt)):
            signal.signal(signal.SIGHUP, had)
            table(text(**{"as it is": {}}), "--finished")
            assert signal.getsignal(signal.SIGHUP) is has
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_interrupted_study_ends_its_runs_and_says_so(table):
    (table.folder / "some.py").write_text(text(**{"slow": SLOW, "as it is": {}}))
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from tests import study; "
    start += f"study.ROOT = Path({str(table.folder)!r}); sys.exit(study.main())"
    words = [str(table.folder / "some.py"), "--runs", str(table.runs), "--seeds", "1"]
    process = subprocess.Popen([sys.executable, "-c", start, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    begun = table.runs / "slow_0" / "begun"
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)  # the run itself would sleep on
    assert process.returncode == 130 and "the same command continues" in said
    assert len(table.launched()) == 1


def test_a_run_that_is_stopped_from_outside_is_not_finished(table, capsys):
    runner = study.Runner(table.runs, 1, {})
    table.runs.mkdir()
    trial = planned({"slow": SLOW}, {"optim.steps": 20}, "configs/tiny.py")[0]

    def stop():
        until = time.monotonic() + 60
        while not (table.runs / "slow_0" / "begun").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.3)
        runner._running["slow_0"].terminate()

    thread = study.threading.Thread(target=stop)
    thread.start()
    assert study.run([trial], runner, 1, lambda trial: pytest.fail("shown")) == [
        f"slow_0: it was stopped from outside and saved itself; the same command continues (see {runner.log(trial)})"
    ]
    thread.join()


def test_flags_that_are_not_known_are_named(table, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        table(STUDY, "--sedes", "3")
    assert ended.value.code == 2 and "--sedes 3 is not known" in capsys.readouterr().err
    with pytest.raises(study.Refused, match="no variant other in .*: there is as it is, faster"):
        table(STUDY, "--only", "other")
    table.runs.write_text("a file")
    with pytest.raises(study.Refused, match="cannot write to .*runs: .*: give another folder by --runs"):
        table(STUDY)


def a_run(variant: str, seed: int, **changes) -> dict:
    run = {
        "method": "ijepa",
        "steps": 10,
        "images": 320,
        "flops": 2e12,
        "seconds": 1.0,
        "metrics": {},
        "random_init": {},
        "pixels": {},
    }
    return {"variant": variant, "seed": seed, "scores": {"linear": 50.0}, "probed": [], **run, **changes}


def test_differences_are_paired_by_seed():
    """Student's interval by hand: mean +- t * s / sqrt(3), with t 4.3027 for two degrees of freedom."""
    found = study_results.spread([1.0, 2.0, 6.0])
    assert found["mean"] == 3.0 and found["std"] == pytest.approx(7**0.5)
    assert found["interval"] == pytest.approx([3 - 4.30265 * 7**0.5 / 3**0.5, 3 + 4.30265 * 7**0.5 / 3**0.5], abs=1e-4)
    assert "interval" not in study_results.spread([1.0])
    scores = [("b", 0, 12.0), ("a", 0, 10.0), ("b", 1, 30.0), ("a", 1, 29.0), ("b", 2, 0.0)]
    runs = [a_run(variant, seed, scores={"linear": score}) for variant, seed, score in scores]
    other, base = study_results.summary(runs, "a")
    assert other["scores"]["linear"]["difference"]["values"] == [2.0, 1.0]  # a has no seed 2 yet
    assert "difference" not in base["scores"]["linear"]


def test_what_ranks_runs_as_probes_do_is_told(tmp_path):
    rng = np.random.default_rng(0)
    probes, runs = rng.normal(size=12), []
    for i, probe in enumerate(probes):
        metrics = {"loss": [0.0, float(-np.exp(probe))], "noise": [float(rng.normal())], "same": [1.0]}
        scores = {"linear": float(probe), "knn": float(probe + rng.normal()), "rankme": float(probe + rng.normal())}
        runs.append(a_run(str(i), 0, method="mine", metrics=metrics, scores=scores))
    runs += [a_run("few", 0, method="other", metrics={"loss": [0.0]}), a_run("diverged", 0, method="mine", metrics={})]
    runs += [a_run(str(i), 0, method="unlabelled", metrics={"loss": [i]}, scores={"rankme": i}) for i in range(9)]
    runs += [a_run(str(i), 0, method="alike", metrics={"loss": [float(i)]}) for i in range(9)]  # all scores are the same
    loss, noise, rank = study_results.told(runs, ("loss", "noise", "same"))  # a constant ranks nothing
    assert loss["measure"] == "loss" and loss["linear"]["correlation"] == loss["linear"]["interval"][0] == -1
    expected = scipy.stats.spearmanr([one["scores"]["rankme"] for one in runs[:12]], probes).statistic
    assert rank["linear"]["correlation"] == pytest.approx(expected)
    low, high = noise["linear"]["interval"]
    assert low < 0 < high and low < noise["linear"]["correlation"] < high
    study_results.write(tmp_path, "a study", "0", runs, ("loss",), ())
    assert "| mine | loss | linear | 12 | -1.00 (-1.00 .. -1.00) |" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "told.png").exists() and "| other | loss" not in (tmp_path / "study.md").read_text()


def test_baselines_are_of_the_reference_and_of_all_its_seeds():
    runs = [a_run("b", 0, pixels={"linear": 9.0}), *(a_run("a", i, pixels={"linear": 10.0 + i}) for i in (0, 1))]
    runs[1]["random_init"], runs[2]["random_init"] = {"linear": 20.0}, {"linear": 30.0}
    assert study_results.baselines(runs, "a") == {"pixels": {"linear": 10.5}}
    assert study_results.baselines(runs[:1], "a") == {"pixels": {"linear": 9.0}}
    assert study_results.summary(runs, "a")[1]["scores"]["linear"]["random_init"] == 25.0


def test_the_plot_is_of_probes_against_flops():
    probed = [{"step": 5, "linear": 40.0}]
    figure = study_results.figure_of([a_run("a", 0, probed=probed), a_run("b", 0, flops=4e12, probed=probed)])
    final, during = figure.axes
    assert [line.get_xydata().tolist() for line in final.lines] == [[[2, 50]], [[4, 50]]]
    assert [line.get_xydata().tolist() for line in during.lines] == [[[1, 40]], [[2, 40]]]
    assert final.get_xlabel() == "model TFLOPs"
    figure = study_results.figure_of([a_run("a", 0, random_init={"linear": 20.0}, pixels={"linear": 30.0})])
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [50, 20, 30]
    untold = study_results.figure_of([a_run("a", 0, flops=None)])
    assert untold.axes[0].get_xlabel() == "images seen" and untold.axes[0].lines[0].get_xdata() == [320]


def test_few_steps_have_metrics_too():
    lines = [{"step": step, "loss": float(step), "rank": float("nan")} for step in (1, 2, 3)]
    assert study_results._metrics(lines, 3) == {"loss": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "studies").glob("*.py")), ids=lambda file: file.stem)
def test_every_study_can_be_run(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    of = study.read(str(file))
    made = study.trials(of)
    assert [trial.variant for trial in made] == [*of.variants]
    assert len({json.dumps(plain.to_plain(trial.config)) for trial in made}) == len(made)  # no two are the same
