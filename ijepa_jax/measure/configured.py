"""What `benchmark` times where a run's settings say it, and what feeds its step from a data set."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import ml_collections

from ijepa_jax import build
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Arrays
from ijepa_jax.measure.benchmark import Work
from ijepa_jax.methods import config as config_lib


def of_run(config: ml_collections.ConfigDict) -> tuple[Work, Loader]:
    """The step of a run's settings, of any method, and how its data are read. Raises ValueError for what does not fit."""
    parts = build.parts(build.completed(config))
    config, optim, view = parts.config, parts.config.optim, parts.loader.view
    pixels = (*view.size, view.channels)
    facts: dict[str, Any] = {"method": parts.method.title}
    facts |= {name: config.model[name] for name in ("size", "patch", "dtype", "attention", "scan", "remat")}
    facts |= {"image": list(pixels), "batch": optim.batch_size, "parts": optim.accumulation, "mesh": dict(parts.mesh.shape)}
    work = Work(parts.method, parts.optimizer(), parts.mesh, optim.batch_size, pixels, facts, optim.accumulation)
    return work, parts.loader


def feed(work: Work, data: str, loader: Loader | None = None) -> Iterator[Arrays]:
    """Training batches of a data set by its name, for this step, otherwise read by `loader`, or as is the default."""
    loader = loader or build.loader(config_lib.default())
    scenes = {"train": max(loader.scenes["train"], 4 * work.batch)} if data == "scenes" else loader.scenes
    loader = dataclasses.replace(loader, name=data, batch_size=work.batch, scenes=scenes)
    loader = loader.with_view(size=work.pixels[:-1], channels=work.pixels[-1])
    with contextlib.closing(
        loader.train_batches(loader.open("train"), work.method.prepare(), views=work.method.views())
    ) as stream:
        for batch in stream:
            yield {name: batch[name] for name in batch.keys() - {"index", "source", "bad"}}
