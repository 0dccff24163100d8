import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ijepa_jax.evaluate import knn

ROOT = Path(__file__).resolve().parent.parent


def clusters(count, classes=5, dims=16, seed=0):
    centres = np.random.default_rng(0).normal(size=(classes, dims))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (centres[labels] + rng.normal(size=(count, dims))).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 20])
def test_predictions_are_scikit_learns(k):
    (bank, labels), (queries, _) = clusters(700, seed=1), clusters(600, seed=2)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)).fit(bank, labels)
    ours = knn.predict(bank, labels, queries, classes=5, k=k)
    assert np.mean(ours == theirs.predict(queries)) > 0.995  # float32 against float64: near ties may fall either way


def test_a_bank_in_pieces_gives_the_same_neighbours(monkeypatch):
    bank, queries = clusters(1000)[0], clusters(70, seed=3)[0]
    whole = knn.neighbours(bank, queries, 9)
    monkeypatch.setattr(knn, "_BANK", 128)
    monkeypatch.setattr(knn, "_QUERIES", 32)
    knn._nearest_on.cache_clear()
    pieces = knn.neighbours(bank, queries, 9)
    knn._nearest_on.cache_clear()
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_allclose(whole[1], pieces[1], atol=1e-6)


SEVERAL = """
import jax, numpy as np
from ijepa_jax.evaluate import knn
rng, unit = np.random.default_rng(0), lambda rows: rows / np.linalg.norm(rows, axis=1)[:, None]
assert jax.local_device_count() == 8
for count, k in ((1000, 9), (17, 20), (6, 50)):
    bank, queries = rng.normal(size=(count, 16)).astype(np.float32), rng.normal(size=(70, 16)).astype(np.float32)
    bank[count // 2] = bank[0]  # on another device
    similarities = unit(queries) @ unit(bank).T
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    found = knn.neighbours(bank, queries, k)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(found[1], np.take_along_axis(similarities, expected, 1), atol=1e-6)
"""


def test_a_bank_over_several_devices_gives_the_same_neighbours():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_ties_go_to_the_first_in_the_bank_and_the_lowest_class():
    bank = np.array([[1, 0], [0, 1], [2, 0], [0, 3]], np.float32)
    indices, similarities = knn.neighbours(bank, np.array([[5, 0]], np.float32), 3)
    np.testing.assert_array_equal(indices, [[0, 2, 1]])
    np.testing.assert_allclose(similarities, [[1, 1, 0]], atol=1e-6)
    assert knn.predict(bank, [2, 0, 1, 0], np.array([[5, 0]], np.float32), classes=3, k=2).tolist() == [1]


def test_k_may_exceed_the_bank():
    bank, labels = clusters(6)
    assert knn.neighbours(bank, bank, 50)[0].shape == (6, 6)
    assert knn.accuracy(bank, labels, bank, labels, classes=5, k=50) == 100.0


def test_zero_features_give_chance_not_nan():
    labels = np.arange(100) % 4
    assert knn.accuracy(np.zeros((100, 8)), labels, np.zeros((40, 8)), labels[:40], classes=4) == 25.0
    assert np.isfinite(knn.neighbours(np.zeros((100, 8)), np.full((1, 8), 1e-30), 3)[1]).all()


def test_the_length_of_features_does_not_matter():
    bank, queries = clusters(50)[0], clusters(7, seed=1)[0]
    expected = knn.neighbours(bank, queries, 5)
    found = knn.neighbours(bank * np.float32(1e-30), queries * np.float32(1e30), 5)  # whose squares float32 does not hold
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_accuracy_is_of_so_many_neighbours_weighed_at_such_a_temperature():
    """The nearest, of cosine 1, has the query's class; the two next, of cosine 0.8, another."""
    bank, labels, query = np.array([[1, 0], [0.8, 0.6], [0.8, -0.6]]), [0, 1, 1], np.array([[1.0, 0]])
    shares = [
        knn.accuracy(bank, labels, query, [0], classes=2, k=k, temperature=temperature)
        for k, temperature in ((1, 10.0), (3, 10.0), (3, 0.1))
    ]
    assert shares == [100.0, 0.0, 100.0]


def test_bad_input_is_named():
    bank, labels = clusters(20)
    for features in (bank[0], bank[:0], bank[:, :0]):
        with pytest.raises(ValueError, match=r"bank features must have shape \[images, dimensions\], none of them 0; got \["):
            knn.neighbours(features, bank, 3)
    with pytest.raises(ValueError, match="query features of 1 of 20 images hold NaN"):
        knn.predict(bank, labels, np.where(np.arange(20)[:, None] == 3, np.nan, bank), classes=5)
    with pytest.raises(ValueError, match=r"outside 0 \.\. 2"):
        knn.predict(bank, labels, bank, classes=3)
    with pytest.raises(ValueError, match="16 dimensions, query features 4"):
        knn.predict(bank, labels, bank[:, :4], classes=5)
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn.predict(bank, labels, bank, classes=5, k=0)
    with pytest.raises(ValueError, match="temperature"):
        knn.predict(bank, labels, bank, classes=5, temperature=0.0)
    with pytest.raises(ValueError, match="query labels must have shape"):
        knn.accuracy(bank, labels, bank, labels[:3], classes=5)


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_bank_larger_than_the_device_is_gone_through_in_parts(monkeypatch, rows):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(100, 8)).astype(np.float32), rng.normal(size=(9, 8)).astype(np.float32)
    bank[50:] = bank[:50]  # of equals the first in the bank comes first, also over parts
    whole = knn.neighbours(bank, queries, 20)
    monkeypatch.setattr(knn, "_BANK_BYTES", rows * bank[0].nbytes)
    parts = knn.neighbours(bank, queries, 20)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-6)
