"""What a run writes down: metrics.jsonl (one JSON object a line) and TensorBoard scalars."""

import json
import math
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends metric lines. Opened at a step, it drops the lines of later steps, which a resumed run will write again."""

    def __init__(self, workdir: str, start_step: int):
        workdir = epath.Path(workdir)
        path = workdir / FILE
        kept = [line for line in read(workdir) if line["step"] <= start_step]
        unfinished = workdir / f"{FILE}.tmp"
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.replace(path)
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=10)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of a step. What is not a number becomes null, so that every line is valid JSON."""
        values = {key: float(value) for key, value in values.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for key, value in values.items():
            self._tensorboard.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


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
