"""What a protocol is given: an encoder, labelled images to learn from and to be tested on, and their features."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ijepa_jax.data.bad import BadImages
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Arrays, DataError, Source, Subset
from ijepa_jax.data.views import examples
from ijepa_jax.devices import processes
from ijepa_jax.devices.sharding import batch_sharding, place_batch, place_rows
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate import probe
from ijepa_jax.host.console import Display
from ijepa_jax.host.files import unfinished
from ijepa_jax.methods import Method
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.train.step import interleaved_parts

_FEW_STEPS = 100  # of a head: the paper's linear probe of CIFAR-100, in batches of 16,384, has 150
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

    `loader` reads the evaluation's data the way the checkpoint's run did, `method` is the method of that run;
    `splits` are the images chosen of `train` and `test`; `tasks` maps the tasks that are evaluated to their numbers of classes.
    """

    settings: ml_collections.ConfigDict
    loader: Loader
    method: Method
    encoder: Encoder
    mesh: Mesh
    splits: Mapping[str, Subset]
    tasks: Mapping[str, int]
    display: Display
    bad: BadImages
    cache: epath.Path | None
    unreadable: dict[str, int] = dataclasses.field(default_factory=dict)  # images, by split
    warnings: list[str] = dataclasses.field(default_factory=list)  # what should make one doubt the result

    @property
    def train(self) -> Subset:
        return self.splits["train"]

    @property
    def test(self) -> Subset:
        return self.splits["test"]

    def features(
        self, subject: Subject, kinds: Sequence[str], split: str, most: int | None = None
    ) -> tuple[features_lib.Features, np.ndarray]:
        """Features [N, ...] of the readable images of a split (`most` of them) by kind, and these images' rows int64 [N].

        Computed by all processes and devices together, and kept for the next time if there is a cache.
        """
        chosen = features_lib.sample(len(self.splits[split]), most or len(self.splits[split]))
        source = Subset(self.splits[split], chosen)
        path = self._cached(subject, kinds, split, len(chosen))
        kept = _load(path, kinds) if path is not None else None
        if not processes.all_succeeded(kept is not None):
            features, rows = self.collect(source, self.extract(subject, kinds))
            kept = features, chosen[rows]
            if path is not None and processes.is_first():
                self._keep(path, {**features, "rows": kept[1]})
        self._account(split, len(chosen) - len(kept[1]), len(chosen))
        return kept

    def collect(self, source: Source, extract: features_lib.Extract) -> tuple[features_lib.Features, np.ndarray]:
        """What `extract` makes of all readable images of a source, and their rows in it."""
        return features_lib.collect(self.batches(source), np.arange(len(source)), extract, self.mesh)

    def extract(self, subject: Subject, kinds: Sequence[str]) -> features_lib.Extract:
        """What gives a subject's features of images."""
        if subject.params is None:
            return features_lib.pixels(self.mesh, self.encoder.network.patch, kinds)
        return functools.partial(self._extractor(tuple(kinds)), subject.params)

    def split(self, subject: Subject, kinds: Sequence[str], split: str, seed: int = 0) -> Split:
        """A split's features with their labels; of the training split, the share that `data.fraction` and the seed choose."""
        self.labels(split)  # what is wrong with them is said before features are computed
        features, rows = self.features(subject, kinds, split)
        return self.labelled(features, rows, split, seed)

    def labelled(self, features: features_lib.Features, rows: np.ndarray, split: str, seed: int = 0) -> Split:
        """Likewise, of features that are there already, of the images at `rows`."""
        labels = {task: values[rows] for task, values in self.labels(split).items()}
        if split == "train" and self.settings.data.fraction < 1:
            chosen = np.isin(rows, self.chosen(seed))
            features = {kind: values[chosen] for kind, values in features.items()}
            labels = {task: values[chosen] for task, values in labels.items()}
        for task, values in labels.items():
            if split == "train" and not np.ptp(values):
                raise DataError(f"task {task!r}: the {len(values)} training images are all of one class: choose more of them")
        return Split(features, labels)

    @functools.cache  # noqa: B019 - it lives as long as the evaluation
    def labels(self, split: str) -> dict[str, np.ndarray]:
        """Labels int64 [N] of all images of a split, by task; read once, as prepared data sets read a record for each.

        Raises DataError for labels that are no class, and for classes that no training image has.
        """
        source = self.splits[split]
        pieces = np.array_split(np.arange(len(source)), max(1, len(source) // 4096))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            read = list(pool.map(source.labels_at, pieces))
        found = {task: np.concatenate([part[task] for part in read]) for task in self.tasks}
        for task, values in found.items():
            if split == "train" and not np.ptp(values):
                raise DataError(f"task {task!r}: the {len(values)} training images are all of one class: give others too")
            if values.min() < 0 or values.max() >= self.tasks[task]:
                reach = f"{values.min()} to {values.max()}, outside 0 .. {self.tasks[task] - 1}"
                raise DataError(f"task {task!r}: {split} labels run from {reach}")
            unknown = np.setdiff1d(values, self.labels("train")[task]) if split == "test" else ()
            if len(unknown) and self.settings.data.train_images:
                self.display.log(
                    f"task {task!r}: no training image chosen is of the classes {unknown.tolist()} of the test images"
                )
            elif len(unknown):
                raise DataError(f"task {task!r}: no training image is of the classes {unknown.tolist()} of the test images")
        return found

    def batches(self, source: Source) -> Iterator[Arrays]:
        """Evaluation batches of all images of a source, with progress shown and unreadable images accounted for."""
        count = -(-len(source) // self.settings.data.batch_size)
        self.display.start("images", len(source))
        for i, batch in enumerate(self.loader.eval_batches(source, np.arange(len(source)), self.mesh.size)):
            self.bad.account(source, batch["bad"])
            yield batch
            self.display.update(len(source) * (i + 1) // count)
        self.display.stop()

    def views(self, subject: Subject, images: int, views: int, seed: int) -> np.ndarray:
        """Features [n, views, D] of random crops of test images, as pretraining made them: LiDAR's surrogate classes."""
        loader = dataclasses.replace(self.loader, seed=seed, batch_size=self.settings.data.batch_size)
        return features_lib.collect_views(loader, self.test, images, views, self.extract(subject, ("last",)), self.mesh)

    def training_images(self, batch_size: int, steps: int, seed: int, augment: Any = None) -> Iterator[dict[str, jax.Array]]:
        """Randomly cropped training batches on the devices: `image` (or video, signal), and `label` [B] by task."""
        for batch in self._training_rows(batch_size, steps, seed, augment):
            yield place_batch(batch, self.mesh)

    def _training_rows(self, batch_size: int, steps: int, seed: int, augment: Any = None) -> Iterator[dict[str, np.ndarray]]:
        """Likewise, this process's rows."""
        chosen = self.chosen(seed)
        labels = {task: values[chosen].astype(np.int32) for task, values in self.labels("train").items()}
        source = Subset(self.train, chosen)
        crops = self.settings.augment
        loader = dataclasses.replace(self.loader, seed=seed, batch_size=batch_size).with_view(
            crop_scale=tuple(crops.crop_scale),
            crop_aspect=tuple(crops.crop_aspect),
            flip=crops.flip and self.encoder.modality != "signal",
            cropping="random",
            augment=augment,
        )
        for batch in loader.crops(source, steps):
            self.bad.account(source, batch["bad"])
            yield {self.encoder.modality: examples(batch), **{task: values[batch["source"]] for task, values in labels.items()}}

    def chosen(self, seed: int) -> np.ndarray:
        """The rows of training images that `data.fraction` and the seed choose, of every class of the first task alike."""
        if self.settings.data.fraction == 1:
            return np.arange(len(self.train))
        return share_of_classes(next(iter(self.labels("train").values())), self.settings.data.fraction, seed)

    def training_features(
        self, subject: Subject, kinds: Sequence[str], batch_size: int, steps: int, seed: int, train: Split | None
    ) -> Iterator[dict[str, jax.Array]]:
        """Training batches of features by kind and labels by task, on the devices: of `train`, or of newly cropped images."""
        if train is None:
            represent = jax.jit(
                functools.partial(self._in_parts, tuple(kinds), batch_size), out_shardings=batch_sharding(self.mesh)
            )
            for batch in self._training_rows(batch_size, steps, seed):
                images = batch.pop(self.encoder.modality)
                if subject.params is None:
                    yield place_batch(
                        {**features_lib.pixel_features(images, self.encoder.network.patch, kinds), **batch}, self.mesh
                    )
                else:
                    placed = place_batch({"examples": images, **batch}, self.mesh)
                    yield {**represent(subject.params, placed.pop("examples")), **placed}
            return
        arrays = {**train.features, **{task: labels.astype(np.int32) for task, labels in train.labels.items()}}
        count = len(next(iter(arrays.values())))
        for rows in shuffled(count, batch_size, steps, seed):
            yield {name: place_rows(values[rows], self.mesh) for name, values in arrays.items()}

    def _in_parts(self, kinds: tuple[str, ...], batch_size: int, params: Any, images: jax.Array) -> features_lib.Features:
        """Represents a training batch about `data.batch_size` images at a time: a large one would not fit at once."""
        rows = batch_size // self.mesh.size
        wanted = -(-batch_size // self.settings.data.batch_size)
        parts = next(count for count in range(min(wanted, rows), rows + 1) if rows % count == 0)
        if parts == 1:
            return self.encoder.represent(params, images, kinds)
        split = interleaved_parts(parts, images)  # no row changes its device
        found = jax.lax.map(lambda part: self.encoder.represent(params, part, kinds), split)
        return {kind: values.swapaxes(0, 1).reshape(batch_size, *values.shape[2:]) for kind, values in found.items()}

    def _account(self, split: str, unreadable: int, count: int) -> None:
        """Keeps the number of unreadable images of a split; too many stop the evaluation, also where features were kept."""
        self.unreadable[split] = max(unreadable, self.unreadable.get(split, 0))
        limit = self.loader.max_bad_fraction
        if unreadable > limit * count:
            raise DataError(f"{unreadable} of {count} {split} images are unreadable, more than data.max_bad_fraction {limit:g}")

    def check_steps(self, steps: int, protocol: str) -> int:
        """The steps of a head's training, with a warning where they are too few to tell what features hold."""
        if steps < _FEW_STEPS:
            warning = (
                f"{protocol}: a head of {steps} steps says little: lower {protocol}.batch_size, or raise {protocol}.epochs"
            )
            if warning not in self.warnings:
                self.display.log(f"warning: {warning}")
            self.warnings.append(warning)
        return steps

    def batch_size(self, wanted: int, count: int) -> int:
        """As many images as `wanted`, or as there are, that divide among the devices."""
        fitting = min(wanted, count) // self.mesh.size * self.mesh.size
        if not fitting:
            raise DataError(f"{count} training images do not make a batch for {self.mesh.size} devices")
        return fitting

    @functools.cache  # noqa: B019 - it lives as long as the evaluation
    def _extractor(self, kinds: tuple[str, ...]):
        return features_lib.extractor(self.encoder, self.mesh, kinds)

    @functools.cache  # noqa: B019 - it lives as long as the evaluation
    def _fingerprint(self, split: str) -> str:
        return self.splits[split].fingerprint()

    def _keep(self, path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
        try:
            save_arrays(path, arrays)
        except OSError as error:  # a workdir that is only read from, or a full disk: the next evaluation computes them again
            self.display.log(f"features are not kept: {error}")

    def _cached(self, subject: Subject, kinds: Sequence[str], split: str, count: int) -> epath.Path | None:
        """Where these features are kept: the name covers weights, images and how these are prepared."""
        if self.cache is None:
            return None
        encoder = self.encoder
        facts = {
            "version": _CACHE_VERSION,
            "weights": subject.digest,
            "network": str(encoder.network),
            "kinds": list(kinds),
            "data": [self._fingerprint(split), count],
            "image": [*encoder.image_size, encoder.channels, *encoder.mean, *encoder.std, self.loader.view.center],
            **({"cropping": "none"} if self.loader.view.cropping == "none" else {}),
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


def _load(path: epath.Path, kinds: Sequence[str]) -> tuple[features_lib.Features, np.ndarray] | None:
    """Features that were kept, with their rows; None where there are none, or damaged ones."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            return {kind: kept[kind] for kind in kinds}, kept["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def save_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file, which is there as a whole or not at all; no copy of it is held in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as place, place.open("wb") as file:
        np.savez(file, **arrays)
