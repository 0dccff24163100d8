"""The report of a run: report.json for programs, report.html and .md for people, the table of probes for page and terminal."""

import json
import math
import urllib.parse
from collections.abc import Callable
from typing import Any

from etils import epath
from rich.table import Table

from ijepa_jax.host.files import write_whole
from ijepa_jax.methods import config as config_lib
from ijepa_jax.settings import plain, ranges, run
from ijepa_jax.visualize.canvas import explained
from ijepa_jax.visualize.page import as_block, as_code, as_table, as_text, kind_of, worded, write_page
from ijepa_jax.visualize.summary import in_words, linear_probes, mean_accuracy, warnings

_COLUMNS = ("trained", "random_init", "pixels")
_ONCE = {"ijepa": "trained"}  # columns that older reports call otherwise
_HEADINGS = ("95% interval", "random init", "pixels")  # after the name of the method
_CAPTION = (
    "Accuracy on held-out images, per cent, on frozen features: the trained encoder's pooled patches, those of an encoder with "
    "random weights, and raw pixels{}. Linear probes, but for a row named knn."
)
_SMALL = " at 32x32"  # that images are given as, where their pixels are probed
_TITLES = {
    "curves": "Training",
    "probes": "Probes over steps",
    "masks": "Images, their contexts and targets",
    "reconstruction": "What pixels are guessed",
    "views": "Images and their views",
    "pca": "Patch features as colours",
    "neighbours": "Nearest neighbours",
}
_EXPLAINED = {
    "probes": "On the smaller samples that probes during training use; lines across are the baselines on the same samples.",
    "masks": "What the context encoder sees of an image, and the blocks that are predicted from it.",
    "reconstruction": "What is seen of an image, and that with guesses of what is not. Guesses of pixels that are normalised "
    "patch by patch tell neither a patch's mean nor its contrast: both are lent from the image.",
    "views": "What training compares of an image: random crops of it, each changed in colour and sharpness.",
    "pca": "The first three principal components of the encoder's patches as red, green and blue.",
    "neighbours": "Test images, and those whose features are most like theirs.",
}
_LAST_METRICS = {
    "target_std": "target_std: spread of target tokens",
    "prediction_std": "prediction_std: spread of predictions",
    "target_image_std": "target_image_std: spread of whole images",
}


def write_report(directory, report: dict) -> None:
    """Writes report.md, report.html, which needs no other file, and report.json.

    Args:
      directory: where to, made if missing; local or cloud storage. Pictures are expected there too.
      report: `probes` (per cent: {task: {trained, random_init, pixels}}) and, all optional, `knn` (likewise), `rankme`, `lidar`
        and `feature_std` ({trained, random_init}), `last_metrics` (of the last step: {target_std, ...}), `method`, `name` (of
        the method, for people), `seconds`, `images_per_s`, `steps`, `resumed_from`, `best_step`,
        `input_wait_share` and `probe_share` (0 .. 1), `bad_images`, `params_digest`, `compilations`, `command`, `data`,
        `modality` (image, video or signal), `config` and `environment` (dicts, nested or not), `pictures` (file names in
        `directory`), and what `Method.pictures` gives. NaN and infinity become null in the JSON, which has no word for them,
        and a dash in the page.

    Raises:
      FileNotFoundError: a picture is not there.
    """
    directory, report = epath.Path(directory), _plain(report)
    directory.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    (directory / "report.md").write_text(text)
    write_page(directory / "report.html", text, _title(report) + (f": {report['data']}" if report.get("data") else ""))
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_whole(directory / "report.json", text.encode())  # it says that the run is finished: it comes last, and whole


def read_report(workdir, log: Callable[[str], None] = lambda line: None) -> dict | None:
    """The report of a finished run; None where there is none, or a broken one, which is said to `log`."""
    path = epath.Path(workdir) / "report" / "report.json"
    if not path.exists():
        return None
    try:
        report = _renamed(json.loads(path.read_bytes()))
        parts = {"probes", "decoded", "name"} & report.keys()  # without an encoder there are no probes
        whole = isinstance(report["steps"], int) and isinstance(report["params_digest"], str) and parts and markdown(report)
    except Exception:  # whatever is odd in it, no page can be made of it
        whole = False
    if not whole:
        log(f"{path} is broken: it is no report of a finished run")
    return report if whole else None


