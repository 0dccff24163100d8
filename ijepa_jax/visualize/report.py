"""The report of a run: report.json for programs, report.md for people, and the table of probes for page and terminal."""

import json
import math

from etils import epath
from rich.table import Table

_COLUMNS = ("ijepa", "random_init", "pixels")
_HEADINGS = ("I-JEPA", "random init", "pixels")
_CAPTION = (
    "Accuracy on held-out images, per cent, on frozen features: the target encoder's pooled patches, those of an encoder with "
    "random weights, and raw pixels at 32x32. Linear probes, but for a row named knn."
)
_TITLES = {
    "curves": "Training",
    "probes": "Probes over steps",
    "masks": "Images, their contexts and targets",
    "pca": "Patch features as colours",
    "neighbours": "Nearest neighbours",
}


def write_report(directory, report: dict) -> None:
    """Writes report.json and report.md.

    Args:
      directory: where to, made if missing; local or cloud storage. Pictures are expected there too.
      report: `probes` (per cent: {task: {ijepa, random_init, pixels}}) and, all optional, `knn` (likewise), `rankme`, `lidar`
        and `feature_std` ({ijepa, random_init}), `seconds`, `images_per_s`, `steps`, `params_digest`, `compilations`,
        `command`, `data`, `config` and `environment` (dicts, nested or not), `pictures` (file names in `directory`).
        NaN and infinity become null in the JSON, which has no word for them, and a dash in the page.
    """
    directory, report = epath.Path(directory), _plain(report)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(markdown(report))
    unfinished = directory / "report.json.tmp"  # report.json says that the run is finished: it comes last, and whole
    unfinished.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    unfinished.replace(directory / "report.json")


def read_report(workdir) -> dict | None:
    """The report of a finished run, None where there is none."""
    path = epath.Path(workdir) / "report" / "report.json"
    return json.loads(path.read_text()) if path.exists() else None


def markdown(report: dict) -> str:
    """The report as a page of Markdown; parts that `report` does not have are left out."""
    parts = ["# I-JEPA pretraining report"]
    if report.get("command"):
        parts.append(f"```\n{report['command']}\n```")
    parts += [_run_table(report), "## Probes", _CAPTION, _probe_section(report, "probes")]
    if report.get("knn"):
        parts += ["## Nearest neighbours", "Accuracy of kNN on held-out images, per cent.", _probe_section(report, "knn")]
    if report.get("rankme") or report.get("feature_std"):
        parts += ["## Signs of collapse", _collapse_table(report)]
    for picture in report.get("pictures") or []:
        parts.append(f"## {_title(picture)}\n\n![{_title(picture)}]({picture})")
    for key, title in (("config", "Settings"), ("environment", "Environment")):
        if report.get(key):
            rows = [[f"`{name}`", f"`{value}`"] for name, value in _flatten(report[key])]
            table = _table(["name", "value"], rows)
            parts.append(f"## {title}\n\n<details><summary>values: {len(rows)}</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def probe_rows(report: dict, key: str = "probes") -> list[list[str]]:
    """The rows of a table of probes: task, I-JEPA, random init, pixels, and a last row of means where there are several tasks.

    Args:
      report: as for `write_report`.
      key: `probes` (linear) or `knn`.
    """
    probes = report.get(key) or {}
    rows = [[task, *(_number(result.get(column)) for column in _COLUMNS)] for task, result in probes.items()]
    if len(probes) > 1 and "knn" not in probes:  # several tasks, not several protocols of one
        rows.append(["mean", *(_number(_mean([result.get(column) for result in probes.values()])) for column in _COLUMNS)])
    return rows


def probe_table(report: dict, key: str = "probes") -> Table:
    """The same table for the terminal."""
    table = Table(title="probes of frozen features, accuracy in %" if key == "probes" else "kNN, accuracy in %")
    table.add_column("probe")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    rows = probe_rows(report, key)
    for i, row in enumerate(rows):
        is_mean = i > 0 and i == len(rows) - 1  # a single task has no row of means
        table.add_row(*row, style="bold" if is_mean else None, end_section=i == len(rows) - 2)
    return table


def _run_table(report: dict) -> str:
    named = (
        ("data", "data", str),
        ("steps", "steps", "{:,}".format),
        ("time", "seconds", lambda seconds: f"{seconds:,.0f} s"),
        ("images per second", "images_per_s", "{:,.0f}".format),
        ("compilations of the step", "compilations", str),
        ("digest of the parameters", "params_digest", "`{}`".format),
    )
    return _table(["", ""], [[name, write(report[key])] for name, key, write in named if report.get(key) is not None])


def _probe_section(report: dict, key: str) -> str:
    return _table(["probe", *_HEADINGS], probe_rows(report, key))


def _collapse_table(report: dict) -> str:
    names = {"rankme": "RankMe (effective rank)", "lidar": "LiDAR", "feature_std": "feature std"}
    rows = []
    for key, name in names.items():
        if report.get(key):
            rows.append([name, *(_number(report[key].get(column), 3) for column in _COLUMNS[:2])])
    return _table(["", *_HEADINGS[:2]], rows)


def _table(headings, rows) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _mean(values) -> float | None:
    return None if not values or any(value is None for value in values) else sum(values) / len(values)


def _title(picture: str) -> str:
    name = picture.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def _flatten(tree, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value):
    """Turns NumPy and JAX scalars and arrays, tuples and paths into what JSON has; what is not finite into None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
