"""What a run consists of, opened and brought to its starting point: data, method, mesh, state, checkpoints."""

import dataclasses
import functools
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ijepa_jax import build, checkpoint, positions, processes, sharding
from ijepa_jax import config as config_lib
from ijepa_jax import metrics as metrics_lib
from ijepa_jax.console import Display
from ijepa_jax.data.bad import BadImages
from ijepa_jax.data.sources import DataError, Source
from ijepa_jax.encoder import Encoder
from ijepa_jax.evaluate import features, probe
from ijepa_jax.methods import Method, identity
from ijepa_jax.optim import Optimizer
from ijepa_jax.step import State, init
from ijepa_jax.vit import parameter_count


@dataclasses.dataclass
class Run:
    """What stays the same during a run, and its running counts."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    display: Display
    mesh: Mesh
    method: Method
    optimizer: Optimizer
    train: Source
    test: Source
    contents: dict[str, str]  # see `Source.contents`, of the training images
    code: dict[str, str]  # see `methods.identity`, of what this run does, whatever becomes of the file
    total_steps: int
    checkpoints: checkpoint.Checkpoints
    encoder: Encoder | None  # what is probed; None: the method has none
    bad: BadImages
    check_claim: Callable[[], None]  # see workdir.claim
    writer: metrics_lib.MetricsWriter | None = None
    seconds: float = 0.0  # spent in steps after the first
    steps_timed: int = 0
    waited: float = 0.0  # for input, of these
    probed: float = 0.0  # seconds spent in probes during training
    compilations: int = 0
    tracing: bool = False
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)  # kept with each checkpoint: where its weights came from

    def settings(self) -> dict[str, Any]:
        """What is kept with a checkpoint to check the next start against: the settings, and which images there were."""
        facts = {config_lib.EXAMPLES: len(self.train), config_lib.CONTENTS: self.contents}
        if self.code:
            facts[config_lib.CODE] = self.code
        return {**config_lib.to_plain(self.config), **facts}

    def trained(self, state: State) -> Any:
        """The parameters of the encoder as it is now, None where the method has none."""
        with jax.transfer_guard("allow"):  # where a method computes it
            return self.method.encoder(state.params, state.target) if self.encoder else None

    @functools.cached_property
    def pooled(self) -> Callable[[Any, np.ndarray], features.Features]:
        """(encoder parameters, this process's images) -> features."""
        return features.extractor(self.encoder, self.mesh)

    @functools.cached_property
    def patches(self) -> Callable[[Any, np.ndarray], features.Features]:
        """Likewise, of patches."""
        return features.extractor(self.encoder, self.mesh, ("patches",))

    @property
    def probes_every(self) -> int:
        """Steps between probes during training; 0: none."""
        return self.config.probe.every if self.encoder else 0


def open_run(config: ml_collections.ConfigDict, workdir: epath.Path, display: Display, check_claim: Callable[[], None]) -> Run:
    """Opens everything that a run needs; cheap checks come first."""
    config_lib.check_run(config)
    method = build.method(config)
    mesh = build.mesh(config)
    if config.log.wandb and not processes.all_succeeded(not processes.is_first() or metrics_lib.has_wandb()):
        raise ValueError("log.wandb is set, but its package is not installed: pip install wandb, or leave log.wandb empty")
    train, test = _open_data(config, display)
    if len(train) < config.optim.batch_size:
        raise DataError(
            f"{config.data.name} has {len(train)} training images, fewer than optim.batch_size {config.optim.batch_size}"
        )
    contents = train.contents()
    facts = {"training images": len(train), "contents": contents, "test images": len(test)}
    processes.check_agreement({**facts, "devices": jax.local_device_count()})
    encoder = method.backbone()
    if encoder is None:
        display.log(f"no probes: {method.title} trains no encoder")
    elif not probe.check_labels(train, test, config.probe.train_images, config.probe.test_images):  # now, not at the end
        display.log(f"no probes, as not both splits have labels of two classes: {', '.join(_classes(train, test))}")
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)
    share = (len(train) + len(test)) / jax.process_count()
    listing = f"bad_images_{jax.process_index()}.txt" if jax.process_count() > 1 else "bad_images.txt"
    bad = BadImages(workdir / listing, share, config.data.max_bad_fraction, display.log)
    return Run(
        config, workdir, display, mesh, method, build.optimizer(config, method, len(train)), train, test, contents,
        identity(config.method), build.total_steps(config, len(train)), checkpoints, encoder, bad, check_claim,
    )  # fmt: skip


