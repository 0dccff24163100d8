"""What a protocol is given: an encoder, labelled images to learn from and to be tested on, and their features."""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ijepa_jax import build, processes
from ijepa_jax.console import Display
from ijepa_jax.data.bad import BadImages
from ijepa_jax.data.sources import DataError, Source, Subset
from ijepa_jax.encoder import Encoder
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate import probe
from ijepa_jax.sharding import batch_sharding, place_batch, place_rows

_CACHE_VERSION = 1  # of what features are computed of given weights and images


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated: an encoder's parameters, or, where these are None, raw pixels."""

    name: str  # checkpoint, random_init or pixels
    params: Any
    digest: str


@dataclasses.dataclass(frozen=True)
class Split:
    """Features of images by kind, and their labels by task."""

    features: features_lib.Features
    labels: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """The data side of an evaluation, the same for all that is evaluated.

    `run` holds the checkpoint's settings, with the evaluation's data in place of its own; `splits` the images chosen of
    `train` and `test`; `tasks` maps the tasks that are evaluated to their numbers of classes.
    """

    settings: ml_collections.ConfigDict
    run: ml_collections.ConfigDict
    encoder: Encoder
    mesh: Mesh
    splits: Mapping[str, Subset]
    tasks: Mapping[str, int]
    display: Display
    bad: BadImages
    cache: epath.Path | None

    @property
    def train(self) -> Subset:
        return self.splits["train"]

    @property
    def test(self) -> Subset:
        return self.splits["test"]

    def features(self, subject: Subject, kinds: Sequence[str], split: str) -> tuple[features_lib.Features, np.ndarray]:
        """Features [N, ...] of the readable images of a split by kind, and these images' rows int64 [N].

        Computed by all processes and devices together, and kept for the next time if there is a cache.
        """
        source = self.splits[split]
        path = self._cached(subject, kinds, source)
        if path is not None and processes.all_succeeded(path.exists()):
            with np.load(io.BytesIO(path.read_bytes())) as kept:
                return {kind: kept[kind] for kind in kinds}, kept["rows"]
        features, rows = features_lib.collect(self.batches(source), self.extract(subject, kinds), self.mesh)
        if path is not None and processes.is_first():
            _save(path, {**features, "rows": rows})
        return features, rows

    def extract(self, subject: Subject, kinds: Sequence[str]) -> features_lib.Extract:
        """What gives a subject's features of images."""
        if subject.params is None:
            return features_lib.pixels(self.mesh, self.encoder.network.patch, kinds)
        return functools.partial(self._extractor(tuple(kinds)), subject.params)

    def split(self, subject: Subject, kinds: Sequence[str], split: str, seed: int = 0) -> Split:
        """A split's features with their labels; of the training split, the share that `data.fraction` and the seed choose."""
        features, rows = self.features(subject, kinds, split)
        return self.labelled(features, rows, split, seed)

    def labelled(self, features: features_lib.Features, rows: np.ndarray, split: str, seed: int = 0) -> Split:
        """Likewise, of features that are there already, of the images at `rows`."""
        labels = self.splits[split].labels_at(rows)
        labels = {task: labels[task] for task in self.tasks}
        if split == "train" and self.settings.data.fraction < 1:
            chosen = share_of_classes(next(iter(labels.values())), self.settings.data.fraction, seed)
            features = {kind: values[chosen] for kind, values in features.items()}
            labels = {task: values[chosen] for task, values in labels.items()}
        for task, values in labels.items():
            if split == "train" and not np.ptp(values):
                raise DataError(f"task {task!r}: the {len(values)} training images are all of one class: choose more of them")
        return Split(features, labels)

    def batches(self, source: Source) -> Iterator[features_lib.Batch]:
        """Evaluation batches of all images of a source, with progress shown and unreadable images accounted for."""
        count = -(-len(source) // self.settings.data.batch_size)
        self.display.start("images", len(source))
        for i, batch in enumerate(build.eval_batches(self.run, source, np.arange(len(source)), self.mesh)):
            self.bad.account(source, batch["bad"])
            yield batch
            self.display.update(len(source) * (i + 1) // count)
        self.display.stop()

    def views(self, subject: Subject, images: int, views: int, seed: int) -> np.ndarray:
        """Features [n, views, D] of random crops of test images: LiDAR's surrogate classes."""
        return features_lib.collect_views(
            self.test, images, views, self.settings.data.batch_size,
            lambda source, batch_size, steps: self._stream(source, batch_size, steps, seed),
            self.extract(subject, ("last",)), self.mesh,
        )  # fmt: skip

    def training_images(self, batch_size: int, steps: int, seed: int, augment: Any = None) -> Iterator[dict[str, jax.Array]]:
        """Randomly cropped training batches on the devices: `image`, and `label` [B] by task."""
        source = self.training_source(seed)
        for batch in self._stream(source, batch_size, steps, seed, augment):
            labels = source.labels_at(batch["source"])
            rows = {"image": batch["image"], **{task: labels[task].astype(np.int32) for task in self.tasks}}
            yield place_batch(rows, self.mesh)

    def _stream(
        self, source: Source, batch_size: int, steps: int, seed: int, augment: Any = None
    ) -> Iterator[features_lib.Batch]:
        """This process's rows of so many batches of random crops of a source."""
        settings, run = self.settings.augment, self.run.copy_and_resolve_references()
        run.seed, run.optim.batch_size = seed, batch_size
        run.data.crop_scale, run.data.crop_aspect, run.data.flip = settings.crop_scale, settings.crop_aspect, settings.flip
        index, count = jax.process_index(), jax.process_count()
        stream = build.train_batches(run, source, None, 0, index, count, augment=augment)
        try:
            for _, batch in zip(range(steps), stream, strict=False):
                self.bad.account(source, batch["bad"])
                yield batch
        finally:
            stream.close()

    def training_source(self, seed: int) -> Source:
        """The training images that `data.fraction` and the seed choose."""
        if self.settings.data.fraction == 1:
            return self.train
        labels = self.train.labels_at(np.arange(len(self.train)))[next(iter(self.tasks))]
        return Subset(self.train, share_of_classes(labels, self.settings.data.fraction, seed))

    def training_features(
        self, subject: Subject, kinds: Sequence[str], batch_size: int, steps: int, seed: int, train: Split | None
    ) -> Iterator[dict[str, jax.Array]]:
        """Training batches of features by kind and labels by task, on the devices: of `train`, or of newly cropped images."""
        if train is None:
            represent = jax.jit(
                lambda params, images: self.encoder.represent(params, images, kinds), out_shardings=batch_sharding(self.mesh)
            )
            for batch in self.training_images(batch_size, steps, seed):
                yield {**represent(subject.params, batch.pop("image")), **batch}
            return
        arrays = {**train.features, **{task: labels.astype(np.int32) for task, labels in train.labels.items()}}
        count = len(next(iter(arrays.values())))
        for rows in shuffled(count, batch_size, steps, seed):
            yield {name: place_rows(values[rows], self.mesh) for name, values in arrays.items()}

    def batch_size(self, wanted: int, count: int) -> int:
        """As many images as `wanted`, or as there are, that divide among the devices."""
        fitting = min(wanted, count) // self.mesh.size * self.mesh.size
        if not fitting:
            raise DataError(f"{count} training images do not make a batch for {self.mesh.size} devices")
        return fitting

    @functools.cache  # noqa: B019 - it lives as long as the evaluation
    def _extractor(self, kinds: tuple[str, ...]):
        return features_lib.extractor(self.encoder, self.mesh, kinds)

    def _cached(self, subject: Subject, kinds: Sequence[str], source: Subset) -> epath.Path | None:
        """Where these features are kept: the name covers weights, images and how these are prepared."""
        if self.cache is None:
            return None
        data, encoder = self.run.data, self.encoder
        facts = {
            "version": _CACHE_VERSION,
            "weights": subject.digest,
            "network": str(encoder.network),
            "kinds": list(kinds),
            "data": source.fingerprint(),
            "image": [*encoder.image_size, encoder.channels, *encoder.mean, *encoder.std, data.eval_crop],
        }
        name = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()
        return self.cache / f"{name}.npz"


def shuffled(count: int, batch_size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Rows int64 [batch_size] of so many steps: epoch for epoch all of `count` in random order, but for an incomplete batch."""
    per_epoch = count // batch_size
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = np.random.default_rng((seed, epoch)).permutation(count)
        yield order[position * batch_size : (position + 1) * batch_size]


def share_of_classes(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Positions, in order, of the same share of every class (at least one image of each), drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for value in np.unique(labels):
        members = order[labels[order] == value]
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


def chosen_tasks(settings: ml_collections.ConfigDict, train: Source, test: Source) -> dict[str, int]:
    """Tasks to evaluate, with their numbers of classes. Raises DataError where labels are missing or of one class only."""
    if not train.classes or not test.classes:
        raise DataError(f"{settings.protocol} needs labels, and the {'test' if train.classes else 'training'} images have none")
    found = probe.tasks(train, test)
    if not found:
        raise DataError(f"{settings.protocol} needs two classes or more: {', '.join(train.classes)} has one")
    wanted = [task.strip() for task in settings.data.tasks.split(",") if task.strip()]
    missing = sorted({*wanted} - {*found})
    if missing:
        raise DataError(f"data.tasks names {', '.join(missing)}: the data have {', '.join(found)}")
    return {task: train.classes[task] for task in wanted or found}


def _save(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(buffer.getvalue())
    unfinished.replace(path)
