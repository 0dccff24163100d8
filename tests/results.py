"""What committed configurations came to: docs/results.json, from which the pages that quote them are written.

    python launch.py | tee quickstart.log
    python -m tests.results quickstart runs/quickstart --log quickstart.log --hardware "two CPU cores"

takes a run's report, and prints which pages it changed; without a name it only writes the pages anew.
"""

import argparse
import itertools
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "results.json"
_COLUMNS = ("trained", "random_init", "pixels")
_SHOWN = 150  # letters of a line of a log


def of_run(workdir: Path, log: Path | None, hardware: str) -> dict[str, Any]:
    """What is kept of a finished run: its probes in per cent, time, speed, and what it printed."""
    report = json.loads((workdir / "report" / "report.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    entry = {key: report[key] for key in ("probes", "seconds", "images_per_s", "command")}
    return {**entry, "hardware": hardware, "commit": commit.stdout.strip(), "log": _excerpt(log.read_text()) if log else []}


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
    scenes, clothes = results["quickstart"], results["fashion_mnist"]
    mean = {column: sum(probe[column] for probe in scenes["probes"].values()) / len(scenes["probes"]) for column in _COLUMNS}
    readme = (ROOT / "README.md").read_text()
    readme = _replaced(readme, r"```\nstarting from step .*?```", _block(_in_short(scenes["log"])))
    row = _row(
        "generated scenes, mean of four linear probes, %", {name: f"{value:.1f}" for name, value in mean.items()}, scenes
    )
    readme = _replaced(readme, r"\| generated scenes, mean of four linear probes.*?\n", row)
    knn, linear = clothes["probes"]["knn"], clothes["probes"]["linear"]
    row = _row(
        "Fashion-MNIST, kNN and linear probe, %", {name: f"{knn[name]:.1f}, {linear[name]:.1f}" for name in _COLUMNS}, clothes
    )
    readme = _replaced(readme, r"\| Fashion-MNIST, kNN and linear probe.*?\n", row)
    whole = (ROOT / "docs" / "visualize.md").read_text()
    whole = _replaced(whole, r"```\nscenes train: .*?```", _block(scenes["log"]))
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "visualize.md": whole,
        ROOT / "configs" / "quickstart.py": _docstring("quickstart", scenes),
        ROOT / "configs" / "fashion_mnist.py": _docstring("fashion_mnist", clothes),
    }


def _block(lines: Sequence[str]) -> str:
    return "```\n" + "\n".join(lines) + "\n```"


def _in_short(log: Sequence[str]) -> list[str]:
    """What the README shows of a log: where the run starts, its last line of progress, and from the table of probes on."""
    start = [line for line in log if line.startswith("starting from step")]
    progress = [line for line in log if re.match(r"step \d+/\d+ loss", line)]
    return [*start, *progress[-1:], *itertools.dropwhile(lambda line: not line.startswith("┏"), log)]


def _row(what: str, shown: Mapping[str, str], entry: Mapping[str, Any]) -> str:
    """A row of the README's table."""
    beside = f"random init {shown['random_init']}; pixels {shown['pixels']}"
    cells = (
        what,
        shown["trained"],
        beside,
        f"{entry['seconds']:.0f} s, {entry['hardware']}",
        f"`{entry['command']}`",
        entry["commit"],
    )
    return f"| {' | '.join(cells)} |\n"


def _docstring(name: str, entry: Mapping[str, Any]) -> str:
    """A configuration with its docstring's lines on hardware, cost and what to expect."""
    probes = [f"{task} {' / '.join(f'{probe[column]:.1f}' for column in _COLUMNS)}" for task, probe in entry["probes"].items()]
    lines = [
        f"Hardware: {entry['hardware']}. Cost: {entry['seconds']:.0f} s (commit {entry['commit']}).",
        "Expected, in per cent (this encoder / random init / pixels), one seed, processors differing by a few points:",
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
    parser.add_argument("workdir", nargs="?", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--hardware", default="two CPU cores")
    given = parser.parse_args()
    results = json.loads(FILE.read_text())
    if given.name:
        results[given.name] = {**results.get(given.name, {}), **of_run(given.workdir, given.log, given.hardware)}
        FILE.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    for path, text in pages(results).items():
        if path.read_text() != text:
            path.write_text(text)
            print(f"changed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
