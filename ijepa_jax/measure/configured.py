"""What `benchmark` times where a run's settings say it, and what feeds its step from a data set."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import ml_collections

from ijepa_jax import build
from ijepa_jax.data.source import Arrays
from ijepa_jax.measure.benchmark import Work
from ijepa_jax.methods import config as config_lib


def of_run(config: ml_collections.ConfigDict) -> Work:
    """The step of a run's settings, of any method. Raises ValueError for settings that do not fit."""
    parts = build.parts(config)
    config, optim, data = parts.config, parts.config.optim, parts.config.data
    pixels = (*data.image_size, data.channels)
    facts: dict[str, Any] = {"method": parts.method.title}
    facts |= {name: config.model[name] for name in ("size", "patch", "dtype", "attention", "scan", "remat")}
    facts |= {"image": list(pixels), "batch": optim.batch_size, "parts": optim.accumulation, "mesh": dict(parts.mesh.shape)}
    return Work(parts.method, parts.optimizer(), parts.mesh, optim.batch_size, pixels, facts, optim.accumulation)


def feed(work: Work, data: str, config: ml_collections.ConfigDict | None) -> Iterator[Arrays]:
    """Training batches of a data set by its name, for this step, otherwise read as `config`, or the default, says."""
    loader = build.loader(config_lib.default() if config is None else config)
    scenes = {"train": max(loader.scenes["train"], 4 * work.batch)} if data == "scenes" else loader.scenes
    loader = dataclasses.replace(loader, name=data, batch_size=work.batch, scenes=scenes)
    loader = loader.with_view(size=work.pixels[:2], channels=work.pixels[2])
    with contextlib.closing(loader.train_batches(loader.open("train"), work.method.prepare())) as stream:
        for batch in stream:
            yield {name: batch[name] for name in batch.keys() - {"index", "source", "bad"}}
