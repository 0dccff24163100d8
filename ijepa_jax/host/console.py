"""What people watch: a live display on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ijepa_jax.host.files import full_disk_named

_REFRESHES = 2  # a second: drawing takes time from training
_MOST_ROWS = 16  # of the table of probes, which must leave room on the screen


class Display:
    """Messages and progress of long work. Quiet on all processes but the first."""

    def __init__(self, quiet: bool = False, line_seconds: float = 10.0, console: Console | None = None):
        self._console = console or Console(quiet=quiet, soft_wrap=True, highlight=False, markup=False)
        self._line_seconds = line_seconds
        self._board: _Board | None = None
        self._probes: dict[str, dict[str, float]] = {}
        self._started = self._last_line = 0.0

    def log(self, message) -> None:
        """A line of text, or anything that rich prints, above the live display if there is one."""
        with full_disk_named("the standard output"):
            self._console.print(message)
            sys.stdout.flush()

    def start(self, title: str, total: int, done: int = 0, note: str = "compiling") -> None:
        """Begins to show progress towards `total`, of which `done` was done before; `note`: what the first of it waits for."""
        self._total, self._title, self._first = total, title, done
        self._started = self._last_line = time.monotonic()
        self._begun = False
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._board = _Board(self._probes, *columns, console=self._console, refresh_per_second=_REFRESHES)
            self._task = self._board.add_task(title, total=total, completed=done, note=note)
            self._board.start()
        elif note and done < total:
            self.log(f"{title} {done}/{total} {note}")

    def update(self, done: int, note: str = "") -> None:
        """Shows how much is done and how long the rest takes, with a note such as the rate and the loss.

        The first of it, which has waited for the compiler, says nothing of how long the rest takes.
        """
        now = time.monotonic()
        if not self._begun:
            self._begun, self._first, self._started = True, done, now
        if self._board is None and now - self._last_line < self._line_seconds:
            return
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = f" {(self._total - done) / rate:.0f} s left" if rate else ""
        if self._board is not None:
            self._board.update(self._task, completed=done, note=f"{note}{left}")
        else:
            self._last_line = now
            self.log(f"{self._title} {done}/{self._total} {note}{left}".rstrip())

    def probes(self, name: str, results: dict[str, float], line: str) -> None:
        """Shows the latest probes of something, by name beside those of others; without a live display, a line of text."""
        self._probes[name] = results
        if self._board is None:
            self.log(line)

    def recall_probes(self, name: str, results: dict[str, float]) -> None:
        """Sets probes of an earlier part of the run beside those to come; prints nothing."""
        if results:
            self._probes[name] = results

    def stop(self) -> None:
        """Ends the progress shown."""
        if self._board is not None:
            self._board.stop()
            self._board = None


class _Board(Progress):
    """A progress bar above a table of probes."""

    def __init__(self, probes: dict[str, dict[str, float]], *columns, **options):
        self._probes = probes
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self._probes:
            yield _probe_table(self._probes)


def _probe_table(probes: dict[str, dict[str, float]]) -> Table:
    """A row for each result of probes, a column for each thing probed; linear probes first, kNN last."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("probe")
    for name in probes:
        table.add_column(name, justify="right")
    rows = dict.fromkeys(key for results in probes.values() for key in results)
    order = {"linear": 0, "knn": 2}
    for row in sorted(rows, key=lambda row: order.get(row.split("/")[0], 1))[:_MOST_ROWS]:
        cells = (results.get(row) for results in probes.values())
        table.add_row(row, *("" if value is None else f"{value:.3g}" for value in cells))
    return table
