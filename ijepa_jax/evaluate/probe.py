"""The probes of a pretraining run: how good are frozen, pooled features, beside a random encoder's and raw pixels."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Arrays, DataError, Source
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate import knn, logistic, rank, statistics

_NEIGHBOURS, _TEMPERATURE = 20, 0.07  # of kNN
_VIEWS = 4  # crops of an image that LiDAR is computed of
_IMAGES_OF_A_CLASS = 8  # of which one is missed by chance in fewer than one of a thousand samples


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """Labelled images to train probes on, and held-out ones to test them with, of one or several tasks."""

    train: Source
    test: Source
    batches: Callable[[Source, np.ndarray], Iterator[Arrays]]  # of the examples at some indices
    loader: Loader  # of random crops
    mesh: Mesh
    train_images: int
    test_images: int
    lidar_images: int  # 0: no LiDAR

    def measure(self, extract: features_lib.Extract) -> "Measured":
        """Probes features on all tasks."""
        train, train_rows = self._features(self.train, self.train_images, extract)
        test, test_rows = self._features(self.test, self.test_images, extract)
        results = {"rankme": rank.rankme(test), "feature_std": rank.feature_std(test)}
        count = min(self.lidar_images, len(self.test))
        if count >= max(2, self.mesh.size):
            loader = dataclasses.replace(self.loader, batch_size=count * _VIEWS)  # one batch of them
            views = features_lib.collect_views(loader, self.test, count, _VIEWS, extract, self.mesh)
            results["lidar"] = rank.lidar(views)
        basis, nearest, correct, strengths = logistic.prepare(train), knn.neighbours(train, test, _NEIGHBOURS), {}, {}
        train_labels, test_labels = self.train.labels_at(train_rows), self.test.labels_at(test_rows)
        found = tasks(self.train, self.test)
        room = max((self.train.classes[task] for task in found), default=None)
        for task in found:
            labels, truth, classes = train_labels[task], test_labels[task], self.train.classes[task]
            if not np.ptp(labels):
                raise DataError(
                    f"task {task!r}: the {len(labels)} images probed are all of one class: raise probe.train_images"
                )
            linear = logistic.classify(basis, labels, test, classes=classes, room=room)
            voted = knn.vote(nearest, labels, classes=classes, temperature=_TEMPERATURE)
            correct |= {f"linear/{task}": linear.classes == truth, f"knn/{task}": voted == truth}
            strengths[task] = linear.l2
        results |= {name: 100.0 * float(right.mean()) for name, right in correct.items()}
        return Measured(results, correct, strengths)

    def _features(self, source: Source, wanted: int, extract: features_lib.Extract) -> tuple[np.ndarray, np.ndarray]:
        rows = features_lib.sample(len(source), wanted)
        features, rows = features_lib.collect(self.batches(source, rows), rows, extract, self.mesh)
        return features["last"], rows


class Measured(NamedTuple):
    """What probes measure of features."""

    results: dict[str, float]  # linear/TASK and knn/TASK in per cent; rankme, feature_std and lidar of test images
    correct: dict[str, np.ndarray]  # bool [M] by linear/TASK and knn/TASK: which test images were told right
    l2: dict[str, float]  # how strongly each task's linear probe was regularised


def tasks(train: Source, test: Source) -> list[str]:
    """Tasks with labels of at least two classes in both splits; DataError where the test split has more of them."""
    found = [task for task in train.classes if task in test.classes and train.classes[task] > 1]
    for task in found:
        extra = test.classes[task] - train.classes[task]
        if extra > 0:
            raise DataError(f"task {task!r} has {extra} more classes in the test split than in the training split")
    return found


def check_labels(train: Source, test: Source, train_images: int, test_images: int) -> list[str]:
    """The tasks, after a look at the labels of so many images, as many as are probed.

    Raises DataError where probes of these could not be made, or would mean nothing: a label that is no class, images of one
    class only, test images of classes that no training image has.
    """
    found = tasks(train, test)
    if not found:
        return found
    trained, tested = _labels(train, found, "training", train_images), _labels(test, found, "test", test_images)
    for task in found if trained and tested else ():
        if not np.ptp(trained[task]):
            raise DataError(
                f"task {task!r}: the {len(trained[task])} training images that are probed are all of one class, "
                f"{trained[task][0]}: give images of others, or raise probe.train_images"
            )
        _refuse_strangers(task, trained[task], tested[task], train.classes[task], train_images >= len(train))
    return found


def _labels(source: Source, found: list[str], split: str, wanted: int) -> dict[str, np.ndarray]:
    """Labels of so many images. Raises DataError where some are no classes, such as the -1 of TFDS for images without one."""
    try:
        labels = source.labels_at(features_lib.sample(len(source), wanted))
    except OSError:  # an unreadable record: whoever reads it next accounts for it
        return {}
    for task in found:
        odd = labels[task][(labels[task] < 0) | (labels[task] >= source.classes[task])]
        if len(odd):
            most = source.classes[task] - 1
            raise DataError(
                f"task {task!r}: the {split} split has the label {odd[0]}, and its classes are 0 to {most}: mend it"
            )
    return labels


def _refuse_strangers(task: str, trained: np.ndarray, tested: np.ndarray, classes: int, whole: bool) -> None:
    """Raises DataError where training lacks classes that are tested, unless few are missing of a few images."""
    there = np.unique(tested)
    unknown = np.setdiff1d(there, trained)
    many = len(trained) >= _IMAGES_OF_A_CLASS * classes
    if len(unknown) and ((whole and many) or (len(unknown) == len(there) and (whole or many))):
        raise DataError(
            f"task {task!r}: {len(unknown)} of the {len(there)} classes of {len(tested)} test images have no image among "
            f"{len(trained)} training images: no probe could name them, so the splits must have the same classes"
        )


def score(results: dict[str, float]) -> float:
    """By what checkpoints are compared: mean accuracy of the linear probes, or RankMe where there are no labels."""
    accuracies = [value for name, value in results.items() if name.startswith("linear/")]
    return float(np.mean(accuracies)) if accuracies else results["rankme"]


def compare(trained: Measured, random_init: Measured, pixels: Measured) -> dict[str, dict]:
    """The report's tables: `probes` {name: {trained, random_init, pixels, interval, l2}}, `knn` likewise, rankme, feature_std.

    Where there is one task, `probes` holds its two protocols (linear, knn); where there are several, each task's linear
    probe under the task's name, and `mean_interval` the intervals of their means. Intervals are of `trained`.
    """
    encoders = {"trained": trained, "random_init": random_init}
    columns = encoders | {"pixels": pixels}
    tasks = list(trained.l2)

    def table(protocol: str) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for task in tasks:
            name = f"{protocol}/{task}"
            rows[task] = {column: of.results[name] for column, of in columns.items()}
            rows[task]["interval"] = _interval([trained.correct[name]])
            if protocol == "linear":
                rows[task]["l2"] = {column: of.l2[task] for column, of in columns.items()}
        return rows

    tables = {protocol: table(protocol) for protocol in ("linear", "knn")}
    found: dict[str, dict] = {"probes": tables["linear"], "knn": tables["knn"]}
    if len(tasks) == 1:
        found["probes"] = {protocol: next(iter(rows.values())) for protocol, rows in tables.items()}
    elif tasks:
        means = {"probes": "linear", "knn": "knn"}
        found["mean_interval"] = {
            key: _interval([trained.correct[f"{of}/{task}"] for task in tasks]) for key, of in means.items()
        }
    for name in ("rankme", "feature_std", "lidar"):
        if name in trained.results:
            found[name] = {column: of.results[name] for column, of in encoders.items()}
    return found


def _interval(correct: list[np.ndarray]) -> list[float]:
    """In which the mean of some accuracies on the same images lies, in per cent."""
    return [round(bound, 3) for bound in statistics.interval(100.0 * np.mean(correct, axis=0))]
