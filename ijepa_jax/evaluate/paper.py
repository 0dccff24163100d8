"""All that the paper reports of an encoder, evaluated one after the other, in one table: ours, the paper's, the difference."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from etils import epath
from rich.table import Table

from ijepa_jax.devices import processes
from ijepa_jax.evaluate import suite, table
from ijepa_jax.host.console import Display
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import write_whole
from ijepa_jax.methods import IJepa, find
from ijepa_jax.settings import plain
from ijepa_jax.settings.evaluation import PROTOCOLS
from ijepa_jax.settings.paper import RUNS, Evaluation
from ijepa_jax.train import checkpoint, digests

_HOW_READ = ("directory", "batch_size", "workers", "threads", "buffer", "max_bad_fraction")  # not what is read
_CROP_ANEW = ("linear", "attentive", "finetune")  # protocols that `augment` is of


@dataclasses.dataclass
class _Part:
    """An evaluation of the suite: its settings, None where no data set is known, and its result or why there is none."""

    evaluation: Evaluation
    settings: ml_collections.ConfigDict | None
    asked: bool
    contents: dict[str, str] | None = None
    found: dict[str, Any] | None = None
    note: str = ""


def evaluate(
    evaluations: Sequence[tuple[Evaluation, ml_collections.ConfigDict | None]],
    path: str,
    *,
    only: Sequence[str] = (),
    published: str | None = None,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    out: str = "",
    command: str = "",
    display: Display,
) -> dict[str, Any]:
    """Runs evaluations of a workdir's encoder that have not been run yet; returns, and writes into `out`, the table.

    First all data are looked at, so that what is missing is said before hours are spent. Each evaluation leaves its own result
    in `out` (by default in WORKDIR/evaluate), which is taken the next time if the encoder, the images and what counts of its
    settings are the same; paper.json and paper.md (paper-SCALE where there is one) are written anew after each. Of `only` some,
    by configuration or data, the others are in the table if they were run before. `published` is the run of RUNS whose figures
    stand beside, by default the one of such an encoder; `overrides` are the command line's, which stay. Rows that cannot be run
    say so: data that are not there or have no labels, a protocol that is not for this encoder; and, of one process, what fails
    for want of memory. With several processes all must call this.

    Raises as `suite.evaluate`, but for what is said in rows.
    """
    weights, saved = checkpoint.restore_encoder(path, next((one.step for _, one in evaluations if one is not None), 0))
    run, backbone = saved.config(), saved.method().backbone()
    encoder = {"encoder": digests.encoder_digest(weights, backbone), "network": str(backbone.network)}
    del weights
    folder = epath.Path(out) if out else checkpoint.locate(path)[0] / "evaluate"
    result = {
        "suite": "paper", "scale": scale, "checkpoint": str(path), "published": published or of_architecture(run),
        "encoder_digest": encoder["encoder"], "command": command,
    }  # fmt: skip
    chosen = [not only or bool({each.file, each.data} & {*only}) for each, _ in evaluations]
    parts = [_Part(each, settings, asked) for (each, settings), asked in zip(evaluations, chosen, strict=True)]
    for part in parts:
        _look(part, run, encoder, folder, overrides)
        if part.asked:
            display.log(f"{_named(part)}: {part.note or ('kept from before' if part.found else 'to be run')}")
    _write(folder, result, parts)
    for part in parts:
        if part.asked and part.contents and not part.found:
            display.log(_named(part))
            _run(part, path, folder, command, display)
            _write(folder, result, parts)
    return result


def of_architecture(config: ml_collections.ConfigDict) -> str | None:
    """The published run with an encoder like that of these settings: of two, the one whose kind of data these name."""
    shape = (config.model.size, config.model.patch, tuple(config.data.image_size))
    alike = [name for name, known in RUNS.items() if known == shape and find(config.method) is IJepa]
    wide = [name for name in alike if "22k" in name]
    return (wide if wide and "22k" in config.data.name.lower() else alike or [None])[0]


def _named(part: _Part) -> str:
    return f"{part.evaluation.file} on {part.settings.data.name if part.settings else part.evaluation.data}"


def _look(
    part: _Part, run: ml_collections.ConfigDict, encoder: dict[str, str], folder: epath.Path, overrides: Sequence[str]
) -> None:
    """Says of an evaluation what can be said without running it: why it cannot be, or the result that there is."""
    each, settings = part.evaluation, part.settings
    key = "" if each.data == "imagenet" else f"{each.data}="
    if settings is None:
        part.note = f"no data set: name one by --data {key}NAME"
        return
    if run.model.size in ("vit_huge", "vit_giant"):
        given = {override.removeprefix("--config.").partition("=")[0] for override in overrides}
        settings.update_from_flattened_dict({name: each.of_huge[name] for name in each.of_huge.keys() - given})
    problem = None
    try:
        part.contents = suite.contents(run, settings)
    except (ValueError, OSError) as error:
        problem = one_line(error).replace("--config.data.name=", f"--data {key}")  # as a suite is told
    if problem := next(filter(None, processes.gather_objects(problem)), None):  # perhaps of one process alone
        part.contents, part.note = None, f"not run: {problem}"
        return
    wanted = json.loads(json.dumps({"settings": _that_count(plain.to_plain(settings)), "contents": part.contents, **encoder}))
    kept = next((one for one in map(_read, folder.glob(f"{settings.protocol}-*.json")) if _facts(one) == wanted), None)
    bare = kept and settings.baselines and not kept["baselines"]
    if processes.all_succeeded(bool(kept and not (bare and part.asked))):
        part.found = kept
    elif not part.asked:
        part.note = "not asked for"


def _run(part: _Part, path: str, folder: epath.Path, command: str, display: Display) -> None:
    try:
        part.found = suite.evaluate(part.settings, path, out=str(folder), command=command, display=display)
    except (ValueError, MemoryError) as error:
        if jax.process_count() > 1:  # the others wait
            raise
        part.note = f"not run: {one_line(error)}"
        display.log(part.note)


def _that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that a result depends on: neither other protocols' nor how the work is done, nor what stands beside."""
    others = {*PROTOCOLS} - {settings["protocol"]} | {"mesh", "cache", "step", "baselines"}
    others |= {"augment"} if settings["protocol"] not in _CROP_ANEW else set()
    counting = {key: value for key, value in settings.items() if key not in others}
    return {**counting, "data": {key: value for key, value in settings["data"].items() if key not in _HOW_READ}}


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    settings = result.get("settings")
    names = {"encoder": "encoder_digest", "network": "network", "contents": "contents"}
    return {"settings": settings and _that_count(settings), **{name: result.get(key) for name, key in names.items()}}


