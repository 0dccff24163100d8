"""What a run writes down: metrics.jsonl (one JSON object a line) and TensorBoard scalars."""

import json
import math
import tempfile
import uuid
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from ijepa_jax.workdir import owner

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes metric lines. Opened at a step, it drops the lines of later steps, which a resumed run will write again.

    Object stores cannot append to a file: there, files are written anew as a whole by every `flush`, until another run takes
    the workdir over (see workdir.py) and the lines are that run's.
    """

    def __init__(self, workdir: str, start_step: int):
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / FILE
        self._lines = [json.dumps(line) + "\n" for line in read(self._workdir) if line["step"] <= start_step]
        self._remote = "://" in str(workdir)
        if self._remote:
            self._owner = owner(self._workdir)
            self._events = tempfile.TemporaryDirectory()
        else:
            unfinished = self._workdir / f"{FILE}.tmp"
            unfinished.write_text("".join(self._lines))
            unfinished.replace(self._path)
            self._file = self._path.open("a")
        events = self._events.name if self._remote else str(self._workdir / "tensorboard")
        # Without the suffix, the host's name and the second would be all that tells two files apart.
        suffix = f".{start_step}.{uuid.uuid4().hex[:8]}"
        self._tensorboard = SummaryWriter(events, purge_step=start_step + 1, flush_secs=10, filename_suffix=suffix)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of a step. What is not a number becomes null, so that every line is valid JSON."""
        values = {key: float(value) for key, value in values.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        self._lines.append(line) if self._remote else self._file.write(line)
        for key, value in values.items():
            self._tensorboard.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def flush(self) -> None:
        """Makes what was written so far safe."""
        if not self._remote:
            self._file.flush()
            return
        if owner(self._workdir) == self._owner:
            self._path.write_text("".join(self._lines))
        self._tensorboard.flush()
        for events in Path(self._events.name).iterdir():
            (self._workdir / "tensorboard" / events.name).write_bytes(events.read_bytes())

    def close(self) -> None:
        self._tensorboard.close()
        if self._remote:
            self.flush()
            self._events.cleanup()
        else:
            self._file.close()


def read(workdir: str | epath.Path) -> list[dict[str, Any]]:
    """The metric lines of a workdir, [] where there are none. A line that a kill cut short ends the list."""
    path = epath.Path(workdir) / FILE
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
