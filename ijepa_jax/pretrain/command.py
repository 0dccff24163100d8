"""The pretraining run as a whole: opened, brought to its start, trained, probed, drawn and reported."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from ijepa_jax import build
from ijepa_jax.data.open import check_name
from ijepa_jax.data.source import DataError
from ijepa_jax.devices import processes
from ijepa_jax.host.console import Display
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import absolute, full_disk_named
from ijepa_jax.host.signals import stop_requests
from ijepa_jax.methods import config as config_lib
from ijepa_jax.methods import identity
from ijepa_jax.model.vit import parameter_count
from ijepa_jax.pretrain.probes import Probes, check_labels
from ijepa_jax.pretrain.result import finish, show_table, versions
from ijepa_jax.settings import plain
from ijepa_jax.train.checkpoint import CheckpointError, locate
from ijepa_jax.train.loop import Trace, placed_batches, train
from ijepa_jax.train.recorder import Recorder
from ijepa_jax.train.resume import earlier_settings, start
from ijepa_jax.train.run import Run, open_data, open_run
from ijepa_jax.train.step import State
from ijepa_jax.train.workdir import claim
from ijepa_jax.visualize.report import read_report

_MEMORIES = 10  # so many times as long as its target's memory a run should be


class OutOfMemory(RuntimeError):
    """The devices' memory does not suffice."""


def pretrain(config: ml_collections.ConfigDict, workdir: epath.PathLike, command: str = "") -> dict[str, Any]:
    """Pretrains, or continues, the run of a workdir, and returns its report.

    Raises:
        ValueError: settings that do not fit each other, or a checkpoint's.
        DataError: data that are missing or bad.
        CheckpointError: checkpoints that cannot be read.
        Disagreement, ProcessLost: of several processes.
        OutOfMemory: of the devices.
        Diverged: a loss that is not finite; the last good checkpoint is untouched.
        Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    started = time.monotonic()
    workdir, place = os.fspath(workdir), absolute(workdir)
    earlier = earlier_settings(place)
    config = build.completed(config, earlier)
    display = Display(quiet=not processes.is_first(), line_seconds=config.log.line_seconds)
    facts = {**plain.flatten(config), "workdir": workdir, **versions(), "code": processes.code_digest()}
    code = {name: value for name, value in identity(config.method).items() if name != "file"}  # which may lie elsewhere
    processes.check_agreement({**facts, **code})
    config_lib.check(config)
    check_name(config.data.name, tuple(config.data.image_size))
    parts = build.parts(config)  # before anything is written
    if config.warm_start and earlier is None:
        locate(config.warm_start)  # before data are read
    with _lost_processes_named(), full_disk_named(place), claim(place, display.log) as check_claim, _all_ended() as ends:
        data = open_data(parts, display)
        check_labels(parts, data, display)  # now, not at the end
        run = open_run(parts, data, place, display, check_claim)
        ends.append(run.checkpoints.close)
        return _pretrain(run, command, started, ends)


def _pretrain(run: Run, command: str, started: float, ends: list[Callable[[], None]]) -> dict[str, Any]:
    display = run.display
    begin = start(run, lambda: placed_batches(run, 0))
    recorder, trace = Recorder(run, begin.step), Trace(run)
    ends += [recorder.close, trace.end, display.stop]
    _introduce(run, begin.state)
    if begin.step == run.total_steps and (finished := _finished(run)):
        display.log(f"this run is finished: {run.workdir} holds its report. For another, choose another workdir")
        show_table(display, finished)
        return finished
    probes = Probes(run, recorder)
    saving = lambda name: display.log(f"{name}: this run is saved after the step at hand, and ends")  # noqa: E731
    with stop_requests(saving, several_processes=jax.process_count() > 1) as requests:
        probes.begin(continued=begin.step > 0)
        state = train(run, begin, recorder, probes, trace, requests)
    return finish(run, begin.step, recorder, probes, state, command, started)  # all is saved: a signal may end this


def _introduce(run: Run, state: State) -> None:
    """Says what is trained, and on what."""
    sizes = {name: parameter_count(tree) for name, tree in state.params.items()}
    run.display.log(
        f"parameters: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}; {run.mesh.size} "
        f"{jax.devices()[0].device_kind} device{'s' if run.mesh.size > 1 else ''}; batch {run.loader.batch_size}"
    )
    memory = 1 / max(1 - run.config.optim.momentum, 1e-9)  # steps that the target is an average over
    if run.method.target(state.params) is not None and run.total_steps < _MEMORIES * memory:
        run.display.log(
            f"warning: {run.total_steps} steps are few for a target that averages over {memory:.0f}: give {_MEMORIES} times as "
            "many as that, or a smaller optim.momentum"
        )


@contextlib.contextmanager
def _all_ended() -> Iterator[list[Callable[[], None]]]:
    """Calls every function in the list, last first, even if one fails. Raises the first failure."""
    ends: list[Callable[[], None]] = []
    failures: list[BaseException] = []
    try:
        yield ends
    except BaseException as error:
        failures.append(error)
    for end in reversed(ends):
        try:
            end()
        except CheckpointError:  # raised before, by what failed first
            pass
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _finished(run: Run) -> dict[str, Any] | None:
    """The report of a finished run; None where it has to be written: there is none of all its steps, or a broken one."""
    report = read_report(run.workdir, lambda problem: run.display.log(f"{problem}, and is written anew"))
    return report if report and report["steps"] == run.total_steps else None


@contextlib.contextmanager
def _lost_processes_named() -> Iterator[None]:
    """Makes one line of what JAX raises when another process is gone, or when a device's memory does not suffice."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # gathering through gloo raises ValueError
        reason = one_line(error, 300)
        if "RESOURCE_EXHAUSTED" in str(error):
            advice = "try model.remat=full, a larger optim.accumulation or a larger mesh.fsdp; `launch.py plan` shows what fits"
            raise OutOfMemory(f"not enough device memory: {advice} ({reason})") from error
        if isinstance(error, DataError | processes.Disagreement) or not processes.lost(error):
            raise
        raise processes.ProcessLost(
            f"another process of the run is gone; start all of them again by the same command, which continues from the last "
            f"checkpoint ({reason[:200]})"
        ) from error