def _renamed(report: Any) -> Any:
    """A report with the names of today."""
    if isinstance(report, dict):
        names = _ONCE if "random_init" in report else {}
        return {names.get(key, key): _renamed(value) for key, value in report.items()}
    return report


def name_of(report: dict) -> str:
    """What the method of a report is called; all older ones that do not tell are I-JEPA's, or of its decoders."""
    return report.get("name") or "I-JEPA"


def markdown(report: dict) -> str:
    """The report as a page of Markdown; parts that `report` does not have are left out."""
    kind = kind_of(report)
    parts = [f"# {_title(report)}", in_words(report), *(f"> **Warning:** {warning}" for warning in warnings(report))]
    if report.get("command"):
        parts.append(as_block(report["command"]))
    parts.append(_run_table(report))
    if report.get("probes"):
        parts += ["## Probes", worded(_CAPTION.format(_SMALL * (kind == "image")), kind), _probe_section(report, "probes")]
    if report.get("knn"):
        parts += ["## kNN", worded("Accuracy of kNN on held-out images, per cent.", kind), _probe_section(report, "knn")]
    parts += [_figures_section(section) for section in report.get("sections") or []]
    parts += _collapse_section(report)
    pictures = report.get("pictures") or []
    parts.append(explained(report) if pictures else "")
    parts += [_picture_section(picture, report.get("captions") or {}, kind) for picture in pictures]
    if report.get("config"):
        parts += _settings_section(report["config"])
    if report.get("environment"):
        parts += ["## Environment", _folded(report["environment"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def probe_rows(report: dict, key: str = "probes") -> list[list[str]]:
    """The rows of a table of probes: task, trained encoder, its interval, random init, pixels; at last means of several tasks.

    Args:
      report: as for `write_report`.
      key: `probes` (linear) or `knn`.
    """
    probes = report.get(key) or {}
    entries = dict(probes)
    if len(linear_probes({"probes": probes})) > 1:  # several tasks, not several protocols of one
        means = {column: mean_accuracy(probes, column) for column in _COLUMNS}
        entries["mean"] = {**means, "interval": (report.get("mean_interval") or {}).get(key)}
    return [
        [task, _number(of.get("trained")), _span(of.get("interval")), *(_number(of.get(column)) for column in _COLUMNS[1:])]
        for task, of in entries.items()
    ]


def _headings(report: dict) -> list[str]:
    """Those of `probe_rows` after the name of the method."""
    return [worded(heading, kind_of(report)) for heading in _HEADINGS]


def probe_table(report: dict, key: str = "probes") -> Table:
    """The same table for the terminal."""
    table = Table(title="probes of frozen features, accuracy in %" if key == "probes" else "kNN, accuracy in %")
    table.add_column("probe")
    for heading in (name_of(report), *_headings(report)):
        table.add_column(heading, justify="right")
    rows = probe_rows(report, key)
    for i, row in enumerate(rows):
        is_mean = i > 0 and i == len(rows) - 1  # a single task has no row of means
        table.add_row(*row, style="bold" if is_mean else None, end_section=i == len(rows) - 2)
    return table


def _run_table(report: dict) -> str:
    named = (
        ("data", "data", as_code),
        ("steps", "steps", "{:,}".format),
        ("best checkpoint, by the probes during training", "best_step", "step {:,}".format),
        ("time", "seconds", "{:,.0f} s".format),
        ("images per second", "images_per_s", "{:,.0f}".format),
        ("share of training waited for input", "input_wait_share", _share),
        ("share of training spent in probes", "probe_share", _share),
        ("unreadable images", "bad_images", str),
        ("compilations of the step", "compilations", str),
        ("digest of all parameters and the target", "params_digest", as_code),
        ("digest of the encoder", "encoder_digest", as_code),
    )
    kind = kind_of(report)
    rows = [[worded(name, kind), write(report[key])] for name, key, write in named if report.get(key) is not None]
    return as_table(["", ""], rows, right=False) if rows else ""


def _probe_section(report: dict, key: str) -> str:
    table = as_table(
        ["probe", as_text(name_of(report)), *_headings(report)],
        [[as_text(name), *cells] for name, *cells in probe_rows(report, key)],
    )
    strengths = {task: of["l2"] for task, of in (report.get(key) or {}).items() if of.get("l2")}
    shown = [f"{as_text(task)} {' / '.join(f'{of[column]:g}' for column in _COLUMNS)}" for task, of in strengths.items()]
    return "\n\n".join([table, *([f"Strengths of regularisation that were chosen: {', '.join(shown)}."] if shown else [])])


def _span(interval: list | None) -> str:
    return " .. ".join(map(_number, interval)) if interval else "–"


def _figures_section(section: dict) -> str:
    """Figures that a method alone has to show."""
    rows = [[as_text(what), _number(value)] for what, value in section["rows"].items()]
    return "\n\n".join([f"## {as_text(section['title'])}", section["text"], as_table(section["columns"], rows)])


def _collapse_section(report: dict) -> list[str]:
    names = {"rankme": "RankMe (effective rank)", "lidar": "LiDAR", "feature_std": "feature std"}
    rows = [
        [name, *(_number(report[key].get(column), 3) for column in _COLUMNS[:2])]
        for key, name in names.items()
        if report.get(key)
    ]
    last = report.get("last_metrics") or {}
    last_rows = [[worded(name, kind_of(report)), _number(last[key], 4)] for key, name in _LAST_METRICS.items() if key in last]
    parts = ["## Signs of collapse"] if rows or last_rows else []
    if rows:
        parts += [
            "Near 1 (the first two) or 0, or far below the random encoder's, they tell of collapse.",
            as_table(["", as_text(name_of(report)), "random init"], rows),
        ]
    if last_rows:
        parts += ["At the last step of training (a spread of 0 is collapse):", as_table(["", "last step"], last_rows)]
    return parts


def _picture_section(picture: str, captions: dict, kind: str) -> str:
    name = picture.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    ours, explained = (worded(texts.get(name, ""), kind) for texts in (_TITLES, _EXPLAINED))
    title, explained = captions.get(picture) or (ours or name.replace("_", " ").capitalize(), explained)
    shown = f"![{as_text(title)}]({urllib.parse.quote(picture)})"
    return "\n\n".join(part for part in (f"## {as_text(title)}", explained, shown) if part)


def _settings_section(settings: dict) -> list[str]:
    """Settings that differ from the defaults beside these, and all of them folded away."""
    defaults = _defaults(settings.get("method", "ijepa"))
    changed = [(name, value) for name, value in _flatten(settings) if name not in defaults or value != defaults[name]]
    rows = [[as_code(name), as_code(value), as_code(defaults[name]) if name in defaults else "–"] for name, value in changed]
    table = as_table(["setting", "this run", "default"], rows, right=False)
    return [
        "## Settings",
        "Those that are not the defaults:" if rows else "",
        table if rows else "",
        _folded(settings),
    ]


def _defaults(method: str) -> dict[str, Any]:
    """The default settings of a method; without those of its own where it cannot be found from here."""
    try:
        return plain.flatten(config_lib.default(method))
    except ValueError:
        return plain.flatten(ranges.defaults(run.SETTINGS))


def _folded(values: dict) -> str:
    rows = [[as_code(name), as_code(value)] for name, value in _flatten(values)]
    table = as_table(["name", "value"], rows, right=False)
    return f"<details><summary>all values: {len(rows)}</summary>\n\n{table}\n\n</details>"


def _title(report: dict) -> str:
    return f"{name_of(report)} pretraining report"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


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
