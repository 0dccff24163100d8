"""The study of speeds: its fits, its table, and that one thing which does not run leaves the others measured."""

import argparse
import dataclasses
import json
import math
import sys
import time

import pytest

from tests import speed_study

ARGUMENTS = argparse.Namespace(small=True, steps=1, peer="", model="vit_large", batch=0, row=300, ends=math.inf)


def test_fit_finds_the_line_and_the_exponents():
    found = speed_study.fit([(n, 3 + 2 * n, 5 * n**1.5) for n in (1, 2, 4, 8)])
    assert found["ms_per_unit"] == pytest.approx(2) and found["ms_at_zero"] == pytest.approx(3)
    assert found["exponent_flops"] == pytest.approx(1.5) and 0 < found["exponent_ms"] < 1
    assert found["worst_residual"] < 1e-9 and "error" in speed_study.fit([(1, 1, 1)])


def timed(command, arguments=None):
    """Stands in for `launch.py benchmark`: time grows with batch and tokens, and batches above 64 are too large."""
    flags = dict(flag[2:].partition("=")[::2] for flag in map(str, command[2:]))
    if int(flags["batch"]) > 64:
        raise RuntimeError("out of\nmemory")
    tokens = (int(flags["image"]) // int(flags["patch"])) ** 2
    numbers = ("images_per_s", "model_tflop_per_s", "mfu", "peak_gib", "first_step_s", "loss")
    return dict.fromkeys(numbers, 1.0) | {
        "ms_per_step": int(flags["batch"]) * tokens / 64, "model_gflop_per_image": tokens / 64, "flags": flags,
        "attention": flags["attention"],
    }  # fmt: skip


def test_growth_changes_one_size_at_a_time_and_goes_on_after_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(speed_study, "_printed", timed)
    lines = list(speed_study.growth(ARGUMENTS))
    fits = {line["size"]: line for line in lines if "ms_per_unit" in line}
    assert fits["batch"]["ms_per_unit"] == pytest.approx(1) and fits["tokens"]["exponent_ms"] == pytest.approx(1)
    assert [line["error"] for line in lines if "error" in line] == ["out of memory"]
    assert [line["value"] for line in lines if line["size"] == "width" and "value" in line] == [64, 128, 192, 256]
    speed_study.picture(lines, str(tmp_path / "growth.png"))
    assert (tmp_path / "growth.png").stat().st_size > 5000
    assert "| batch | 16 |" in speed_study.as_table(lines)


def test_options_change_one_thing_at_a_time(monkeypatch):
    asked = []
    monkeypatch.setattr(speed_study, "_printed", lambda command, _: asked.append(timed(command)["flags"]) or timed(command))
    lines = list(speed_study.options(ARGUMENTS))
    plain, *changed = asked
    differing = [{name for name in {*plain, *flags} if plain.get(name) != flags.get(name)} for flags in changed]
    assert {"attention"} in differing and {"scan"} in differing and {"target-float8"} in differing
    assert all(len(names) == 1 for names in differing[:-1]) and not differing[-1]
    assert len(lines) == len(asked) + 1 and any(line.get("batch") == 128 and "error" in line for line in lines)


def test_a_step_is_timed_in_a_process_of_its_own():
    work = dataclasses.replace(speed_study.SMALL, batch=2, depth=1, predictor_depth=1)
    found = speed_study._measured(work, ARGUMENTS)
    assert found["ms_per_step"] > 0 and found["gflop_per_step"] > 0
    refused = speed_study._tried(lambda: speed_study._measured(dataclasses.replace(work, remat="half"), ARGUMENTS))
    assert "--remat 'half' is not known" in refused["error"]


def test_the_peer_is_run_on_the_same_sizes_and_its_failure_is_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(speed_study, "_measured", lambda *_: {"ms_per_step": 1.0})
    peer = tmp_path / "peer.py"
    peer.write_text(f"""
import json, sys
if "--compile" in sys.argv:
    sys.exit("no compiler here")
sizes = dict(flag[2:].split("=") for flag in sys.argv[1:])
assert sizes["target"] == "{speed_study.SMALL.target}" and sizes["predictor-width"] == "64", sizes
print(json.dumps(dict(images_per_s=1, ms_per_step=2, model_tflop_per_s=3, peak_gib=4)))
""")
    arguments = argparse.Namespace(**{**vars(ARGUMENTS), "peer": str(peer)})
    ours, eager, compiled = speed_study.table(arguments)
    assert ours["ms_per_step"] == 1 and eager["ms_per_step"] == 2 and compiled["error"] == "no compiler here"


def test_it_stops_in_time_and_keeps_what_it_has(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(speed_study, "_attention_ms", lambda *_, **__: 1.0)
    monkeypatch.setattr(sys, "argv", ["speed_study.py", "attention", "--small", "--seconds=0", f"--out={tmp_path / 'lines'}"])
    speed_study.main()
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[0])["tokens"] == 50 and "was not measured" in out.err
    assert (tmp_path / "lines").read_text() == out.out.splitlines()[0] + "\n"


def test_what_takes_too_long_is_a_line_with_its_error(monkeypatch):
    monkeypatch.setattr(speed_study, "_LEAST", 0)
    slow = argparse.Namespace(row=0.5, ends=math.inf)
    assert "timed out" in speed_study._tried(lambda: speed_study._printed(["-c", "import time; time.sleep(60)"], slow))["error"]
    late = argparse.Namespace(row=60, ends=time.monotonic() - 1)
    assert speed_study._tried(lambda: speed_study._printed(["-c", "print({})"], late)) == {"error": "no time left"}


def test_what_decides_most_comes_first(monkeypatch):
    monkeypatch.setattr(speed_study, "_measured", lambda *_: {"ms_per_step": 1.0})
    monkeypatch.setattr(speed_study, "_peer", lambda *_: {"ms_per_step": 2.0})
    monkeypatch.setattr(speed_study, "profile", lambda arguments: iter([{"operation": "all"}]))
    lines = list(speed_study.decisive(argparse.Namespace(**{**vars(ARGUMENTS), "peer": "peer.py", "small": False})))
    headline = [(name, peer) for name in ("B/16", "H/14", "L/16") for peer in ("ijepa_jax", "torch, compiled")]
    assert [(line["model"], line["peer"]) for line in lines[:6]] == headline
    assert [line["attention"] for line in lines[6:8]] == ["xla", "cudnn"] and lines[-1] == {"operation": "all"}


def test_profile_names_the_operations_of_a_step(monkeypatch):
    work = dataclasses.replace(speed_study.SMALL, batch=2, depth=2, predictor_depth=1)
    monkeypatch.setattr(speed_study, "_workload", lambda arguments: work)
    *lines, together = speed_study.profile(ARGUMENTS)
    assert together["operation"] == "all" and together["step_ms"] > 0
    assert together["ms"] >= sum(line["ms"] for line in lines) > 0.5 * together["ms"]
    assert [line["ms"] for line in lines] == sorted((line["ms"] for line in lines), reverse=True)
    names = {line["operation"] for line in lines}
    assert any(name.startswith("jvp(ViT)/blocks/*/") for name in names)
    assert any(name.startswith("transpose(jvp(Predictor))/") for name in names)
