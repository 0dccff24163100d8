"""The result of an evaluation as a table: for the terminal, as Markdown and as JSON."""

import json
from typing import Any

from etils import epath
from rich.table import Table

from ijepa_jax.host.files import write_whole

_COLUMNS = {"random_init": "random init", "supervised": "from scratch", "pixels": "pixels"}


def write_tables(folder: epath.Path, name: str, result: dict[str, Any]) -> None:
    """Writes NAME.json, with all there is, and NAME.md, the table with where it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in (("json", json.dumps(result, indent=2) + "\n"), ("md", markdown(result))):
        write_whole(folder / f"{name}.{kind}", text.encode())


def rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of numbers for each task (and their mean), or for each measure."""
    names = [name for name in _COLUMNS if name in result["baselines"]]
    if "accuracy" not in result:
        measures, found = ("rankme", "lidar", "feature_std"), [result, *(result["baselines"][name] for name in names)]
        headings = ["", result["name"], *(_COLUMNS[name] for name in names)]
        return headings, [[measure, *(f"{of[measure]:.3g}" for of in found)] for measure in measures]
    entries = {**result.get("tasks", {}), result["task"] if "tasks" not in result else "mean": result}
    low_high = "95% interval"
    headings = ["task", result["name"], low_high, *(_COLUMNS[name] for name in names)]
    return headings, [
        [
            task,
            f"{entry['accuracy']:.1f}",
            "{:.1f} .. {:.1f}".format(*entry["interval"]),
            *(f"{entry['baselines'][name]:.1f}" for name in names),
        ]
        for task, entry in entries.items()
    ]


def terminal(result: dict[str, Any]) -> Table:
    """The table for a terminal."""
    images = f", {result['train_images']:,}{_of_all(result)} training images" if "train_images_in_all" in result else ""
    unit = ", accuracy in %" if "accuracy" in result else ""
    return drawn(f"{result['protocol']} on {result['data']}{unit}{images}", *rows(result))


def drawn(title: str, headings: list[str], lines: list[list[str]]) -> Table:
    """A table for a terminal, its first column to the left."""
    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for line in lines:
        table.add_row(*line)
    return table


def grid(headings: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown, its first column to the left."""
    table = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def _of_all(result: dict[str, Any]) -> str:
    return f", of {result['train_images_in_all']:,}" if "train_images_in_all" in result else ""


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown, with the command, the checkpoint and the data."""
    unit = "Accuracy on held-out images, per cent. " if "accuracy" in result else ""
    seeds = f" Mean of {len(result['seeds'])} seeds." if "seeds" in result else ""
    images = f"{result['test_images']:,} test and {result.get('train_images', 0):,} training images{_of_all(result)}"
    return "\n".join(
        [
            f"# {result['protocol']} on {result['data']}",
            "",
            f"{unit}{images}.{seeds}",
            "",
            *(f"> **Warning:** {warning}.\n" for warning in result.get("warnings", ())),
            grid(*rows(result)),
            "",
            f"Checkpoint `{result['checkpoint']}`, step {result['step']}, encoder's digest `{result['encoder_digest'][:16]}`; "
            f"{result['seconds']:.0f} s.",
            "",
            *([f"```\n{result['command']}\n```"] if result["command"] else []),
            "",
        ]
    )
