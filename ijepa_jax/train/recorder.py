"""What a run does, taken down: the metrics of its steps, how long they took, and how long they waited for their input."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ijepa_jax.devices import processes
from ijepa_jax.host.files import write_whole
from ijepa_jax.settings import plain
from ijepa_jax.train import metrics
from ijepa_jax.train.run import Run

_SLOW = 0.05  # share of its time that a process waits for its input, past which it is named


class Diverged(RuntimeError):
    """A metric is no longer a finite number."""


class Recorder:
    """Counts what a run does since this process started. Only the first process writes metrics."""

    def __init__(self, run: Run, start_step: int):
        self._run = run
        self._writer = _writer(run, start_step) if processes.is_first() else None
        self.seconds = 0.0  # spent in steps after the first
        self.steps_timed = 0
        self.waited = 0.0  # for input, of these
        self.probed = 0.0  # seconds spent in probes during training
        self.compilations = 0
        self._clock = 0.0

    def restart_clock(self) -> None:
        """What came since the last step was no training."""
        self._clock = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done here is waiting for input."""
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """What is done here is probing."""
        begun = time.monotonic()
        yield
        self.probed += time.monotonic() - begun

    def step(self, step: int, found: dict[str, jax.Array]) -> None:
        """Fetches a step's metrics, checks and writes them. Raises `Diverged`."""
        run, values = self._run, {name: float(value) for name, value in jax.device_get(found).items()}
        now = time.monotonic()
        if self.compilations == 0:  # the first step of this process compiles: it does not count
            self.compilations, self.waited = 1, 0.0
        else:
            self.seconds, self.steps_timed = self.seconds + now - self._clock, self.steps_timed + 1
        self._clock = now
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            saved = run.checkpoints.steps()
            good = f"Checkpoint {saved[-1]} is good" if saved else "There is no checkpoint yet"
            raise Diverged(f"{', '.join(broken)} not finite at step {step}: lower optim.peak_lr or set optim.clip. {good}")
        rate = self.images_per_s
        if step % run.config.log.every == 0 or step == run.total_steps:
            self.write(step, {**values, "images_per_s": rate or 0.0, "bad_images": len(run.bad.names)})
        run.display.update(step, f"loss {values['loss']:.4f}" + (f" {rate:.0f} {run.loader.view.modality}s/s" if rate else ""))

    @property
    def images_per_s(self) -> float | None:
        """The rate of training; None before it is known."""
        return self._run.loader.batch_size * self.steps_timed / self.seconds if self.seconds else None

    def waiting_shares(self) -> dict[str, float]:
        """The share of its time that each process has waited for its input, by the process and its host."""
        mine = processes.place(), round(self.waited / self.seconds, 4) if self.seconds else 0.0
        return dict(processes.gather_objects(mine))

    def report_waiting(self) -> None:
        """Names the process that keeps the others waiting, if one does."""
        shares = self.waiting_shares()
        slowest = max(shares, key=shares.get)
        if len(shares) > 1 and shares[slowest] > _SLOW:
            self._run.display.log(f"{slowest} waits {shares[slowest]:.0%} of the time for its input, and all others for it")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes scalars of a step."""
        if self._writer:
            self._writer.write(step, values)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, 3], of a step by their names."""
        if self._writer:
            self._writer.pictures(step, pictures)

    def flush(self) -> None:
        """Returns when what was written is there for others."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Ends the writing."""
        if self._writer:
            self._writer.close()


def _writer(run: Run, start_step: int) -> metrics.MetricsWriter:
    """The writer of the first process, with the settings beside what it writes."""
    write_whole(run.workdir / "config.json", run.config.to_json_best_effort(indent=2) + "\n")
    project = run.config.log.wandb
    wandb = metrics.WandbRun(project, run.workdir, plain.to_plain(run.config)) if project else None
    writer = metrics.MetricsWriter(run.workdir, start_step, wandb)
    for problem in writer.problems:
        run.display.log(problem)
    return writer
