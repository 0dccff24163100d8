"""Compares the ways to shorten a context (`masks.mode`) at equal compute; prints a line of JSON for each run, then a table.

    python tests/mask_study.py --config configs/quickstart.py --runs runs/mask_study/scenes
    python tests/mask_study.py --config configs/fashion_mnist.py --steps 3000 --runs runs/mask_study/fashion_mnist

Every mode gets as many steps as make its model FLOPs, on the static lengths that are computed, those of mode `subset`; the
schedules are stretched to the run's own length. Runs are the launcher's, all modes of one seed before the next; those that are
finished are only read, so that the same command goes on where it was stopped. The accuracy is the mean over the probes of the
run's report, of the last weights and not the best, in per cent.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_collections

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax import build
from ijepa_jax.model import flops

ROOT = Path(__file__).resolve().parent.parent
MODES = ("subset", "raster", "pad")


def main() -> None:
    """Runs what is not there yet, and prints it all."""
    arguments = _arguments()
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in arguments.modes}
    for seed in range(arguments.seeds):
        for mode in arguments.modes:
            run = _run(arguments, mode, seed)
            found[mode].append(run)
            print(json.dumps({"mode": mode, "seed": seed, **run}), flush=True)
    for line in table(found):
        print(line)


def steps_at_equal_compute(config: ml_collections.ConfigDict, mode: str, steps: int) -> int:
    """Steps in this mode that cost what so many of mode `subset` do."""
    cost = {}
    for name in ("subset", mode):
        config = config.copy_and_resolve_references()
        config.masks.mode = name
        cost[name] = sum(flops.step_flops(build.method(config)).values())
    return round(steps * cost["subset"] / cost[mode])


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Rows of Markdown: mean and standard deviation over seeds; then each mode's difference from the first, seed by seed."""
    columns = ["mean", *next(iter(found.values()))[0]["probes"]]
    rows = ["| | steps | " + " | ".join(columns) + " | difference |", "|---" * (len(columns) + 3) + "|"]
    base = next(iter(found))
    for mode, runs in found.items():
        scores = [[run["mean"], *run["probes"].values()] for run in runs]
        cells = [_spread(list(column)) for column in zip(*scores, strict=True)]
        apart = [run["mean"] - other["mean"] for run, other in zip(runs, found[base], strict=True)]
        difference = "" if mode == base else _spread(apart, "+.1f")
        rows.append(f"| {mode} | {runs[0]['steps']} | " + " | ".join(cells) + f" | {difference} |")
    return rows


def _spread(values: list[float], form: str = ".1f") -> str:
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):.1f}"


def _run(arguments: argparse.Namespace, mode: str, seed: int) -> dict[str, Any]:
    config = _config(arguments.config)
    if not config.optim.steps:
        sys.exit(f"error: {arguments.config} gives epochs: choose a configuration whose length is in steps")
    steps = steps_at_equal_compute(config, mode, arguments.steps or config.optim.steps)
    workdir = arguments.runs / f"{mode}_{seed}"
    report = workdir / "report" / "report.json"
    if not report.is_file():
        settings = {
            "masks.mode": mode, "seed": seed, "optim.steps": steps, "probe.every": 0, "checkpoint.every": steps,
            "optim.warmup": config.optim.warmup / config.optim.steps * steps,
        }  # fmt: skip
        flags = [f"--config.{key}={value}" for key, value in settings.items()] + arguments.flags
        command = [sys.executable, ROOT / "launch.py", "pretrain", "--config", arguments.config, "--workdir", workdir, *flags]
        with (arguments.runs / f"{mode}_{seed}.log").open("w") as log:
            subprocess.run([str(part) for part in command], cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)
    written = json.loads(report.read_text())
    kept = written["config"]
    found = {"steps": written["steps"], "mode": kept["masks"]["mode"], "seed": kept["seed"], "data": kept["data"]["name"]}
    if found != (asked := {"steps": steps, "mode": mode, "seed": seed, "data": config.data.name}):
        sys.exit(f"error: {workdir} holds the run {found}, not {asked}: give another folder by --runs")
    probes = {task: scores["trained"] for task, scores in written["probes"].items()}
    return {"steps": steps, "seconds": written["seconds"], "mean": statistics.mean(probes.values()), "probes": probes}


def _config(path: str) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--runs", type=Path, default=Path("runs/mask_study"), help="where the runs' workdirs go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of mode subset; the configuration's, if not given")
    parser.add_argument("--modes", nargs="+", default=MODES)
    arguments, arguments.flags = parser.parse_known_args()
    if wrong := [flag for flag in arguments.flags if not flag.startswith("--config.")]:
        parser.error(f"{' '.join(wrong)} is not known; settings are given as --config.KEY=VALUE")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    arguments.runs = arguments.runs.resolve()
    return arguments


if __name__ == "__main__":
    main()