def _read(file: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _write(folder: epath.Path, result: dict[str, Any], parts: Sequence[_Part]) -> None:
    """Brings the table up to date, in memory and, by the first process, in its files."""
    result["rows"] = [row for part in parts for row in _rows_of(part, result["published"])]
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        name = f"paper-{result['scale']}" if result["scale"] else "paper"
        write_whole(folder / f"{name}.json", json.dumps(result, indent=2) + "\n")
        write_whole(folder / f"{name}.md", markdown(result))


def _rows_of(part: _Part, published: str | None) -> list[dict[str, Any]]:
    rows, settings, found = [], part.settings, part.found
    for task, row in part.evaluation.rows.items():
        measured, figure = found and _of_task(found, task), row.figures.get(published)
        notes = [part.note] if part.note else []
        if found:
            notes += [f"{settings.data.fraction:.0%} of the labels, drawn by seed {settings.seed}"] * (
                settings.data.fraction < 1
            )
            notes += found["warnings"]
            notes += ["made by another version of this code"] * (found.get("code") != processes.code_digest())
        if found and not measured:
            notes = [f"{settings.data.name} has no task {task}, but {', '.join(found.get('tasks', [found['task']]))}"]
        rows.append({
            "name": row.name,
            "accuracy": measured and measured["accuracy"],
            "interval": measured and measured["interval"],
            "baselines": measured and measured["baselines"],
            "paper": figure,
            "difference": round(measured["accuracy"] - figure, 1) if measured and figure is not None else None,
            "data": settings and settings.data.name,
            "date": found and found.get("date"),
            "asked": part.asked,
            "note": "; ".join(notes),
        })  # fmt: skip
    return rows


def _of_task(found: dict[str, Any], task: str) -> dict[str, Any] | None:
    """What was measured of a task; `label` may be an only task of another name."""
    tasks = found.get("tasks", {found["task"]: found})
    return next(iter(tasks.values())) if task == "label" and len(tasks) == 1 else tasks.get(task)


def _table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.1f}"

    beside = f"paper, {result['published']}" if result["published"] else "paper"
    headings = ["accuracy, %", "ours", "95% interval", beside, "difference", "random init", "pixels", "data", "of"]
    lines = []
    for row in result["rows"]:
        random = {"random_init": None, "supervised": None, "pixels": None} | (row["baselines"] or {})
        lines.append([
            row["name"],
            number(row["accuracy"]),
            "{:.1f} .. {:.1f}".format(*row["interval"]) if row["interval"] else "",
            number(row["paper"]),
            number(row["difference"], "+"),
            number(random["random_init"] if random["supervised"] is None else random["supervised"]),
            number(random["pixels"]),
            row["data"] or "",
            row["date"] or "",
        ])  # fmt: skip
    return headings, lines


def terminal(result: dict[str, Any]) -> Table:
    """The table for a terminal."""
    headings, lines = _table(result)
    shown = table.drawn(_title(result), headings[:-1], [line[:-1] for line in lines])
    shown.caption = "\n".join(_notes(result))
    return shown


def markdown(result: dict[str, Any]) -> str:
    """The table in Markdown, with what there is to say of its rows."""
    lines = [f"# {_title(result)}", "", table.grid(*_table(result)), ""]
    lines += ["Fine-tuning beside random weights: training from scratch.", "", *(f"* {note}" for note in _notes(result))]
    return "\n".join(
        [*lines, "", f"Encoder's digest `{result['encoder_digest'][:16]}`.", "", f"```\n{result['command']}\n```", ""]
    )


def _title(result: dict[str, Any]) -> str:
    rehearsal = f", a rehearsal ({result['scale']}): its accuracies mean nothing" if result["scale"] else ""
    return f"{result['checkpoint']} beside the paper{rehearsal}"


def _notes(result: dict[str, Any]) -> list[str]:
    return [f"{row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
