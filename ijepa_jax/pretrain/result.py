"""What a run came to: final probes, pictures, the report."""

import contextlib
import math
import platform
import time
from functools import partial
from importlib import metadata
from typing import Any

import jax
from etils import epath

from ijepa_jax.devices import processes
from ijepa_jax.host.console import Display
from ijepa_jax.pretrain.probes import Probes
from ijepa_jax.settings import plain
from ijepa_jax.train import metrics
from ijepa_jax.train.digests import digest_of, encoder_digest
from ijepa_jax.train.recorder import Recorder
from ijepa_jax.train.run import Run
from ijepa_jax.train.step import State
from ijepa_jax.visualize.live import read_picture
from ijepa_jax.visualize.report import probe_table, write_report
from ijepa_jax.visualize.run import draw_pictures


def finish(
    run: Run, start_step: int, recorder: Recorder, probes: Probes, state: State, command: str, started: float
) -> dict[str, Any]:
    """Probes, draws and reports a run that is trained; returns the report. `started`: when it was, by `time.monotonic`."""
    waiting, encoder = recorder.waiting_shares(), run.trained(state)
    found = {"encoder_digest": encoder_digest(encoder, run.encoder), **probes.final(encoder)} if run.encoder else {}
    run.display.log("drawing pictures")
    found |= draw_pictures(run, state, encoder, partial(probes.pooled, encoder) if run.encoder else None)
    rate = recorder.images_per_s
    report = {
        **found,
        "method": run.config.method,
        "name": run.method.title,
        "seconds": round(time.monotonic() - started, 1),
        "images_per_s": round(rate, 1) if rate else None,
        "input_wait_share": max(waiting.values()),
        "input_wait_by_process": waiting,
        "probe_share": round(recorder.probed / (recorder.probed + recorder.seconds), 4) if recorder.seconds else None,
        "steps": run.total_steps,
        "resumed_from": start_step,
        "compilations": recorder.compilations,
        "params_digest": params_digest(state),
        "best_step": run.checkpoints.best_step(),
        "bad_images": sum(processes.gather_objects(len(run.bad.names))),
        "data": run.loader.name,
        "command": command,
        "environment": environment(),
        "config": plain.to_plain(run.config),
    }
    if processes.is_first():
        report["last_metrics"] = _last_metrics(run)
        write_report(run.workdir / "report", report)
        named = {f"report/{epath.Path(name).stem}": read_picture(run.workdir / "report" / name) for name in report["pictures"]}
        recorder.pictures(run.total_steps, named)
    show_table(run.display, report)
    speed = f"{recorder.steps_timed} steps at {rate:.1f} {run.loader.view.modality}s/s" if rate else ""
    steps = f", {recorder.seconds:.1f} s of them in {speed}" if rate else ""
    run.display.log(f"{report['seconds']} s in all{steps}; report in {run.workdir / 'report'}")
    return report


def show_table(display: Display, report: dict[str, Any]) -> None:
    """Prints what a report says of probes, and its sections."""
    if report.get("probes"):
        display.log(probe_table(report))
    for section in report.get("sections") or ():
        for what, value in section["rows"].items():
            display.log(f"{section['title']}: {what} {math.nan if value is None else value:.1f}")


def _last_metrics(run: Run) -> dict[str, float]:
    """Loss and signs of collapse of the last step that was written down."""
    last = [line for line in metrics.read(run.workdir) if "loss" in line][-1:]
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
    found = {"python": platform.python_version()}
    for name in libraries:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Versions and devices, for the report."""
    device = jax.devices()[0]
    return {
        **versions(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
    }
