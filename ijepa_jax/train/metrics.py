"""What a run writes down: metrics.jsonl (one JSON object a line), TensorBoard's files and, if asked to, Weights & Biases."""

import importlib.util
import json
import math
import re
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import remove_unfinished, set_aside, unfinished, write_whole
from ijepa_jax.train.workdir import owner

# tensorboardX would load these where they are installed, which takes seconds, for tensors and places that it is never given
_hidden = {"torch", "google.cloud.storage", "boto3"} - sys.modules.keys()
sys.modules |= dict.fromkeys(_hidden)
from tensorboardX import summary  # noqa: E402
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

FILE = "metrics.jsonl"
_FLUSH_SECONDS = 10  # of TensorBoard's file, for whoever watches
_MOST_STEPS = 2**53  # what floats, and so charts, count to


class MetricsWriter:
    """Writes metric lines. Opened at a step, it drops the lines of later steps, which a resumed run will write again.

    Object stores cannot append to a file: there, files are written anew as a whole by every `flush`, until another run takes
    the workdir over (see workdir.py) and the lines are that run's. All but metrics.jsonl is for looking at.

    `problems` says what was wrong with the files that it found, a line each; of a damaged metrics.jsonl the good lines are
    kept, and the file is set aside. Raises OSError where something cannot be written, as on a full disk.
    """

    def __init__(self, workdir: str, start_step: int, wandb: "WandbRun | None" = None):
        self._wandb = wandb
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / FILE
        found, problem = _read(self._path)
        self._lines = [json.dumps(line) + "\n" for line in found if line["step"] <= start_step]
        self.problems = list(wandb.problems) if wandb else []
        self._remote = "://" in str(workdir)
        if self._remote and problem:
            self.problems.append(f"{problem}; the file as it was is {set_aside(self._path)}")
            self._path.write_text("".join(self._lines))
        elif not self._remote:
            remove_unfinished(self._path)
            with unfinished(self._path) as place:
                place.write_text("".join(self._lines))  # before anything is moved: the disk may be full
                if problem:
                    self.problems.append(f"{problem}; the file as it was is {set_aside(self._path)}")
        if self._remote:
            self._owner = owner(self._workdir)
            self._events = tempfile.TemporaryDirectory()
        else:
            self._file = self._path.open("a")
        self._tensorboard = _Events(Path(self._events.name if self._remote else self._workdir / "tensorboard"), start_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of a step. What is not a number becomes null, so that every line is valid JSON."""
        values = {key: float(value) for key, value in values.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        self._lines.append(line) if self._remote else self._file.write(line)
        self._tensorboard.write(step, [summary.scalar(_grouped(key), value) for key, value in values.items()])
        if self._wandb:
            self._wandb.write(step, {_grouped(key): value for key, value in values.items()})

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, 3], of a step by their names."""
        named = [summary.image(name, picture, dataformats="HWC") for name, picture in pictures.items()]
        self._tensorboard.write(step, named)
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
        self.flush()
        self._tensorboard.close()
        self._events.cleanup() if self._remote else self._file.close()
        if self._wandb:
            self._wandb.close()  # last: it may fail by what others have failed by


class _Events:
    """A file of TensorBoard's, written by the run itself: of a thread of its own, failures would reach nobody."""

    def __init__(self, folder: Path, start_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # Without the suffix, the host's name and the second would be all that tells two files apart.
        self._writer = EventsWriter(str(folder / "events"), f".{start_step}.{uuid.uuid4().hex[:8]}")
        # hides what an earlier start has written of these steps
        self._write(start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def write(self, step: int, summaries: list[Summary]) -> None:
        self._write(step, summary=Summary(value=[value for one in summaries for value in one.value]))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class WandbRun:
    """The same scalars and pictures in a run of Weights & Biases, which goes on when the run of the workdir does.

    Its id is kept in the workdir; `problems` says if that was damaged. It refuses steps that go backwards, as they do where a
    run goes on from a checkpoint: so `step` is a value like others, by which its charts are drawn, and steps that were made
    again appear twice. Where to send things, and whether at all, is left to the package's own environment variables
    (WANDB_MODE, WANDB_ENTITY, ...).
    """

    def __init__(self, project: str, workdir: epath.Path, settings: dict[str, Any]):
        """Raises ValueError where Weights & Biases does not start: without a login, for example."""
        import wandb

        self._images, local = wandb.Image, "://" not in str(workdir)
        options = {"dir": str(workdir)} if local else {}
        kept, self.problems = _wandb_id(workdir)
        try:
            self._run = wandb.init(project=project, id=kept, name=workdir.name, resume="allow", **options)
            self._run.config.update(settings, allow_val_change=True)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of kinds of its own
            reason = one_line(error)
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


def _wandb_id(workdir: epath.Path) -> tuple[str, list[str]]:
    """The id kept in a workdir, else a new one; what was wrong with the one kept."""
    path, problems = workdir / "wandb_id", []
    if path.exists():
        kept = path.read_bytes().decode(errors="replace").strip()
        if re.fullmatch(r"[\w-]{1,128}", kept, re.ASCII):
            return kept, problems
        problems.append(f"{path} holds no id of Weights & Biases: a new run begins there")
    new = uuid.uuid4().hex[:16]
    write_whole(path, new)
    return new, problems


def _grouped(key: str) -> str:
    return key if "/" in key else f"train/{key}"


def read(workdir: str | epath.Path) -> list[dict[str, Any]]:
    """The metric lines of a workdir, [] where there are none: each has its `step`, and finite numbers or None by name.

    Lines that are none (binary, foreign, cut short by a kill) are left out; the run that opens the workdir says so.
    """
    return _read(epath.Path(workdir) / FILE)[0]


def _read(path: epath.Path) -> tuple[list[dict[str, Any]], str]:
    """The good lines of a file, and what is wrong with it: nothing where a kill has cut short the last line."""
    if not path.exists():
        return [], ""
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        return [], f"{path} cannot be read ({error.strerror or error}): its lines are left out"
    parsed = {number: _parsed(line) for number, line in enumerate(lines, 1) if line.strip()}
    wrong = [number for number, line in parsed.items() if line is None]
    found = [line for line in (*parsed.values(), _parsed(last)) if line is not None]
    if not wrong:
        return found, ""
    return found, f"{path}: {len(wrong)} of {len(parsed)} lines are no metrics and left out, the first is line {wrong[0]}"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of metrics; None if it is none."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):  # of bytes that are no text, and of brackets without end
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not 0 <= found["step"] <= _MOST_STEPS:
        return None
    return {name: value if name == "step" else _number(value) for name, value in found.items()}


def _number(value: Any) -> float | None:
    """A finite number; anything else as None, as it is written."""
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # of integers that no float holds
        return None
