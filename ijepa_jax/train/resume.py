"""Where a run goes on from: its newest checkpoint, if that is of these settings, else the start."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath

from ijepa_jax.devices import sharding
from ijepa_jax.methods import config as config_lib
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint
from ijepa_jax.train.run import Run
from ijepa_jax.train.step import State, init
from ijepa_jax.train.warm_start import warm_start


class Start(NamedTuple):
    """Where a run starts."""

    state: State
    step: int
    notes: dict[str, Any]  # kept with each checkpoint: where its weights came from


def start(run: Run, batches: Callable[[], Iterator[dict[str, jax.Array]]]) -> Start:
    """The state to go on from: the newest readable checkpoint's, else a fresh one, perhaps warm-started.

    `batches` streams a run's training batches from its first step on, placed on the devices.
    """
    fresh = jax.jit(partial(init, run.method, run.optimizer, run.config.seed))
    shapes = jax.eval_shape(fresh)
    shardings = sharding.state_shardings(shapes, run.mesh)
    _refuse_changes(run, run.settings())
    placed = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings)
    restored = run.checkpoints.restore(placed, run.display.log)
    step = restored.step if restored else 0
    run.checkpoints.set_aside(after=step)
    if step > run.total_steps:
        raise ValueError(
            f"{run.workdir} holds checkpoint {step}, past the {run.total_steps} steps of this run: raise optim.steps"
        )
    if restored:
        run.display.log(f"continuing from checkpoint {step} of {run.total_steps} steps in {run.workdir}")
        return Start(restored.state, step, {key: restored.notes[key] for key in ("origin",) if key in restored.notes})
    run.display.log(f"starting from step 0 of {run.total_steps} in {run.workdir}")
    state, notes = jax.jit(fresh, out_shardings=shardings)(), {}
    if run.config.warm_start:
        state, notes = warm_start(run, state)
    return Start(run.method.begin(state, batches), 0, notes)


@checkpoint.quiet
def earlier_settings(workdir: epath.Path) -> ml_collections.ConfigDict | None:
    """The settings of the run that a workdir has checkpoints of, before it is claimed; None where none can be read.

    `start` says why they cannot.
    """
    if not (workdir / "checkpoints").is_dir():
        return None
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        try:
            notes = _newest_notes(checkpoints)
        except checkpoint.CheckpointError:
            return None
    return notes and config_lib.from_plain(notes["settings"])


def _newest_notes(checkpoints: checkpoint.Checkpoints) -> dict[str, Any] | None:
    """The notes of the newest checkpoint whose notes can be read; `restore` reports those before it, and takes another."""
    for step in reversed(checkpoints.steps()):
        try:
            return checkpoints.notes(step)
        except checkpoint.CheckpointError as error:
            if not error.damaged:
                raise
    return None


def _refuse_changes(run: Run, settings: dict[str, Any]) -> None:
    """Compares the settings with those of the newest checkpoint whose settings can be read."""
    notes = _newest_notes(run.checkpoints)
    if notes is None:
        return
    _refuse_encoder(run, notes)
    old = notes["settings"]
    _refuse_method(run, old, settings)
    images = {key: old.get(key, settings[key]) for key in (config_lib.EXAMPLES, config_lib.CONTENTS)}
    tells = config_lib.CONTENTS in old or config_lib.EXAMPLES not in old  # imported weights do not; older ones by name only
    code = {config_lib.CODE: old[config_lib.CODE]} if config_lib.CODE in old else {}
    here = {**old, "method": run.config.method, config_lib.CODE: {}}  # and not the file it was in, which may be another now
    known = {**plain.to_plain(config_lib.from_plain(here)), "method": old["method"]}
    changed = plain.differences({**images, **known, **code}, settings)
    if shared := [f"{config_lib.CONTENTS}.{what}" for what in images[config_lib.CONTENTS] if what in run.contents]:
        changed = {key: values for key, values in changed.items() if key in shared or not key.startswith(config_lib.CONTENTS)}
    method = run.config.method
    fixed = [key for key in changed if config_lib.fixed_on_resume(key, method) or (key == "data.name" and not tells)]
    show = "; ".join(_change(key, *changed[key]) for key in fixed or changed)
    if fixed:
        raise ValueError(f"{run.workdir} holds checkpoints of other settings: {show}. Use those, or another workdir")
    if changed:
        run.display.log(f"continuing with changed settings: {show}")


def _refuse_method(run: Run, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises ValueError for checkpoints of another method; one's own is known by its class and its file's name, or its code."""
    was, now = (settings.get(config_lib.CODE, {"class": settings["method"]}) for settings in (old, new))
    moved = Path(was.get("file", "")).name != Path(now.get("file", "")).name and was.get("source") != now.get("source")
    if was["class"] != now["class"] or moved:
        raise ValueError(
            f"{run.workdir} holds checkpoints of another method: method was {old['method']!r}, now {new['method']!r}. Use "
            "that, or another workdir"
        )


def _change(key: str, was: Any, now: Any) -> str:
    section, _, what = key.partition(".")
    if section == config_lib.CONTENTS and None not in (was, now) and what != "scenes":
        return f"the training images have other {what}"
    if key == f"{config_lib.CODE}.source":
        return "the method's code is not what it was"
    return f"{key} was {was!r}, now {now!r}"


def _refuse_encoder(run: Run, notes: dict[str, Any]) -> None:
    """Raises CheckpointError for weights that were imported without what training goes on from."""
    if notes.get("encoder_only"):
        option = shlex.quote(f"--config.warm_start={run.workdir}")
        raise checkpoint.CheckpointError(
            f"{run.workdir} holds an imported encoder, which no run can continue: start from it with {option} and another "
            "--workdir"
        )
