"""What stays the same during a run, opened: its parts, data, workdir and checkpoints."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from ijepa_jax import build
from ijepa_jax.data.bad import BadImages
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import DataError, Source
from ijepa_jax.devices import processes
from ijepa_jax.host.console import Display
from ijepa_jax.methods import Method, identity
from ijepa_jax.methods import config as config_lib
from ijepa_jax.methods.optim import Optimizer
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint, metrics
from ijepa_jax.train.step import State


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a run has and that does not change."""

    parts: build.Parts
    workdir: epath.Path
    display: Display
    train: Source
    test: Source
    contents: dict[str, str]  # see `Source.contents`, of the training images
    code: dict[str, str]  # see `methods.identity`, of what this run does, whatever becomes of the file
    optimizer: Optimizer
    total_steps: int
    checkpoints: checkpoint.Checkpoints
    bad: BadImages
    check_claim: Callable[[], None]  # see workdir.claim

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The settings."""
        return self.parts.config

    @property
    def method(self) -> Method:
        """What is trained."""
        return self.parts.method

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.parts.mesh

    @property
    def loader(self) -> Loader:
        """How data are read."""
        return self.parts.loader

    @functools.cached_property
    def encoder(self) -> Encoder | None:
        """What is probed; None: the method has none."""
        return self.method.backbone()

    def settings(self) -> dict[str, Any]:
        """What is kept with a checkpoint to check the next start against: the settings, and which images there were."""
        facts = {config_lib.EXAMPLES: len(self.train), config_lib.CONTENTS: self.contents}
        if self.code:
            facts[config_lib.CODE] = self.code
        return {**plain.to_plain(self.config), **facts}

    def trained(self, state: State) -> Any:
        """The parameters of the encoder as it is now, None where the method has none."""
        return self.method.encoder(state.params, state.target) if self.encoder else None

    def eval_batches(self, source: Source, rows: Any) -> Iterator[dict[str, Any]]:
        """Evaluation batches of the images at some rows; bad ones are accounted for."""
        for batch in self.loader.eval_batches(source, rows, self.mesh.size):
            self.bad.account(source, batch["bad"])
            yield batch


class Data(NamedTuple):
    """A run's images."""

    train: Source
    test: Source
    contents: dict[str, str]  # see `Source.contents`, of the training images


def open_data(parts: build.Parts, display: Display) -> Data:
    """Opens both splits; all processes must see the same. Cheap checks come first."""
    loader, opened = parts.loader, {}
    if parts.config.log.wandb and not processes.all_succeeded(not processes.is_first() or metrics.has_wandb()):
        raise ValueError("log.wandb is set, but its package is not installed: pip install wandb, or leave log.wandb empty")
    for split in ("train", "test"):
        begun = time.monotonic()
        opened[split] = loader.open(split)
        display.log(f"{loader.name} {split}: {len(opened[split])} {loader.view.modality}s ({time.monotonic() - begun:.1f} s)")
    count = len(opened["train"])
    if count < loader.batch_size:
        raise DataError(f"{loader.name} has {count} training images, fewer than optim.batch_size {loader.batch_size}")
    contents = opened["train"].contents()
    facts = {"training images": count, "contents": contents, "test images": len(opened["test"])}
    processes.check_agreement({**facts, "devices": jax.local_device_count()})
    return Data(**opened, contents=contents)


def open_run(parts: build.Parts, data: Data, workdir: epath.Path, display: Display, check_claim: Callable[[], None]) -> Run:
    """Opens what a run with these data needs, its checkpoints last."""
    config, count, tested = parts.config, len(data.train), len(data.test)
    optimizer, total_steps = parts.optimizer(count), build.total_steps(config, count)
    listing = f"bad_images_{jax.process_index()}.txt" if jax.process_count() > 1 else "bad_images.txt"
    share = (count + tested) / jax.process_count()
    bad = BadImages(workdir / listing, share, parts.loader.max_bad_fraction, display.log)
    code = identity(config.method)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)
    return Run(parts, workdir, display, *data, code, optimizer, total_steps, checkpoints, bad, check_claim)
