"""What committed configurations came to: docs/results.json, from which the pages that quote them are written.

    python launch.py | tee quickstart.log
    python -m tests.results quickstart runs/quickstart runs/quickstart_1 --log quickstart.log --hardware "two CPU cores"

takes the report of a run, and those of the same run with other seeds (`--config.seed=1`), and prints which pages it changed;
without a name it only writes the pages anew.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ijepa_jax.visualize import curves
from ijepa_jax.visualize.summary import knn_probes, linear_probes, mean_accuracy

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "results.json"
_COLUMNS = ("trained", "random_init", "pixels")
_KINDS = {"linear": linear_probes, "knn": knn_probes}
_SHOWN = 150  # letters of a line of a log
_QUOTED = {  # what the README's row is called, if it has one, and what a docstring says of its numbers
    "quickstart": ("generated scenes, linear probe and kNN, means of four tasks, %", ", means of four tasks"),
    "fashion_mnist": ("Fashion-MNIST, linear probe and kNN, %", ""),
    "fashion_mnist_long": ("", ""),
    "folder_small": ("", ", tiles of 27 photographs"),
}


def of_runs(workdirs: Sequence[Path], log: Path | None, hardware: str) -> dict[str, Any]:
    """What is kept of a finished run: its probes in per cent, time, speed, and what it printed; of each seed, means."""
    reports = [json.loads((workdir / "report" / "report.json").read_text()) for workdir in workdirs]
    report, alike = reports[0], [{**each["config"], "seed": 0} for each in reports]
    if any(each != alike[0] for each in alike) or len({each["config"]["seed"] for each in reports}) < len(reports):
        raise ValueError(f"{', '.join(map(str, workdirs))} must be runs that differ in their seed, and in nothing else")
    seeds = [  # tasks averaged
        {kind: {column: mean_accuracy(probes(each), column) for column in _COLUMNS} for kind, probes in _KINDS.items()}
        for each in reports
    ]
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    entry = {key: report[key] for key in ("seconds", "images_per_s", "command")}
    return {
        **entry,
        "seeds": seeds,
        "hardware": hardware,
        "commit": commit.stdout.strip(),
        "log": _excerpt(log.read_text()) if log else [],
    }


def draw_learning(workdir: Path, path: Path) -> None:
    """Draws the probes of a run over the minutes that its steps took, beside their baselines."""
    report = json.loads((workdir / "report" / "report.json").read_text())
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    minutes = report["steps"] * report["config"]["optim"]["batch_size"] / report["images_per_s"] / 60
    timed = [{**line, "step": line["step"] / report["steps"] * minutes} for line in lines]
    curves.draw_probes(path, timed, report["name"], along="minutes of training")


def _excerpt(log: str) -> list[str]:
    """A log's lines, long ones shortened; of those of progress the one that ends each quarter."""
    lines = log.replace(f"{ROOT}/", "").splitlines()
    lines = [line if len(line) <= _SHOWN else line[: line.rindex(",", 0, _SHOWN)] + ", ..." for line in lines]
    steps = {
        i: int(found[1]) / int(found[2]) for i, line in enumerate(lines) if (found := re.match(r"step (\d+)/(\d+) loss", line))
    }
    quarters = {max((i for i in steps if steps[i] <= part), default=None) for part in (0.25, 0.5, 0.75, 1.0)}
    return [line for i, line in enumerate(lines) if i not in steps or i in quarters]


def pages(results: Mapping[str, Any]) -> dict[Path, str]:
    """The pages that quote results, as they should be."""
    readme = (ROOT / "README.md").read_text()
    readme = _replaced(readme, r"```\nstarting from step .*?```", _block(_in_short(results["quickstart"]["log"])))
    small = (ROOT / "docs" / "small_data.md").read_text()
    for name, (what, _) in _QUOTED.items():
        if what:
            readme = _replaced(readme, rf"\| {re.escape(what)}.*?\n", _row(what, results[name]))
        small = _replaced(small, rf"(?<=`configs/{name}\.py` \|)[^|]*\|[^|]*\|[^|]*(?=\|)", _expected(results[name]))
    whole = (ROOT / "docs" / "visualize.md").read_text()
    whole = _replaced(whole, r"```\nscenes train: .*?```", _block(results["quickstart"]["log"]))
    configs = {ROOT / "configs" / f"{name}.py": _docstring(name, results[name], of) for name, (_, of) in _QUOTED.items()}
    docs = ROOT / "docs"
    return {ROOT / "README.md": readme, docs / "visualize.md": whole, docs / "small_data.md": small, **configs}


