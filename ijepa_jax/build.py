"""From settings to the parts of a run, once: method, mesh, loader, optimiser."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ijepa_jax.data.loader import Loader
from ijepa_jax.data.pipeline import Loading, Share
from ijepa_jax.data.views import View
from ijepa_jax.devices.sharding import make_mesh
from ijepa_jax.methods import TABLE, Method, broken, find
from ijepa_jax.methods import config as config_lib
from ijepa_jax.methods.optim import Optimizer


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What settings make before any data are looked at. Settings are checked on the way, and not again."""

    config: ml_collections.ConfigDict
    method: Method
    mesh: Mesh
    loader: Loader

    def optimizer(self, examples: int | None = None) -> Optimizer:
        """The optimiser of a run on so many examples; None: on a number that does not matter."""
        return optimizer(self.config, self.method, 1000 * self.config.optim.batch_size if examples is None else examples)


def parts(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Parts:
    """The parts of a run with completed settings, on this program's devices or others.

    Raises ValueError, naming the setting, where one does not fit.
    """
    return Parts(config, run_method(config), mesh(config, devices), loader(config))


def completed(config: ml_collections.ConfigDict, earlier: ml_collections.ConfigDict | None = None) -> ml_collections.ConfigDict:
    """A run's settings with the sections of its method, and with those of what they name (see `Method.completed`): once."""
    return find(config.method).completed(config_lib.with_method(config, config.method), earlier)


def method(config: ml_collections.ConfigDict) -> Method:
    """The objective that is to be trained. Raises ValueError, naming the setting, where settings do not fit."""
    config_lib.check(config)
    return _made(config, find(config.method).from_settings)


def run_method(config: ml_collections.ConfigDict) -> Method:
    """Likewise, of settings that have to say all that a run needs."""
    config_lib.check_run(config)
    made = _made(config, find(config.method).from_settings)
    views = _made(config, lambda _: made.views())
    if views != ():
        view(config).check_views(views, [*made.prepare()(np.zeros(1, np.int64))])
    return made


def trained_method(config: ml_collections.ConfigDict) -> Method:
    """The objective of a checkpoint with these settings, to use what it trained; what only training needs need not fit."""
    return _made(config, find(config.method).from_checkpoint)


def _made(config: ml_collections.ConfigDict, make: Callable[[ml_collections.ConfigDict], Any]) -> Any:
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


def mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of this program's devices, or others. Raises ValueError where the batch does not divide among them."""
    made = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    batch_size, parts = config.optim.batch_size, config.optim.accumulation
    if batch_size % (made.size * parts):
        raise ValueError(
            f"optim.batch_size {batch_size} does not divide among {made.size} devices times optim.accumulation {parts}"
        )
    return made


def view(config: ml_collections.ConfigDict) -> View:
    """What is shown of the run's examples."""
    data = config.data
    return View(
        size=tuple(data.image_size), channels=data.channels, crop_scale=tuple(data.crop_scale),
        crop_aspect=tuple(data.crop_aspect), flip=data.flip, color_jitter=data.color_jitter, exact=data.exact,
        center=data.eval_crop, cropping=data.cropping, mean=tuple(data.mean), std=tuple(data.std),
    )  # fmt: skip


def loader(config: ml_collections.ConfigDict) -> Loader:
    """How this process reads the run's data."""
    data, share = config.data, Share(jax.process_index(), jax.process_count())
    return Loader(
        data.name, data.directory, {"train": data.size, "test": data.test_size}, view(config), config.seed,
        config.optim.batch_size, config.probe.batch_size, data.max_bad_fraction, share,
        Loading(data.workers, data.threads, data.buffer),
    )  # fmt: skip
