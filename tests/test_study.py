"""The study runner: lengths at equal images and compute, runs that are there already, failures, the table, the plot."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ijepa_jax.settings import plain
from tests import study

ROOT = Path(__file__).resolve().parent.parent

# stands in for launch.py: writes what a finished run of these settings would, or fails
LAUNCHER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from ijepa_jax import build, cli
from ijepa_jax.settings import plain
given = cli.read(sys.argv[1:])
Path({tmp!r}, "launched.txt").open("a").write(" ".join(sys.argv[1:]) + chr(10))
workdir = Path(getattr(given, "workdir", None) or given.checkpoint)
if given.command_name == "evaluate":
    found = {{"accuracy": 70.0, "baselines": {{"random_init": 60.0}}}}
    Path(given.out).mkdir(parents=True), (Path(given.out) / "found.json").write_text(json.dumps(found))
    sys.exit()
config = build.completed(given.config)
if config.optim.clip == 0.5:
    sys.exit("error: this one cannot be")
if config.optim.clip == 0.25:
    (workdir / "begun").mkdir(parents=True)
    print("step 7/20 loss 0.5", flush=True)
    time.sleep(60)
lr = config.optim.peak_lr * 1e4 + config.seed
probes = {{"count": {{"trained": 30 + lr, "random_init": 25.0, "pixels": 20.0}},
           "shape": {{"trained": 50 + 3 * lr, "random_init": 35.0, "pixels": 40.0}}}}
report = {{"probes": probes, "knn": probes, "rankme": {{"trained": 3.0, "random_init": 2.0}}, "steps": config.optim.steps,
           "seconds": 10.0, "params_digest": "f" * 64, "config": plain.to_plain(config)}}
(workdir / "report").mkdir(parents=True)
(workdir / "report" / "report.json").write_text(json.dumps(report))
lines = [{{"step": step, "loss": 1.0, "target_std": step / 10}} for step in range(1, config.optim.steps + 1)]
lines.append({{"step": 10, "probe/linear/count": 20.0, "probe/linear/shape": 30.0, "probe/knn/count": 10.0}})
(workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
"""


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Has studies run the stand-in, from the root; gives the commands that it was called with."""
    (tmp_path / "launch.py").write_text(LAUNCHER.format(root=str(ROOT), tmp=str(tmp_path)))
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(ROOT)
    listing = tmp_path / "launched.txt"
    return lambda: listing.read_text().splitlines() if listing.exists() else []


def asked(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"seeds": 1, "only": [], "equal": "images", **changes})


def planned(variants, settings=None, config="configs/quickstart.py", **changes):
    of = {"CONFIG": config, "SETTINGS": settings or {}, "VARIANTS": variants}
    return study.trials(of, asked(**changes))


def main(monkeypatch, tmp_path, text: str, *words: str) -> int:
    (tmp_path / "some.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["study.py", str(tmp_path / "some.py"), "--runs", str(tmp_path / "runs"), *words])
    return study.main()


STUDY = """
CONFIG = "configs/tiny.py"
SETTINGS = {"optim.steps": 20}
METRICS = ("target_std",)
VARIANTS = {"as it is": {}, "faster": {"optim.peak_lr": 2e-3}}
"""


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


def test_settings_of_all_runs_stretch_what_they_do_not_give():
    first, second = planned({"a": {}, "b": {"optim.batch_size": 64}}, {"optim.steps": 600, "probe.every": 100})
    assert (first.config.optim.warmup, first.config.probe.every, first.config.checkpoint.every) == (60, 100, 100)
    assert (second.config.optim.steps, second.config.optim.warmup, second.config.probe.every) == (300, 30, 100)


def test_all_variants_of_a_seed_come_before_the_next(tmp_path):
    made = planned({"a": {}, "b, c": {"optim.clip": 1.0}, "d": {"optim.clip": 2.0}}, seeds=2, only=["b, c"])
    assert [trial.name for trial in made] == ["a_0", "b_c_0", "a_1", "b_c_1"]
    assert [trial.config.seed for trial in made] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ({"a": {"optim.steps": "many"}}, "a: .*optim.steps"),
        ({"a": {}, "b": {"masks.kind": "other"}}, "b: .*masks.kind"),
        ({"a": {}, "b": {"method": "nowhere.py:Mine"}}, "b: .*there is no file nowhere.py"),
        ({"a": {}, "b": {"masks.context_patches": 65}}, "b: masks.context_patches is 65"),
        ({"a": {"config": "configs/in1k_vith14.py"}}, "a: configs/in1k_vith14.py gives epochs"),
        ({"a b": {}, "a-b": {"optim.clip": 1.0}}, "two variants' names differ in signs alone"),
    ],
)
def test_what_the_launcher_would_refuse_is_refused_before_anything_runs(variants, says):
    with pytest.raises(study.Refused, match=says):
        planned(variants)


def test_a_study_is_run_tabled_drawn_and_only_read_the_next_time(launched, monkeypatch, tmp_path, capsys):
    assert main(monkeypatch, tmp_path, STUDY, "--seeds", "2", "--parallel", "2") == 0
    assert len(launched()) == 4
    written = (tmp_path / "runs" / "study.md").read_text()
    assert written in capsys.readouterr().out
    head, _, base, faster, pixels = written.splitlines()
    assert head.split(" | ")[4:8] == ["s", "linear", "random init", "difference"] and "rankme" in head
    assert "| 61.0 ± 1.4 | 30.0 |  |" in base and base.rstrip(" |").endswith("1.95")  # of the steps 19 and 20
    assert "| 81.0 ± 1.4 | 30.0 | +20.0 (+20.0 .. +20.0) |" in faster
    assert "| 30.0 |" in pixels
    assert (tmp_path / "runs" / "study.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "runs" / "study.json").read_text())
    assert [(one["variant"], one["seed"]) for one in kept["runs"]][:2] == [("as it is", 0), ("faster", 0)]
    assert kept["runs"][0]["probed"] == [{"step": 10, "linear": 25.0, "knn": 10.0}]
    assert kept["runs"][0]["metrics"]["target_std"][0] == pytest.approx(0.15)

    assert main(monkeypatch, tmp_path, STUDY, "--seeds", "3", "--finished") == 0 and len(launched()) == 4
    assert (tmp_path / "runs" / "study.md").read_text() == written
    with pytest.raises(
        study.Refused, match=r"holds another run, with .*optim.steps 20 and not 30.*: give another folder by --runs"
    ):
        main(monkeypatch, tmp_path, STUDY.replace("20", "30"))


def test_evaluations_are_scores_too(launched, monkeypatch, tmp_path):
    text = STUDY.replace(', "faster": {"optim.peak_lr": 2e-3}', "") + 'EVALUATE = ("configs/evaluate/attentive.py",)'
    assert main(monkeypatch, tmp_path, text, "--seeds", "1") == 0
    assert [line.split()[0] for line in launched()] == ["pretrain", "evaluate"]
    assert "--config.step=-1" in launched()[1]  # the final weights, as the report's
    kept = json.loads((tmp_path / "runs" / "study.json").read_text())
    assert kept["runs"][0]["scores"]["attentive"] == 70.0 and kept["runs"][0]["random_init"]["attentive"] == 60.0
    assert main(monkeypatch, tmp_path, text, "--seeds", "1") == 0 and len(launched()) == 2


def test_a_run_that_fails_is_named_and_the_others_go_on(launched, monkeypatch, tmp_path, capsys):
    text = STUDY.replace("faster", "broken").replace('"optim.peak_lr": 2e-3', '"optim.clip": 0.5')
    assert main(monkeypatch, tmp_path, text, "--seeds", "1") == 1
    found = capsys.readouterr()
    assert "failed: broken_0: exit code 1: error: this one cannot be" in found.err
    assert [one["variant"] for one in json.loads((tmp_path / "runs" / "study.json").read_text())["runs"]] == ["as it is"]


def test_an_interrupted_study_ends_its_runs_and_says_so(launched, tmp_path):
    (tmp_path / "some.py").write_text(STUDY.replace("VARIANTS = {", 'VARIANTS = {"slow": {"optim.clip": 0.25}, '))
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from tests import study; "
    start += f"study.ROOT = Path({str(tmp_path)!r}); sys.exit(study.main())"
    words = [str(tmp_path / "some.py"), "--runs", str(tmp_path / "runs"), "--seeds", "1"]
    process = subprocess.Popen([sys.executable, "-c", start, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    begun = tmp_path / "runs" / "slow_0" / "begun"
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)  # the run itself would sleep on
    assert process.returncode == 130 and "the same command continues" in said
    assert len(launched()) == 1


def test_flags_that_are_not_known_are_named(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, tmp_path, STUDY, "--sedes", "3")
    assert ended.value.code == 2 and "--sedes 3 is not known" in capsys.readouterr().err
    with pytest.raises(study.Refused, match="no variant other in .*: there is as it is, faster"):
        main(monkeypatch, tmp_path, STUDY, "--only", "other")
    with pytest.raises(study.Refused, match="it has no VARIANTS"):
        main(monkeypatch, tmp_path, 'CONFIG = "configs/tiny.py"')


def test_differences_are_paired_by_seed():
    """Student's interval by hand: mean +- t * s / sqrt(3), with t 4.3027 for two degrees of freedom."""
    found = study.spread([1.0, 2.0, 6.0])
    assert found["mean"] == 3.0 and found["std"] == pytest.approx(7**0.5)
    assert found["interval"] == pytest.approx([3 - 4.30265 * 7**0.5 / 3**0.5, 3 + 4.30265 * 7**0.5 / 3**0.5], abs=1e-4)
    assert "interval" not in study.spread([1.0])
    run = {"steps": 1, "images": 1, "flops": 1, "seconds": 1.0, "metrics": {}}
    runs = [
        {"variant": variant, "seed": seed, "scores": {"linear": score}, "random_init": {}, **run}
        for variant, seed, score in [("a", 0, 10.0), ("b", 0, 12.0), ("b", 1, 30.0), ("a", 1, 29.0), ("b", 2, 0.0)]
    ]
    assert study.summary(runs)[1]["scores"]["linear"]["difference"]["values"] == [2.0, 1.0]  # a has no seed 2 yet


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "studies").glob("*.py")), ids=lambda file: file.stem)
def test_every_study_can_be_run(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    of = study._study(str(file))
    made = study.trials({"SETTINGS": {}, **of}, asked())
    assert {trial.variant for trial in made} == {*of["VARIANTS"]}
    assert len({json.dumps(plain.to_plain(trial.config)) for trial in made}) == len(made)  # no two are the same
