"""Small methods, batches and settings that several tests train with."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np

from configs import tiny
from ijepa_jax.data import pipeline
from ijepa_jax.data.source import Arrays, Source
from ijepa_jax.methods import IJepa, Method
from ijepa_jax.methods.masks import MaskSampler
from ijepa_jax.methods.optim import Optimizer, make_optimizer
from ijepa_jax.model.predictor import Predictor
from ijepa_jax.model.vit import ViT
from ijepa_jax.pretrain import command


def method(
    *, masks: dict | None = None, predictor: dict | None = None, channels: int = 3, image: tuple[int, int] = (24, 24), **encoder
) -> IJepa:
    """A method on a 6x6 grid, 16 wide and 2 deep."""
    vit = ViT(patch=4, **{"width": 16, "depth": 2, "heads": 2, **encoder})
    alike = {name: getattr(vit, name) for name in ("dtype", "scan", "remat", "positions", "automatic")}
    predictor = Predictor(width=8, depth=1, heads=2, **alike, **(predictor or {}))
    sampler = MaskSampler((image[0] // 4, image[1] // 4), **{"context_patches": 9, **(masks or {})})
    return IJepa(vit, predictor, sampler, image, channels, (0.5,) * channels, (0.25,) * channels)


def batch(of: Method, size: int = 4, start: int = 0) -> dict[str, np.ndarray]:
    """Random images, or views, with the method's masks."""
    rng = np.random.default_rng(start)
    rooms = pipeline.blank(pipeline.View(of.image_size, of.channels), of.views(), size)
    shown = {name: rng.integers(0, 256, room.shape, dtype=np.uint8) for name, room in rooms.items()}
    return {**shown, **of.prepare()(np.arange(start, start + size))}


def stream(source: Source, sampler=None, **settings) -> Iterator[Arrays]:
    """Training batches of 8 images; `settings` are those of `pipeline.train_batches`, its view, share and loading, by names."""
    settings = {"seed": 3, "batch_size": 8, "size": (16, 16), "channels": 1, **settings}
    parts = {
        name: kind(**{field.name: settings.pop(field.name) for field in dataclasses.fields(kind) if field.name in settings})
        for name, kind in (("view", pipeline.View), ("share", pipeline.Share), ("loading", pipeline.Loading))
    }
    return pipeline.train_batches(source, sampler, **parts, **settings)


def optimizer(**changes) -> Optimizer:
    """AdamW with schedules over a hundred steps."""
    schedules = {"total_steps": 100, "warmup_steps": 10, "start_lr": 1e-4, "peak_lr": 1e-2, "final_lr": 1e-5}
    averages = {"weight_decay": 0.04, "final_weight_decay": 0.4, "momentum": 0.9, "final_momentum": 1.0}
    return make_optimizer(**{**schedules, **averages, **changes})


def config(**changes) -> ml_collections.ConfigDict:
    """The settings of configs/tiny.py, made smaller still; `changes` are dotted keys with __ for the dot."""
    settings = tiny.get_config()
    settings.data.size, settings.data.test_size = 64, 32
    settings.optim.steps, settings.optim.warmup = 12, 2.0
    settings.checkpoint.every, settings.probe.every = 4, 0
    settings.probe.train_images = settings.probe.test_images = 32
    settings.probe.during_train_images = settings.probe.during_test_images = 32
    settings.probe.batch_size = 32
    with settings.unlocked():
        settings.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return settings


def assert_goes_on_to_the_same_bits(report: dict, settings: ml_collections.ConfigDict, workdir: Path) -> None:
    """That a finished run, whose report this is, ends alike from the checkpoint before its last: in WORKDIR again."""
    again = workdir.with_name(f"{workdir.name} again")
    shutil.copytree(workdir / "checkpoints", again / "checkpoints")
    shutil.rmtree(again / "checkpoints" / str(report["steps"]))
    continued = command.pretrain(settings, again)
    assert 0 < continued["resumed_from"] < report["steps"]
    assert {continued[name] == report[name] for name in ("params_digest", "encoder_digest")} == {True}
