"""From settings to the parts of a run: method, optimiser, data."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ijepa_jax import config as config_lib
from ijepa_jax.data import images, pipeline, sources
from ijepa_jax.methods import TABLE, Method, broken, find
from ijepa_jax.optim import Optimizer
from ijepa_jax.sharding import make_mesh
from ijepa_jax.step import train_step


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A run's settings with the sections of its method, and with those of what they name (see `Method.completed`)."""
    return find(config.method).completed(config_lib.with_method(config, config.method))


def method(config: ml_collections.ConfigDict) -> Method:
    """The objective that is to be trained. Raises ValueError, naming the setting, where settings do not fit."""
    config_lib.check(config)
    return _made(config, find(config.method).from_settings)


def trained_method(config: ml_collections.ConfigDict) -> Method:
    """The objective of a checkpoint with these settings, to use what it trained; what only training needs need not fit."""
    return _made(config, find(config.method).from_checkpoint)


def _made(config: ml_collections.ConfigDict, make: Callable[[ml_collections.ConfigDict], Method]) -> Method:
    try:
        return make(config)
    except (TypeError, AttributeError, LookupError, NameError) as error:
        if config.method in TABLE:
            raise
        raise broken(config.method, error) from error


def total_steps(config: ml_collections.ConfigDict, examples: int) -> int:
    """Steps of the run on a data set of so many examples; an epoch is as many full batches as these make."""
    optim = config.optim
    if optim.steps:
        return optim.steps
    return int(optim.epochs * (examples // optim.batch_size))


def optimizer(config: ml_collections.ConfigDict, method: Method, examples: int) -> Optimizer:
    """The method's optimiser, its schedules stretched over the run on a data set of so many examples."""
    optim = config.optim
    unit = 1 if optim.steps else examples // optim.batch_size
    total, warmup = int(optim.schedule_scale * (optim.steps or optim.epochs) * unit), int(optim.warmup * unit)
    if not total_steps(config, examples) or warmup >= total:
        raise ValueError(
            f"optim.epochs {optim.epochs:g} of {examples} images are {total_steps(config, examples)} steps, and optim.warmup "
            f"{optim.warmup:g} of them {warmup}, which must be fewer than the schedule's {total}: more epochs, or less warm-up"
        )
    names = (
        "start_lr", "peak_lr", "final_lr", "weight_decay", "final_weight_decay", "momentum", "final_momentum", "b1", "b2",
        "eps", "clip", "moment_dtype",
    )  # fmt: skip
    return method.optimiser(
        total_steps=total,
        warmup_steps=warmup,
        **{name: optim[name] for name in names},
    )


def step(config: ml_collections.ConfigDict, method: Method, optimizer: Optimizer) -> Callable:
    """The training step of these settings: (state, batch) -> (state, metrics), to be jitted."""
    return partial(train_step, method=method, optimizer=optimizer, seed=config.seed, accumulation=config.optim.accumulation)


def mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of this program's devices, or others. Raises ValueError where the batch does not divide among them."""
    made = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    batch_size, parts = config.optim.batch_size, config.optim.accumulation
    if batch_size % (made.size * parts):
        raise ValueError(
            f"optim.batch_size {batch_size} does not divide among {made.size} devices times optim.accumulation {parts}"
        )
    return made


def source(config: ml_collections.ConfigDict, split: str, progress=None) -> sources.Source:
    """The images of a split ("train" or "test")."""
    data = config.data
    found = sources.open_source(
        data.name,
        split,
        size=data.size if split == "train" else data.test_size,
        seed=0,
        directory=data.directory or None,
        image_size=tuple(data.image_size),
        progress=progress,
    )
    if isinstance(found, sources.ArraySource):  # all of one shape: what the first cannot be, none can
        try:
            images.decode(found[0], data.channels)
        except images.BadImage as error:
            raise sources.DataError(f"{data.name}: {error} (data.channels)") from error
    return found


def train_batches(
    config: ml_collections.ConfigDict,
    data: sources.Source,
    sampler,
    start_step: int,
    process_index: int,
    process_count: int,
    augment: pipeline.Augment | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's stream of training batches from a step on."""
    settings = config.data
    return pipeline.train_batches(
        data,
        sampler,
        seed=config.seed,
        batch_size=config.optim.batch_size,
        image_size=tuple(settings.image_size),
        channels=settings.channels,
        crop_scale=tuple(settings.crop_scale),
        crop_aspect=tuple(settings.crop_aspect),
        flip=settings.flip,
        color_jitter=settings.color_jitter,
        augment=augment,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        exact=settings.exact,
        workers=settings.workers,
        threads=settings.threads,
        buffer=settings.buffer,
    )


def crops(
    config: ml_collections.ConfigDict,
    data: sources.Source,
    batch_size: int,
    steps: int,
    augment: pipeline.Augment | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of so many batches of random crops, without masks."""
    config = config.copy_and_resolve_references()
    config.optim.batch_size = batch_size
    stream = train_batches(config, data, None, 0, jax.process_index(), jax.process_count(), augment)
    with contextlib.closing(stream):
        yield from itertools.islice(stream, steps)


def eval_batches(
    config: ml_collections.ConfigDict, data: sources.Source, indices: np.ndarray, mesh: Mesh
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the images at `indices`, centre-cropped, in order, in batches that divide among the mesh."""
    settings = config.data
    return pipeline.eval_batches(
        data,
        indices=indices,
        batch_size=-(-config.probe.batch_size // mesh.size) * mesh.size,
        image_size=tuple(settings.image_size),
        channels=settings.channels,
        crop_fraction=settings.eval_crop,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=settings.workers,
        threads=settings.threads,
        buffer=settings.buffer,
    )
