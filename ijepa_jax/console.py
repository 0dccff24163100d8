"""What people watch: a progress bar on a terminal, plain lines in a log."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Messages and progress of long work. Quiet on all processes but the first."""

    def __init__(self, quiet: bool = False, line_seconds: float = 10.0):
        self._console = Console(quiet=quiet, soft_wrap=True, highlight=False, markup=False)
        self._line_seconds = line_seconds
        self._bar = self._task = None
        self._started = self._last_line = 0.0

    def log(self, message) -> None:
        """A line of text, or anything that rich prints, above the progress bar if there is one."""
        self._console.print(message)
        sys.stdout.flush()

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begins to show progress towards `total`, of which `done` was done before."""
        self._total, self._title, self._first = total, title, done
        self._started = self._last_line = time.monotonic()
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Shows how much is done, with a note such as the rate and the loss."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last_line >= self._line_seconds:
            self._last_line = time.monotonic()
            rate = (done - self._first) / (self._last_line - self._started)
            left = (self._total - done) / rate if rate else 0.0
            self.log(f"{self._title} {done}/{self._total} {note} {left:.0f} s left")

    def stop(self) -> None:
        """Ends the progress shown."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
