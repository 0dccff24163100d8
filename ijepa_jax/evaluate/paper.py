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
from ijepa_jax.settings.paper import RUNS, Evaluation
from ijepa_jax.train import checkpoint, digests


def evaluate(
    evaluations: Sequence[tuple[Evaluation, ml_collections.ConfigDict | None]],
    path: str,
    *,
    published: str | None = None,
    overrides: Sequence[str] = (),
    out: str = "",
    command: str = "",
    display: Display,
) -> dict[str, Any]:
    """Runs evaluations of a workdir's encoder that have not been run yet; returns, and writes into `out`, the table.

    Each leaves its own result there (by default in WORKDIR/evaluate), which is taken the next time if its settings and the
    encoder are the same; paper.json and paper.md are written after each. `published` is the run of RUNS whose figures stand
    beside, by default the one of such an encoder; `overrides` are the command line's, which stay. Rows of a data set that is
    not there say so; settings None: none is known. With several processes all must call this. Raises as `suite.evaluate`, but
    for a data set that is not there.
    """
    weights, saved = checkpoint.restore_encoder(path, next((one.step for _, one in evaluations if one is not None), 0))
    config, digest = saved.config(), digests.encoder_digest(weights, saved.method().backbone())
    del weights
    published = published or of_architecture(config)
    folder = epath.Path(out) if out else checkpoint.locate(path)[0] / "evaluate"
    result = {
        "suite": "paper", "checkpoint": str(path), "published": published, "encoder_digest": digest, "command": command,
        "rows": [],
    }  # fmt: skip
    for each, settings in evaluations:
        found, note = None, f"no data set: name one by --data {each.data}=NAME"
        if settings is not None:
            display.log(f"{each.file} on {settings.data.name}")
            if config.model.size in ("vit_huge", "vit_giant"):
                asked = {override.removeprefix("--config.").partition("=")[0] for override in overrides}
                settings.update_from_flattened_dict({key: each.of_huge[key] for key in each.of_huge.keys() - asked})
            found, note = _found(settings, path, folder, digest, command, display)
        for task, row in each.rows.items():
            measured = found and (found.get("tasks", {found["task"]: found}).get(task) if task else found)
            if found and not measured:
                note = f"{settings.data.name} has no task {task}, but {', '.join(found.get('tasks', [found['task']]))}"
            figure = row.figures.get(published)
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
            write_whole(folder / "paper.json", json.dumps(result, indent=2) + "\n")
            write_whole(folder / "paper.md", markdown(result))
    return result


def of_architecture(config: ml_collections.ConfigDict) -> str | None:
    """The published run with an encoder like that of these settings: of two, the one whose kind of data these name."""
    shape = (config.model.size, config.model.patch, tuple(config.data.image_size))
    alike = [name for name, known in RUNS.items() if known == shape]
    wide = [name for name in alike if "22k" in name]
    return (wide if wide and "22k" in config.data.name.lower() else alike or [None])[0]


def _found(
    settings: ml_collections.ConfigDict, path: str, folder: epath.Path, digest: str, command: str, display: Display
) -> tuple[dict[str, Any] | None, str]:
    """An evaluation's result, kept from before or made now, and what there is to say about it."""
    kept = _kept(folder / f"{suite.file_name(settings, settings.data.name)}.json", settings, digest)
    if processes.all_succeeded(kept is not None):
        display.log("kept from before")
    else:
        try:
            kept = suite.evaluate(settings, path, out=str(folder), command=command, display=display)
        except DataError as error:
            display.log(f"not run: {error}")
            return None, f"not run: {error}"
    drawn = [f"{settings.data.fraction:.0%} of the labels, drawn by seed {settings.seed}"] * (settings.data.fraction < 1)
    return kept, "; ".join([*drawn, *kept["warnings"]])


def _kept(file: epath.Path, settings: ml_collections.ConfigDict, digest: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    same = json.loads(json.dumps(plain.to_plain(settings)))
    return kept if kept.get("settings") == same and kept.get("encoder_digest") == digest else None


def _rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.1f}"

    beside = f"paper, {result['published']}" if result["published"] else "paper"
    return ["accuracy, %", "ours", "95% interval", beside, "difference"], [
        [
            row["name"],
            number(row["accuracy"]),
            "{:.1f} .. {:.1f}".format(*row["interval"]) if row["interval"] else "",
            number(row["paper"]),
            number(row["difference"], "+"),
        ]
        for row in result["rows"]
    ]


def terminal(result: dict[str, Any]) -> Table:
    """The table for a terminal."""
    shown = table.drawn(f"{result['checkpoint']} beside the paper", *_rows(result))
    shown.caption = "\n".join(_notes(result))
    return shown


def markdown(result: dict[str, Any]) -> str:
    """The table in Markdown, with what there is to say of its rows."""
    lines = [f"# {result['checkpoint']} beside the paper", "", table.grid(*_rows(result)), ""]
    lines += [f"* {note}" for note in _notes(result)]
    return "\n".join(
        [*lines, "", f"Encoder's digest `{result['encoder_digest'][:16]}`.", "", f"```\n{result['command']}\n```", ""]
    )


def _notes(result: dict[str, Any]) -> list[str]:
    return [f"{row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
