"""All that the paper reports of an encoder, evaluated one after the other, in one table: ours, the paper's, the difference."""

import json
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath
from rich.table import Table

from ijepa_jax.data.source import DataError
from ijepa_jax.devices import processes
from ijepa_jax.evaluate import suite, table
from ijepa_jax.host.console import Display
from ijepa_jax.host.files import write_whole
from ijepa_jax.settings import plain
from ijepa_jax.settings.evaluation import PROTOCOLS
from ijepa_jax.settings.paper import RUNS, Evaluation
from ijepa_jax.train import checkpoint, digests

_HOW_READ = ("directory", "batch_size", "workers", "threads", "buffer", "max_bad_fraction")  # not what is read


def evaluate(
    evaluations: Sequence[tuple[Evaluation, ml_collections.ConfigDict | None]],
    path: str,
    *,
    published: str | None = None,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    out: str = "",
    command: str = "",
    display: Display,
) -> dict[str, Any]:
    """Runs evaluations of a workdir's encoder that have not been run yet; returns, and writes into `out`, the table.

    Each leaves its own result there (by default in WORKDIR/evaluate), which is taken the next time if the encoder, the images
    and what counts of its settings are the same; paper.json and paper.md (paper-SCALE where there is one) are written after
    each. `published` is the run of RUNS whose figures stand beside, by default the one of such an encoder; `overrides` are the
    command line's, which stay. Rows that cannot be run say so: a data set that is not there, or not known (settings None).
    With several processes all must call this.

    Raises as `suite.evaluate`, but for data that are not there, and for what does not go with the encoder.
    """
    weights, saved = checkpoint.restore_encoder(path, next((one.step for _, one in evaluations if one is not None), 0))
    config, digest = saved.config(), digests.encoder_digest(weights, saved.method().backbone())
    del weights
    published = published or of_architecture(config)
    folder = epath.Path(out) if out else checkpoint.locate(path)[0] / "evaluate"
    result = {
        "suite": "paper", "scale": scale, "checkpoint": str(path), "published": published, "encoder_digest": digest,
        "command": command, "rows": [],
    }  # fmt: skip
    for each, settings in evaluations:
        found, note = None, f"no data set: name one by --data {each.data}=NAME"
        if settings is not None:
            display.log(f"{each.file} on {settings.data.name}")
            if config.model.size in ("vit_huge", "vit_giant"):
                asked = {override.removeprefix("--config.").partition("=")[0] for override in overrides}
                settings.update_from_flattened_dict({key: each.of_huge[key] for key in each.of_huge.keys() - asked})
            found, note = _found(settings, config, path, folder, digest, command, display)
        for task, row in each.rows.items():
            measured, figure = found and _of_task(found, task), row.figures.get(published)
            if found and not measured:
                note = f"{settings.data.name} has no task {task}, but {', '.join(found.get('tasks', [found['task']]))}"
            result["rows"].append({
                "name": row.name,
                "accuracy": measured and measured["accuracy"],
                "interval": measured and measured["interval"],
                "paper": figure,
                "difference": round(measured["accuracy"] - figure, 1) if measured and figure is not None else None,
                "data": settings and settings.data.name,
                "note": note,
            })  # fmt: skip
        if processes.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            name = f"paper-{scale}" if scale else "paper"
            write_whole(folder / f"{name}.json", json.dumps(result, indent=2) + "\n")
            write_whole(folder / f"{name}.md", markdown(result))
    return result


def _of_task(found: dict[str, Any], task: str) -> dict[str, Any] | None:
    """What was measured of a task; `label` may be an only task of another name."""
    tasks = found.get("tasks", {found["task"]: found})
    return next(iter(tasks.values())) if task == "label" and len(tasks) == 1 else tasks.get(task)


def of_architecture(config: ml_collections.ConfigDict) -> str | None:
    """The published run with an encoder like that of these settings: of two, the one whose kind of data these name."""
    shape = (config.model.size, config.model.patch, tuple(config.data.image_size))
    alike = [name for name, known in RUNS.items() if known == shape]
    wide = [name for name in alike if "22k" in name]
    return (wide if wide and "22k" in config.data.name.lower() else alike or [None])[0]


def _found(
    settings: ml_collections.ConfigDict, run: ml_collections.ConfigDict, path: str, folder: epath.Path, digest: str,
    command: str, display: Display,
) -> tuple[dict[str, Any] | None, str]:  # fmt: skip
    """An evaluation's result, kept from before or made now, and what there is to say about it."""
    try:
        contents, problem = suite.contents(run, settings), None
    except DataError as error:
        contents, problem = None, str(error)
    if problem := next(filter(None, processes.gather_objects(problem)), None):  # perhaps of one process alone
        display.log(f"not run: {problem}")
        return None, f"not run: {problem}"
    wanted = json.loads(json.dumps({"settings": _that_count(plain.to_plain(settings)), "encoder": digest, "data": contents}))
    kept = next((one for one in map(_read, folder.glob(f"{settings.protocol}-*.json")) if _facts(one) == wanted), None)
    if processes.all_succeeded(kept is not None):
        display.log("kept from before")
    else:
        try:
            kept = suite.evaluate(settings, path, out=str(folder), command=command, display=display)
        except DataError:
            raise
        except (ValueError, MemoryError) as error:  # such as fine-tuning of another network than ours
            display.log(f"not run: {error}")
            return None, f"not run: {error}"
    drawn = [f"{settings.data.fraction:.0%} of the labels, drawn by seed {settings.seed}"] * (settings.data.fraction < 1)
    return kept, "; ".join([*drawn, *kept["warnings"]])


def _that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that a result depends on: neither other protocols' nor how the work is done."""
    others = {*PROTOCOLS} - {settings["protocol"]} | {"mesh", "cache"}
    counting = {key: value for key, value in settings.items() if key not in others}
    return {**counting, "data": {key: value for key, value in settings["data"].items() if key not in _HOW_READ}}


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    keys = ("settings", "encoder_digest", "contents")
    settings, digest, contents = (result.get(key) for key in keys)
    return {"settings": settings and _that_count(settings), "encoder": digest, "data": contents}


def _read(file: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.1f}"

    beside = f"paper, {result['published']}" if result["published"] else "paper"
    return ["accuracy, %", "ours", "95% interval", beside, "difference", "data"], [
        [
            row["name"],
            number(row["accuracy"]),
            "{:.1f} .. {:.1f}".format(*row["interval"]) if row["interval"] else "",
            number(row["paper"]),
            number(row["difference"], "+"),
            row["data"] or "",
        ]
        for row in result["rows"]
    ]


def terminal(result: dict[str, Any]) -> Table:
    """The table for a terminal."""
    shown = table.drawn(_title(result), *_rows(result))
    shown.caption = "\n".join(_notes(result))
    return shown


def markdown(result: dict[str, Any]) -> str:
    """The table in Markdown, with what there is to say of its rows."""
    lines = [f"# {_title(result)}", "", table.grid(*_rows(result)), ""]
    lines += [f"* {note}" for note in _notes(result)]
    return "\n".join(
        [*lines, "", f"Encoder's digest `{result['encoder_digest'][:16]}`.", "", f"```\n{result['command']}\n```", ""]
    )


def _title(result: dict[str, Any]) -> str:
    rehearsal = f", a rehearsal ({result['scale']}): its accuracies mean nothing" if result["scale"] else ""
    return f"{result['checkpoint']} beside the paper{rehearsal}"


def _notes(result: dict[str, Any]) -> list[str]:
    return [f"{row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
