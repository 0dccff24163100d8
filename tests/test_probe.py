"""The probe harness: features counted once, comparisons, baselines; the encoder's features on any batch size."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from ijepa_jax import build
from ijepa_jax.data.source import DataError
from ijepa_jax.devices import sharding
from ijepa_jax.evaluate import features, logistic, probe
from ijepa_jax.model.encoder import Encoder
from tests import small


class Labelled:
    """Images whose brightness is their class."""

    def __init__(self, labels):
        self._labels = np.asarray(labels)
        self.classes = {"label": int(self._labels.max()) + 1}

    def __len__(self):
        return len(self._labels)

    def labels_at(self, rows):
        return {"label": self._labels[rows]}

    def __getitem__(self, index):
        noise = np.random.default_rng(index).integers(0, 20, (24, 24, 3), dtype=np.uint8)
        return noise + np.uint8(60 * self._labels[index])

    def name(self, index):
        return str(index)


def data(train=range(90), test=range(45), classes=3) -> probe.ProbeData:
    config = small.config(data__image_size=(24, 24), probe__batch_size=32)
    sources = [Labelled(np.asarray(split) % classes) for split in (train, test)]
    mesh = sharding.make_mesh()

    loader = build.loader(config)
    batches = lambda s, rows: loader.eval_batches(s, rows, mesh.size)  # noqa: E731
    return probe.ProbeData(*sources, batches, loader, mesh, 1000, 1000, lidar_images=8)


def test_probes_measure_what_features_hold():
    brightness = lambda images: {"last": images.reshape(len(images), -1)[:, ::100].astype(np.float32)}  # noqa: E731
    results, correct, strengths = data().measure(brightness)
    assert results["linear/label"] == 100 and results["rankme"] > 1 and results["lidar"] > 1
    assert correct["linear/label"].all() and correct["knn/label"].mean() * 100 == results["knn/label"]
    assert strengths["label"] in logistic.L2
    nothing = data().measure(lambda images: {"last": np.zeros((len(images), 4), np.float32)}).results
    assert nothing["linear/label"] == pytest.approx(100 / 3, abs=1) and np.isfinite(list(nothing.values())).all()


def test_every_image_is_counted_once():
    config = small.config(probe__batch_size=32)
    source = Labelled(np.arange(70))
    mesh = sharding.make_mesh()
    batches = build.loader(config).eval_batches(source, np.arange(70), mesh.size)
    found, rows = features.collect(batches, np.arange(70), lambda images: {"last": images[:, 0, 0]}, mesh)
    assert len(found["last"]) == 70 and rows.tolist() == list(range(70))


def test_features_lie_in_the_order_of_their_images_without_those_that_are_unreadable(monkeypatch):
    batches = [
        {"image": np.array(index, np.float32)[:, None], "index": np.array(index), "valid": np.array(valid)}
        for index, valid in (([7, 2, 9], [1, 1, 0]), ([4, 3, 3], [1, 1, 0]))
    ]
    collected = partial(features.collect, batches, [9, 7, 2, 4, 3], lambda images: {"last": images}, sharding.make_mesh())
    found, indices = collected()
    assert indices.tolist() == [2, 3, 4, 7] and found["last"].ravel().tolist() == [2, 3, 4, 7]
    monkeypatch.setattr(features.memory, "available", lambda: 19)
    with pytest.raises(MemoryError, match=r"features of 5 images \(last\) take .*linear.augment, attentive"):
        collected()
    batches[1]["image"][0] = np.nan
    monkeypatch.setattr(features.memory, "available", lambda: None)
    with pytest.raises(ValueError, match="last features hold NaN"):
        collected()


def test_views_are_crops_of_the_image_they_stand_for():
    of = data(test=range(9), classes=3)
    shade = lambda images: {"last": images.mean(axis=(1, 2, 3))[:, None]}  # noqa: E731
    views = features.collect_views(dataclasses.replace(of.loader, batch_size=8), of.test, 9, 4, shade, of.mesh)
    assert views.shape == (8, 4, 1)  # whole batches of two images
    expected = 60 * of.test.labels_at(features.sample(9, 8))["label"] + 9.5
    np.testing.assert_allclose(views[..., 0], expected[:, None] * np.ones(4), atol=3)


def test_classes_only_in_the_test_split_are_refused():
    with pytest.raises(DataError, match="task 'label' has 1 more classes in the test split"):
        probe.tasks(Labelled([0, 1]), Labelled([0, 1, 2]))


def test_test_classes_without_a_training_image_are_refused_where_enough_are_known():
    few, many = Labelled([0, 2] * 8), Labelled([0, 2] * 100)
    tested = Labelled([0, 1, 2])
    assert probe.check_labels(few, tested, 64, 64) == ["label"]  # of few images chance alone may miss a class
    assert probe.check_labels(many, tested, 64, 64) == ["label"]  # 64 of 200, and some classes are known
    with pytest.raises(DataError, match="1 of the 3 classes of 3 test images have no image among 200 training images"):
        probe.check_labels(many, tested, 200, 200)
    with pytest.raises(DataError, match="1 of the 1 classes of 5 test images have no image among 64 training images"):
        probe.check_labels(many, Labelled([1] * 5), 64, 64)
    with pytest.raises(DataError, match="1 of the 1 classes of 5 test images have no image among 16 training images"):
        probe.check_labels(few, Labelled([1] * 5), 64, 64)


def test_images_of_one_class_are_refused_before_they_are_probed():
    rare = Labelled([0, 1] + [0] * 98)
    assert probe.check_labels(rare, Labelled([0, 1]), 100, 2) == ["label"]
    for train, wanted in ((rare, 20), (Labelled([1] * 30), 64)):
        with pytest.raises(
            DataError, match="training images that are probed are all of one class, [01]: give images of others"
        ):
            probe.check_labels(train, Labelled([0, 1]), wanted, 2)


def test_pooled_features_are_the_mean_patch_of_any_batch():
    method = small.method()
    params = method.init(jax.random.key(0))["encoder"]
    encoder = Encoder(method.network, method.image_size, 3, method.mean, method.std)
    extract = features.extractor(encoder, sharding.make_mesh())
    images = small.batch(method, size=7)["image"]
    whole = extract(params, images)["last"]
    encoded = method.network.apply({"params": params}, (images.astype(np.float32) / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(whole, encoded.mean(1), atol=1e-5)
    np.testing.assert_allclose(extract(params, images[:3])["last"], whole[:3], atol=1e-6)


def test_pixels_are_small_and_scaled():
    images = np.full((2, 64, 48, 3), 255, np.uint8)
    found = features.pixels(sharding.make_mesh())(images)["last"]
    assert found.shape == (2, 32 * 32 * 3) and (found == 1).all()


def test_raw_videos_and_signals_are_reduced_to_means():
    video = np.zeros((2, 12, 20, 30, 3), np.uint8)
    video[:, :, :, :, 0] = 20 * np.arange(12, dtype=np.uint8)[:, None, None]
    found = features.pixels(sharding.make_mesh(), (2, 10, 10), ("last", "patches"))(video)
    assert found["last"].shape == (2, 8 * 16 * 16 * 3) and found["patches"].shape == (2, 6 * 2 * 3, 600)
    red = found["last"].reshape(2, 8, -1, 3)[0, :, 0, 0] * 255
    np.testing.assert_allclose(red, [10, 50, 90, 130, 160, 180, 200, 220], atol=1e-3)  # 12 frames as 8 means
    signal = np.arange(4096, dtype=np.float32).reshape(1, 4096, 1) - 5
    found = features.pixels(sharding.make_mesh(), 64, ("last", "patches"))(signal)
    np.testing.assert_allclose(found["last"][0], np.arange(1024) * 4 - 3.5)
    np.testing.assert_array_equal(found["patches"][0].ravel(), signal.ravel())  # and not scaled
    np.testing.assert_array_equal(features.pixels(sharding.make_mesh())(signal[:, :300])["last"], signal[:, :300, 0])


def measured(accuracies: dict[str, float], **measures) -> probe.Measured:
    """Probes that tell so many per cent of a hundred images right, the first ones."""
    correct = {name: np.arange(100) < value for name, value in accuracies.items()}
    tasks = [name.split("/")[1] for name in accuracies if name.startswith("linear/")]
    return probe.Measured({**accuracies, **measures}, correct, dict.fromkeys(tasks, 0.1))


def test_comparison_names_protocols_or_tasks():
    one = measured({"linear/label": 70.0, "knn/label": 60.0}, rankme=9.0, feature_std=0.1)
    table = probe.compare(one, one, one)
    columns = ("trained", "random_init", "pixels")
    assert [table["probes"]["knn"][column] for column in columns] == [60.0] * 3 and "pixels" not in table["rankme"]
    assert table["probes"]["linear"]["l2"] == dict.fromkeys(columns, 0.1) and "mean_interval" not in table
    low, high = table["probes"]["linear"]["interval"]
    assert 58 < low < 64 and 76 < high < 82  # of 70 right ones among a hundred
    two = measured({"linear/count": 30.0, "knn/count": 20.0, "linear/shape": 40.0, "knn/shape": 10.0}, rankme=3.0)
    table = probe.compare(two, two, two)
    assert table["probes"].keys() == table["knn"].keys() == {"count", "shape"}
    assert 24 < table["mean_interval"]["probes"][0] < 35 < table["mean_interval"]["probes"][1] < 46
    assert probe.score(two.results) == 35.0 and probe.score({"rankme": 3.0}) == 3.0
    none = probe.compare(*[measured({}, rankme=3.0)] * 3)
    assert none["probes"] == none["knn"] == {} and none["rankme"] == {"trained": 3.0, "random_init": 3.0}


def test_a_task_of_one_class_is_no_task():
    assert probe.tasks(Labelled([0, 0]), Labelled([0])) == []