def _classes(*splits: Source) -> list[str]:
    names = ("training", "test")
    return [f"{name} {dict(split.classes) or 'none'}" for name, split in zip(names, splits, strict=True)]


def _open_data(config: ml_collections.ConfigDict, display: Display) -> tuple[Source, Source]:
    opened = []
    for split in ("train", "test"):
        begun = time.monotonic()
        opened.append(build.source(config, split))
        display.log(f"{config.data.name} {split}: {len(opened[-1])} images ({time.monotonic() - begun:.1f} s)")
    return opened[0], opened[1]


def start(run: Run, batches: Callable[[Run], Any]) -> tuple[State, int]:
    """The state to go on from: the newest readable checkpoint's, else a fresh one, perhaps warm-started.

    `batches` streams a run's training batches from its first step on, placed on the devices.
    """
    fresh = jax.jit(partial(init, run.method, run.optimizer, run.config.seed))
    shapes = jax.eval_shape(fresh)
    shardings = sharding.state_shardings(shapes, run.mesh)
    settings = run.settings()
    _refuse_changes(run, settings)
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
        state = restored.state
        run.notes = {"origin": restored.notes["origin"]} if "origin" in restored.notes else {}
    else:
        run.display.log(f"starting from step 0 of {run.total_steps} in {run.workdir}")
        state = jax.jit(fresh, out_shardings=shardings)()
        if run.config.warm_start:
            state = _warm_start(run, state)
        state = run.method.begin(state, partial(batches, run))
    if processes.is_first():
        (run.workdir / "config.json").write_text(run.config.to_json_best_effort(indent=2) + "\n")
        project = run.config.log.wandb
        wandb = metrics_lib.WandbRun(project, run.workdir, config_lib.to_plain(run.config)) if project else None
        run.writer = metrics_lib.MetricsWriter(run.workdir, step, wandb)
    sizes = {name: parameter_count(tree) for name, tree in state.params.items()}
    run.display.log(
        f"parameters: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}; {run.mesh.size} "
        f"{jax.devices()[0].device_kind} device{'s' if run.mesh.size > 1 else ''}; batch {run.config.optim.batch_size}"
    )
    return state, step


def _refuse_changes(run: Run, settings: dict[str, Any]) -> None:
    """Compares the settings with those of the newest checkpoint whose settings can be read."""
    for step in reversed(run.checkpoints.steps()):
        try:
            notes = run.checkpoints.notes(step)
        except checkpoint.CheckpointError as error:
            if not error.damaged:
                raise
            continue  # `restore` reports it and takes the one before
        _refuse_encoder(run, notes)
        old = notes["settings"]
        _refuse_method(run, old, settings)
        images = {key: old.get(key, settings[key]) for key in (config_lib.EXAMPLES, config_lib.CONTENTS)}
        tells = config_lib.CONTENTS in old or config_lib.EXAMPLES not in old  # imported weights do not; older ones by name only
        code = {config_lib.CODE: old[config_lib.CODE]} if config_lib.CODE in old else {}
        here = {**old, "method": run.config.method, config_lib.CODE: {}}  # and not the file it was in, which may be another now
        known = {**config_lib.to_plain(config_lib.from_plain(here)), "method": old["method"]}
        changed = config_lib.differences({**images, **known, **code}, settings)
        if shared := [f"{config_lib.CONTENTS}.{what}" for what in images[config_lib.CONTENTS] if what in run.contents]:
            changed = {
                key: values for key, values in changed.items() if key in shared or not key.startswith(config_lib.CONTENTS)
            }
        method = run.config.method
        fixed = [key for key in changed if config_lib.fixed_on_resume(key, method) or (key == "data.name" and not tells)]
        show = "; ".join(_change(key, *changed[key]) for key in fixed or changed)
        if fixed:
            raise ValueError(f"{run.workdir} holds checkpoints of other settings: {show}. Use those, or another workdir")
        if changed:
            run.display.log(f"continuing with changed settings: {show}")
        return


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