def _block(lines: Sequence[str]) -> str:
    return "```\n" + "\n".join(lines) + "\n```"


def _in_short(log: Sequence[str]) -> list[str]:
    """What the README shows of a log: where the run starts, its last line of progress, and from the table of probes on."""
    start = [line for line in log if line.startswith("starting from step")]
    progress = [line for line in log if re.match(r"step \d+/\d+ loss", line)]
    return [*start, *progress[-1:], *itertools.dropwhile(lambda line: not line.startswith("┏"), log)]


def _row(what: str, entry: Mapping[str, Any]) -> str:
    """A row of the README's table."""
    shown = {column: ", ".join(_over_seeds(entry, kind, column) for kind in _KINDS) for column in _COLUMNS}
    cells = (
        what,
        shown["trained"],
        f"random init {shown['random_init']}; pixels {shown['pixels']}",
        f"{entry['seconds']:.0f} s, {entry['hardware']}",
        f"`{entry['command']}`",
        entry["commit"],
    )
    return f"| {' | '.join(cells)} |\n"


def _expected(entry: Mapping[str, Any]) -> str:
    """Cells of the table in docs/small_data.md: seeds, and both probes with random weights' and pixels' in brackets."""
    probes = [[_over_seeds(entry, kind, column) for column in _COLUMNS] for kind in _KINDS]
    return f" {len(entry['seeds'])} | {' | '.join(f'{ours} ({random}, {pixels})' for ours, random, pixels in probes)} "


def _over_seeds(entry: Mapping[str, Any], kind: str, column: str) -> str:
    """The mean over seeds of an accuracy, and its standard deviation where that is of something that was trained or drawn."""
    values = [seed[kind][column] for seed in entry["seeds"]]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 and column != "pixels" else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _docstring(name: str, entry: Mapping[str, Any], of: str) -> str:
    """A configuration with its docstring's lines on hardware, cost and what to expect."""
    seeds = f"{len(entry['seeds'])} seeds" if len(entry["seeds"]) > 1 else "one seed"
    probes = [f"{kind} {' / '.join(_over_seeds(entry, kind, column) for column in _COLUMNS)}" for kind in _KINDS]
    lines = [
        f"Hardware: {entry['hardware']}. Cost: {entry['seconds']:.0f} s (commit {entry['commit']}).",
        f"Expected, in per cent (trained / random init / pixels){of}, {seeds}, processors differing by a few points:",
        f"{', '.join(probes)}.",
    ]
    return _replaced((ROOT / "configs" / f"{name}.py").read_text(), r'Hardware: .*?(?=\n\n|\n""")', "\n".join(lines))


def _replaced(text: str, pattern: str, new: str) -> str:
    changed, count = re.subn(pattern, lambda _: new, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places look like {pattern}, expected one")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the configuration")
    parser.add_argument("workdirs", nargs="*", type=Path, help="of its run, and of others that differ in the seed")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--hardware", default="two CPU cores")
    given = parser.parse_args()
    if given.name and not given.workdirs:
        parser.error("give the workdir of its run")
    results = json.loads(FILE.read_text())
    if given.name:
        results[given.name] = of_runs(given.workdirs, given.log, given.hardware)
        FILE.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if given.name == "fashion_mnist":
        draw_learning(given.workdirs[0], ROOT / "docs" / "learning.png")
    for path, text in pages(results).items():
        if path.read_text() != text:
            path.write_text(text)
            print(f"changed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
