"""The comparison of context modes: equal compute, runs that are there already, the table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import quickstart
from ijepa_jax import build
from ijepa_jax.model import flops
from tests import mask_study

ROOT = Path(__file__).resolve().parent.parent


def cost(mode: str) -> int:
    config = quickstart.get_config()
    config.masks.mode = mode
    return sum(flops.step_flops(build.method(config)).values())


def test_modes_get_steps_of_the_same_cost():
    config = quickstart.get_config()
    steps = {mode: mask_study.steps_at_equal_compute(config, mode, 2400) for mode in mask_study.MODES}
    assert steps["subset"] == steps["raster"] == 2400
    assert steps["pad"] * cost("pad") == pytest.approx(2400 * cost("subset"), rel=1e-3)
    assert config.masks.mode == "subset"  # what was given is left as it was


def test_finished_runs_are_read_and_compared_seed_by_seed(tmp_path):
    scores = {("subset", 0): (40.0, 60.0), ("subset", 1): (44.0, 60.0), ("pad", 0): (30.0, 50.0), ("pad", 1): (38.0, 54.0)}
    for (mode, seed), (count, colour) in scores.items():
        report = tmp_path / f"{mode}_{seed}" / "report" / "report.json"
        report.parent.mkdir(parents=True)
        probes = {"count": {"trained": count, "random_init": 1.0}, "colour": {"trained": colour, "random_init": 2.0}}
        kept = {"masks": {"mode": mode}, "seed": seed, "data": {"name": "scenes"}}
        steps = 996 if mode == "pad" else 2400
        report.write_text(json.dumps({"seconds": 10.0, "probes": probes, "steps": steps, "config": kept}))
    command = [sys.executable, "tests/mask_study.py", "--runs", str(tmp_path), "--seeds", "2", "--modes", "subset", "pad"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *runs, head, _, subset, pad = done.stdout.splitlines()
    assert [(line["mode"], line["seed"], line["mean"]) for line in map(json.loads, runs)] == [
        ("subset", 0, 50.0), ("pad", 0, 40.0), ("subset", 1, 52.0), ("pad", 1, 46.0),
    ]  # fmt: skip
    assert head == "| | steps | mean | count | colour | difference |"
    assert subset == "| subset | 2400 | 51.0 ± 1.4 | 42.0 ± 2.8 | 60.0 ± 0.0 |  |"
    assert pad == "| pad | 996 | 43.0 ± 4.2 | 34.0 ± 5.7 | 52.0 ± 2.8 | -8.0 ± 2.8 |"

    done = subprocess.run([*command, "--steps", "100"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "holds the run {'steps': 2400" in done.stderr and "not {'steps': 100" in done.stderr
    done = subprocess.run([*command, "--sedes", "3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--sedes 3 is not known" in done.stderr
