"""The pretraining run: data in; metrics, probes and checkpoints out. The step itself is pure and lives in step.py."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import jax
import ml_collections
from etils import epath

from ijepa_jax import build, probes, processes, sharding
from ijepa_jax import config as config_lib
from ijepa_jax import metrics as metrics_lib
from ijepa_jax.checkpoint import CheckpointError, digest_of, encoder_digest
from ijepa_jax.console import Display
from ijepa_jax.data.sources import DataError
from ijepa_jax.methods import identity
from ijepa_jax.run import Run, open_run, start
from ijepa_jax.signals import stop_requests
from ijepa_jax.step import State
from ijepa_jax.visualize.live import read_picture
from ijepa_jax.visualize.report import probe_table, read_report, write_report
from ijepa_jax.visualize.run import draw_pictures
from ijepa_jax.workdir import absolute, claim, full_disk_named

_SLOW = 0.05  # share of its time that a process waits for its input, past which it is named


class Diverged(RuntimeError):
    """A metric is no longer a finite number."""


class OutOfMemory(RuntimeError):
    """The devices' memory does not suffice."""


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


def pretrain(config: ml_collections.ConfigDict, workdir: epath.PathLike, command: str = "") -> dict[str, Any]:
    """Pretrains, or continues, the run of a workdir, and returns its report (see DESIGN's workdir contract).

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
    config = build.completed(config)
    display = Display(quiet=not processes.is_first(), line_seconds=config.log.line_seconds)
    facts = {**config_lib.flatten(config), "workdir": workdir, **versions(), "code": processes.code_digest()}
    code = {name: value for name, value in identity(config.method).items() if name != "file"}  # which may lie elsewhere
    processes.check_agreement({**facts, **code})
    with _lost_processes_named(), full_disk_named(place), claim(place, display.log) as check_claim:
        return _pretrain(config, place, command, display, started, check_claim)


def _pretrain(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    command: str,
    display: Display,
    started: float,
    check_claim: Callable[[], None],
) -> dict[str, Any]:
    run = open_run(config, workdir, display, check_claim)
    with _all_ended(run):
        state, start_step = start(run, partial(_placed_batches, start_step=0))
        for problem in run.writer.problems if run.writer else ():
            display.log(problem)
        if start_step == run.total_steps and (finished := _finished(run)):
            display.log(f"this run is finished: {run.workdir} holds its report. For another, choose another workdir")
            _show_table(display, finished)
            return finished
        saving = lambda name: display.log(f"{name}: this run is saved after the step at hand, and ends")  # noqa: E731
        with stop_requests(saving, several_processes=jax.process_count() > 1) as requests:
            state = _train(run, state, start_step, requests)
            run.checkpoints.wait()
        return _finish(run, state, start_step, command, started)  # all is saved: a signal may end this


@contextlib.contextmanager
def _all_ended(run: Run) -> Iterator[None]:
    """Ends everything that a run has opened, also where some of it fails to; of several failures the first is raised."""
    failures: list[BaseException] = []
    try:
        yield
    except BaseException as error:
        failures.append(error)
    ends = [run.display.stop, partial(_end_trace, run), *([run.writer.close] if run.writer else []), run.checkpoints.close]
    for end in ends:
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in reason:
            advice = "try model.remat=full, a larger optim.accumulation or a larger mesh.fsdp; `launch.py plan` shows what fits"
            raise OutOfMemory(f"not enough device memory: {advice} ({reason})") from error
        if isinstance(error, DataError | processes.Disagreement) or not processes.lost(error):
            raise
        raise processes.ProcessLost(
            f"another process of the run is gone; start all of them again by the same command, which continues from the last "
            f"checkpoint ({reason[:200]})"
        ) from error


def _train(run: Run, state: State, start_step: int, requests: list) -> State:
    """The loop: dispatches a step, then reads the metrics of the one before, so that the device never waits."""
    step_fn = sharding.jit_step(build.step(run.config, run.method, run.optimizer), state, run.mesh)
    if run.probes_every:
        probes.recall(run) if start_step else probes.baselines(run)
    run.display.start("step", run.total_steps, start_step)
    with contextlib.closing(_placed_batches(run, start_step)) as stream, jax.transfer_guard("disallow"):
        late = None
        clock = time.monotonic()
        for step in range(start_step + 1, run.total_steps + 1):
            batch = next(stream)
            _trace(run, step)
            state, metrics = step_fn(state, batch)
            if late is not None:
                clock = _record(run, *late, clock)
            late = step, metrics
            stopping = _asked_to_stop(requests, step)
            if not stopping and not _due(run, step):
                continue
            clock = _record(run, *late, clock)
            late = None
            if run.writer:
                run.writer.flush()  # no checkpoint without the lines of the steps before it
            score = probes.during(run, step, run.trained(state)) if _due_probe(run, step) else None
            _report_waiting(run)
            run.check_claim()
            run.checkpoints.save(state, step, run.settings(), score, **run.notes)
            clock = time.monotonic()
            if stopping:
                run.checkpoints.wait()
                raise Stopped(f"stopped by {stopping} at step {step}, saved; the same command continues")
    run.compilations = step_fn._cache_size()
    run.display.stop()
    return state


def _waiting(run: Run) -> dict[str, float]:
    """The share of its time that each process has waited for its input, by the process and its host."""
    mine = processes.place(), round(run.waited / run.seconds, 4) if run.seconds else 0.0
    return dict(processes.gather_objects(mine))


def _report_waiting(run: Run) -> None:
    """Names the process that keeps the others waiting, if one does."""
    shares = _waiting(run)
    slowest = max(shares, key=shares.get)
    if len(shares) > 1 and shares[slowest] > _SLOW:
        run.display.log(f"{slowest} waits {shares[slowest]:.0%} of the time for its input, and all others for it")


def _asked_to_stop(requests: list, step: int) -> str:
    """What asked the run to save and leave after this step; empty if nothing did."""
    if jax.process_count() > 1:
        return "SIGTERM to one of its processes" if processes.asked_to_stop(step) else ""
    return requests[0].name if requests else ""


def _due_probe(run: Run, step: int) -> bool:
    every = run.probes_every
    return bool(every) and (step % every == 0 or step == run.total_steps)


def _due(run: Run, step: int) -> bool:
    """Whether a checkpoint is due: at its own interval, with each probe, so that the best can be kept, and at the end."""
    return step % run.config.checkpoint.every == 0 or step == run.total_steps or _due_probe(run, step)


def _placed_batches(run: Run, start_step: int) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices; keeps account of bad images and of the time waited."""
    if start_step >= run.total_steps:
        return
    batches = build.train_batches(
        run.config, run.train, run.method.prepare(), start_step, jax.process_index(), jax.process_count()
    )
    try:
        while True:
            begun = time.monotonic()
            batch = next(batches)
            run.bad.account(run.train, batch.pop("bad"))
            for name in ("index", "source"):
                del batch[name]
            placed = sharding.place_batch(batch, run.mesh)
            run.waited += time.monotonic() - begun
            yield placed
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _record(run: Run, step: int, metrics: dict[str, jax.Array], clock: float) -> float:
    """Fetches a step's metrics, checks and writes them; returns the time now."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    now = time.monotonic()
    if run.compilations == 0:  # the first step of this process compiles: it does not count
        run.compilations, run.waited = 1, 0.0
    else:
        run.seconds, run.steps_timed = run.seconds + now - clock, run.steps_timed + 1
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        saved = run.checkpoints.steps()
        good = f"Checkpoint {saved[-1]} is good" if saved else "There is no checkpoint yet"
        raise Diverged(f"{', '.join(broken)} not finite at step {step}: lower optim.peak_lr or set optim.clip. {good}")
    rate = run.config.optim.batch_size * run.steps_timed / run.seconds if run.seconds else 0.0
    if run.writer and (step % run.config.log.every == 0 or step == run.total_steps):
        run.writer.write(step, {**values, "images_per_s": rate, "bad_images": len(run.bad.names)})
    run.display.update(step, f"loss {values['loss']:.4f}" + (f" {rate:.0f} images/s" if rate else ""))
    return now


def _trace(run: Run, step: int) -> None:
    """Starts or ends the profile of the steps that settings ask for, before a step is dispatched."""
    first, count = run.config.profile.start, run.config.profile.steps
    due = first <= step < first + count
    if due and not run.tracing:
        jax.profiler.start_trace(str(run.workdir / "profile"))
    elif run.tracing and not due:
        _end_trace(run)
    run.tracing = due


def _end_trace(run: Run) -> None:
    if run.tracing:
        jax.profiler.stop_trace()
        run.tracing = False
        run.display.log(f"profile in {run.workdir / 'profile'}")


def _finish(run: Run, state: State, start_step: int, command: str, started: float) -> dict[str, Any]:
    """What the run came to, pictures, the report."""
    waiting = _waiting(run)
    found = _evaluate(run, run.trained(state)) if run.encoder else {}
    run.display.log("drawing pictures")
    found |= draw_pictures(run.workdir, run.config, run.method, state, run.test, run.pooled if run.encoder else None, run.mesh)
    report = {
        **found,
        "method": run.config.method,
        "name": run.method.title,
        "seconds": round(time.monotonic() - started, 1),
        "images_per_s": round(run.config.optim.batch_size * run.steps_timed / run.seconds, 1) if run.seconds else None,
        "input_wait_share": max(waiting.values()),
        "input_wait_by_process": waiting,
        "probe_share": round(run.probed / (run.probed + run.seconds), 4) if run.seconds else None,
        "steps": run.total_steps,
        "resumed_from": start_step,
        "compilations": run.compilations,
        "params_digest": params_digest(state),
        "best_step": run.checkpoints.best_step(),
        "bad_images": sum(processes.gather_objects(len(run.bad.names))),
        "data": run.config.data.name,
        "command": command,
        "environment": environment(),
        "config": config_lib.to_plain(run.config),
    }
    if run.writer:
        report["last_metrics"] = _last_metrics(run)
        write_report(run.workdir / "report", report)
        named = {f"report/{epath.Path(name).stem}": read_picture(run.workdir / "report" / name) for name in report["pictures"]}
        run.writer.pictures(run.total_steps, named)
    _show_table(run.display, report)
    steps = (
        f", {run.seconds:.1f} s of them in {run.steps_timed} steps at {report['images_per_s']} images/s" if run.seconds else ""
    )
    run.display.log(f"{report['seconds']} s in all{steps}; report in {run.workdir / 'report'}")
    return report


def _show_table(display: Display, report: dict[str, Any]) -> None:
    if report.get("probes"):
        display.log(probe_table(report))
    for section in report.get("sections") or ():
        for what, value in section["rows"].items():
            display.log(f"{section['title']}: {what} {math.nan if value is None else value:.1f}")


def _evaluate(run: Run, encoder: Any) -> dict[str, Any]:
    """Final probes beside their baselines."""
    return {"encoder_digest": encoder_digest(encoder, run.encoder), **probes.final(run, encoder)}


def _last_metrics(run: Run) -> dict[str, float]:
    """Loss and signs of collapse of the last step that was written down."""
    last = [line for line in metrics_lib.read(run.workdir) if "loss" in line][-1:]
    return {key: value for line in last for key, value in line.items() if key == "loss" or key.endswith("_std")}


def params_digest(state: State) -> str:
    """sha256 over the final parameter leaves (trained parameters, then the target's), in the order of their paths."""
    return digest_of({"params": state.params, "target": state.target})


def versions() -> dict[str, str]:
    """Of Python and the libraries that results depend on."""
    libraries = (
        "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "numpy", "Pillow", "simplejpeg",
        "opencv-python-headless", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin",
    )  # fmt: skip
    installed = {distribution.name: distribution.version for distribution in metadata.distributions() if distribution.name}
    return {"python": platform.python_version(), **{name: installed[name] for name in libraries if name in installed}}


def environment() -> dict[str, Any]:
    """Versions and devices, for the report."""
    device = jax.devices()[0]
    return {
        **versions(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
    }