def _warm_start(run: Run, state: State) -> State:
    """Puts given encoder weights into a fresh state, wherever the method has its encoder, or what its target follows."""
    path = run.config.warm_start
    if run.encoder is None:
        raise ValueError(f"warm_start {path}: {run.method.title} has no encoder to start from it")
    weights, saved = checkpoint.restore_encoder(path)
    _check_same_function(run, saved)
    origin = saved.notes.get("origin", {"format": "ijepa_jax", "file": path})
    run.notes = {"origin": {**origin, "warm_start": True}}
    if "positions" in weights and run.config.model.positions == "sincos":
        weights = _without_positions(run, weights)
    wanted, given = _shapes(run.method.encoder(state.params, state.target)), _shapes(weights)
    wrong = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
    if wrong:
        show = "; ".join(f"{name}: wanted {wanted.get(name)}, given {given.get(name)}" for name in wrong[:5])
        raise ValueError(f"warm_start {path} does not fit the model in {len(wrong)} tensors: {show}")
    run.display.log(f"warm start from {path}, checkpoint {saved.step}")
    return _with_encoder(run.method, state, weights)


def _with_encoder(method: Method, state: State, weights: Any) -> State:
    """A state that has these weights where the method picks its encoder, and where what its target follows has one."""
    kept, new = {"params": state.params, "target": state.target}, {}
    for choose in (method.encoder, lambda params, _: checkpoint.followed(method, params)):
        if (chosen := checkpoint.picked(kept, choose)) is None:
            raise ValueError(f"warm_start: the encoder of {method.title} is computed, so there is no place for weights")
        if jax.tree.structure(chosen) == jax.tree.structure(weights):
            new |= dict(zip((place.path for place in jax.tree.leaves(chosen)), jax.tree.leaves(weights), strict=True))

    def replaced(path, old):
        weight = new.get(checkpoint.Place(path).path)
        return old if weight is None else jax.device_put(weight.astype(old.dtype), old.sharding)

    return state.replace(**jax.tree_util.tree_map_with_path(replaced, kept))


def _check_same_function(run: Run, saved: checkpoint.Saved) -> None:
    """Raises ValueError where the same weights would make another encoder here, which their shapes do not show."""
    given, wanted = saved.method().backbone(), run.encoder
    of = [(name, getattr(given.network, name, None), getattr(wanted.network, name, None)) for name in ("heads", "epsilon")]
    if differs := [f"model.{name}={there:g}" for name, there, here in of if there != here and there is not None]:
        raise ValueError(
            f"warm_start {run.config.warm_start} has another encoder than these settings: set {', '.join(differs)}"
        )
    if (given.mean, given.std) != (wanted.mean, wanted.std):
        run.display.log(f"the weights to start from were made with data.mean={given.mean}, data.std={given.std}")


def _without_positions(run: Run, weights: dict) -> dict:
    """Imported weights for a model that computes its positions, which must be the same."""
    computed = positions.sincos(run.encoder.network.width, run.encoder.grid)
    if computed.shape != weights["positions"].shape or np.abs(computed - weights["positions"]).max() > 1e-5:
        raise ValueError(
            f"warm_start {run.config.warm_start} brings positions that are not the sine-cosine ones of a grid of "
            f"{run.encoder.grid}: set model.positions=table and the data.image_size that they are for"
        )
    return {name: leaf for name, leaf in weights.items() if name != "positions"}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path: {"blocks/0/fc1/bias": (128,), ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
