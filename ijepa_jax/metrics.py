"""What a run writes down: metrics.jsonl (one JSON object a line), TensorBoard's files and, if asked to, Weights & Biases."""

import importlib.util
import json
import math
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from ijepa_jax.workdir import owner

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes metric lines. Opened at a step, it drops the lines of later steps, which a resumed run will write again.

    Object stores cannot append to a file: there, files are written anew as a whole by every `flush`, until another run takes
    the workdir over (see workdir.py) and the lines are that run's. All but metrics.jsonl is for looking at.
    """

    def __init__(self, workdir: str, start_step: int, wandb: "WandbRun | None" = None):
        self._wandb = wandb
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
            self._tensorboard.add_scalar(_grouped(key), value, step)
        if self._wandb:
            self._wandb.write(step, {_grouped(key): value for key, value in values.items()})

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, 3], of a step by their names."""
        for name, picture in pictures.items():
            self._tensorboard.add_image(name, picture, step, dataformats="HWC")
        if self._wandb:
            self._wandb.pictures(step, pictures)

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
        if self._wandb:
            self._wandb.close()  # last: it may fail by what others have failed by


class WandbRun:
    """The same scalars and pictures in a run of Weights & Biases, which goes on when the run of the workdir does.

    Its id is kept in the workdir. It refuses steps that go backwards, as they do where a run goes on from a checkpoint: so
    `step` is a value like others, by which its charts are drawn, and steps that were made again appear twice. Where to send
    things, and whether at all, is left to the package's own environment variables (WANDB_MODE, WANDB_ENTITY, ...).
    """

    def __init__(self, project: str, workdir: epath.Path, settings: dict[str, Any]):
        """Raises ValueError where Weights & Biases does not start: without a login, for example."""
        import wandb

        self._images, local = wandb.Image, "://" not in str(workdir)
        options = {"dir": str(workdir)} if local else {}
        try:
            self._run = wandb.init(project=project, id=_wandb_id(workdir), name=workdir.name, resume="allow", **options)
            self._run.config.update(settings, allow_val_change=True)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of kinds of its own
            reason = " ".join(str(error).split())
            raise ValueError(f"log.wandb {project!r}: Weights & Biases did not start ({reason})") from error

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        self._run.log({"step": step, **{name: self._images(picture) for name, picture in pictures.items()}})

    def close(self) -> None:
        self._run.finish()


def has_wandb() -> bool:
    """Whether the package is installed; a folder of that name, which it leaves behind where it ran, is not."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def _wandb_id(workdir: epath.Path) -> str:
    path = workdir / "wandb_id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def _grouped(key: str) -> str:
    return key if "/" in key else f"train/{key}"


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
