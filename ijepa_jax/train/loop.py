"""The loop: data in; metrics, probes and checkpoints out. The step itself is pure, see step.py."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import jax

from ijepa_jax.devices import processes, sharding
from ijepa_jax.train.recorder import Recorder
from ijepa_jax.train.resume import Start
from ijepa_jax.train.run import Run
from ijepa_jax.train.step import State, train_step


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class Watch(Protocol):
    """What looks at a run's encoder while it trains."""

    every: int  # steps between looks; 0: none

    def during(self, step: int, state: State) -> float:
        """Looks at the state after a step; returns the score by which the best checkpoint is kept."""


class Trace:
    """The profile of the steps that settings ask for."""

    def __init__(self, run: Run):
        self._run = run
        self._on = False

    def before(self, step: int) -> None:
        """Starts or ends it, before a step is dispatched."""
        first, count = self._run.config.profile.start, self._run.config.profile.steps
        due = first <= step < first + count
        if due and not self._on:
            jax.profiler.start_trace(str(self._run.workdir / "profile"))
        elif self._on and not due:
            self.end()
        self._on = due

    def end(self) -> None:
        """Ends it if it is on."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            self._run.display.log(f"profile in {self._run.workdir / 'profile'}")


def train(run: Run, start: Start, recorder: Recorder, watch: Watch, trace: Trace, requests: list) -> State:
    """Trains to the end; dispatches a step, then reads the metrics of the one before, so that the device never waits.

    Raises `Diverged`, and `Stopped` where `requests` (see `signals.stop_requests`) has one.
    """
    state = start.state
    options = {"seed": run.config.seed, "accumulation": run.config.optim.accumulation}
    step_fn = sharding.jit_step(partial(train_step, method=run.method, optimizer=run.optimizer, **options), state, run.mesh)
    run.display.start("step", run.total_steps, start.step)
    with contextlib.closing(placed_batches(run, start.step)) as stream:
        late = None
        recorder.restart_clock()
        for step in range(start.step + 1, run.total_steps + 1):
            with recorder.waiting():
                batch = next(stream)
            trace.before(step)
            with jax.transfer_guard("disallow"):  # all that a step reads is on the devices
                state, metrics = step_fn(state, batch)
            if late is not None:
                recorder.step(*late)
            late = step, metrics
            stopping = _asked_to_stop(requests, step)
            if not stopping and not _due(run, watch, step):
                continue
            recorder.step(*late)
            late = None
            recorder.flush()  # no checkpoint without the lines of the steps before it
            score = watch.during(step, state) if _due_look(run, watch, step) else None
            recorder.report_waiting()
            run.check_claim()
            run.checkpoints.save(state, step, run.settings(), score, **start.notes)
            recorder.restart_clock()
            if stopping:
                run.checkpoints.wait()
                raise Stopped(f"stopped by {stopping} at step {step}, saved; the same command continues")
    recorder.compilations = step_fn._cache_size()
    run.display.stop()
    run.checkpoints.wait()
    return state


def placed_batches(run: Run, start_step: int) -> Iterator[dict[str, jax.Array]]:
    """Training batches on the devices from a step on; keeps account of bad images."""
    if start_step >= run.total_steps:
        return
    batches = run.loader.train_batches(run.train, run.method.prepare(), start_step, run.method.views())
    with contextlib.closing(batches):
        for batch in batches:
            run.bad.account(run.train, batch.pop("bad"))
            for name in ("index", "source"):
                del batch[name]
            yield sharding.place_batch(batch, run.mesh)


def _asked_to_stop(requests: list, step: int) -> str:
    """What asked the run to save and leave after this step; empty if nothing did."""
    if jax.process_count() > 1:
        return "SIGTERM to one of its processes" if processes.asked_to_stop(step) else ""
    return requests[0].name if requests else ""


def _due_look(run: Run, watch: Watch, step: int) -> bool:
    return bool(watch.every) and (step % watch.every == 0 or step == run.total_steps)


def _due(run: Run, watch: Watch, step: int) -> bool:
    """Whether a checkpoint is due: at its own interval, with each look, so that the best can be kept, and at the end."""
    return step % run.config.checkpoint.every == 0 or step == run.total_steps or _due_look(run, watch, step)
