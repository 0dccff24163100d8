import numpy as np
import pytest

from ijepa_jax.evaluate import rank


def reference(features, eps=1e-7):
    singular = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    share = singular / singular.sum() + eps
    return np.exp(-np.sum(share * np.log(share)))


@pytest.mark.parametrize("shape", [(500, 40), (30, 100)])
def test_rankme_is_the_definition(shape):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=shape) * np.logspace(0, -4, shape[1])).astype(np.float32)
    np.testing.assert_allclose(rank.rankme(features), reference(features), rtol=1e-6)


def test_rankme_of_known_matrices():
    np.testing.assert_allclose(rank.rankme(5 * np.eye(32)), 32, rtol=1e-3)
    low = np.random.default_rng(0).normal(size=(300, 1)) * np.ones((1, 20))
    np.testing.assert_allclose([rank.rankme(low), reference(low)], 1, rtol=1e-3)
    np.testing.assert_allclose(rank.rankme(np.zeros((10, 4))), 1, rtol=1e-3)


def views_of(images, views, signal, noise, seed=0):
    """Features [images, views, D] as float32: what an image has of each direction, plus what a view adds."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(images, 1, len(signal))) * signal
    return (own + rng.normal(size=(images, views, len(signal))) * noise + 3).astype(np.float32)


def lidar_reference(features, delta=1e-4, eps=1e-7):
    delta *= np.asarray(features, np.float64).reshape(-1, features.shape[-1]).var(axis=0).mean()
    """Sums over images and views as the paper writes them; `Sw^-1 Sb` has the eigenvalues of `Sw^-1/2 Sb Sw^-1/2`."""
    features = np.asarray(features, np.float64)
    images, views, dimensions = features.shape
    grand = features.mean(axis=(0, 1))
    between, within = np.zeros((dimensions, dimensions)), delta * np.eye(dimensions)
    for image in features:
        mean = image.mean(axis=0)
        between += np.outer(mean - grand, mean - grand) / images
        for view in image:
            within += np.outer(view - mean, view - mean) / (images * views)
    eigenvalues = np.clip(np.linalg.eigvals(np.linalg.solve(within, between)).real, 0, None)
    share = eigenvalues / eigenvalues.sum() + eps
    return np.exp(-np.sum(share * np.log(share)))


@pytest.mark.parametrize(
    ("images", "views", "dimensions"), [(60, 5, 16), (12, 4, 30), (6, 3, 40)], ids=["n > D", "n < D < nq", "nq < D"]
)
def test_lidar_is_the_definition(images, views, dimensions):
    features = views_of(images, views, np.logspace(0, -2, dimensions), np.linspace(0.1, 1, dimensions))
    np.testing.assert_allclose(rank.lidar(features), lidar_reference(features), rtol=1e-6)
    np.testing.assert_allclose(rank.lidar(features, delta=0.3, eps=1e-4), lidar_reference(features, 0.3, 1e-4), rtol=1e-6)
    assert rank.lidar(features) < min(images - 1, dimensions) * 1.01


def test_lidar_of_known_spectra():
    even = views_of(20_000, 2, np.ones(8), 0.1 * np.ones(8))
    np.testing.assert_allclose(rank.lidar(even), 8, rtol=1e-3)
    one = views_of(5000, 4, np.r_[100, np.zeros(7)], 0.1 * np.ones(8))
    np.testing.assert_allclose(rank.lidar(one), 1, rtol=1e-3)
    np.testing.assert_allclose(rank.lidar(np.full((5, 3, 4), 0.1)), 1, rtol=1e-3)


def test_lidar_of_unrelated_views_is_not_one():
    np.testing.assert_allclose(rank.lidar(views_of(20_000, 4, np.zeros(8), np.ones(8))), 8, rtol=1e-3)  # all have 1/(q-1)


def test_lidar_discounts_what_augmentations_change():
    signal, noise = np.ones(8), np.r_[np.full(4, 0.01), np.full(4, 10)]
    features = views_of(2000, 4, signal, noise)
    np.testing.assert_allclose(rank.lidar(features), 4, rtol=0.02)
    assert rank.rankme(features.reshape(-1, 8)) < 6  # which ranks the noise


def test_lidar_does_not_know_the_scale_of_features():
    features = views_of(40, 4, np.logspace(0, -2, 10), 0.05)
    for scale in (1e-6, 0.01, 1e4):
        np.testing.assert_allclose(rank.lidar(scale * features), rank.lidar(features), rtol=1e-4)


def test_lidar_of_identical_views_is_that_of_the_images():
    images = views_of(50, 1, np.logspace(0, -1, 10), 0)
    features = np.repeat(images, 3, axis=1)
    spectrum = np.linalg.svd(images[:, 0] - images[:, 0].mean(axis=0, dtype=np.float64), compute_uv=False) ** 2
    share = spectrum / spectrum.sum() + 1e-7
    np.testing.assert_allclose(rank.lidar(features), np.exp(-np.sum(share * np.log(share))), rtol=1e-6)
    np.testing.assert_allclose(rank.lidar(features, delta=10), rank.lidar(features), rtol=1e-6)


def test_lidar_knows_which_views_are_of_one_image():
    features = views_of(40, 4, np.r_[np.ones(3), np.zeros(7)], 0.1)
    rng = np.random.default_rng(1)
    permuted = np.stack([image[rng.permutation(4)] for image in features[rng.permutation(40)]])
    np.testing.assert_allclose(rank.lidar(permuted), rank.lidar(features), rtol=1e-9)
    shuffled = rng.permutation(features.reshape(160, -1)).reshape(features.shape)
    assert rank.lidar(features) < 3.5
    assert rank.lidar(shuffled) > 6


def cka_reference(a, b):
    """Kornblith et al. 2019, equation 3, with the centring matrix written out."""
    centre = np.eye(len(a)) - 1 / len(a)
    first, second = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    return np.trace(first @ second) / np.sqrt(np.trace(first @ first) * np.trace(second @ second))


@pytest.mark.parametrize("dimensions", [(5, 9), (5, 70), (60, 70)], ids=["features", "mixed", "Gram"])
def test_cka_is_the_definition(dimensions):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(40, count)).astype(np.float32) + 2 for count in dimensions)
    b[:, :5] += 2 * a[:, :5]
    np.testing.assert_allclose(rank.cka(a, b), cka_reference(a.astype(np.float64), b.astype(np.float64)), rtol=1e-9)


def test_cka_invariances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 12)), rng.normal(size=(200, 7))
    b[:, :3] += a[:, :3]
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    np.testing.assert_allclose(rank.cka(a, a), 1, rtol=1e-12)
    np.testing.assert_allclose(rank.cka(1e20 * a @ rotation, b), rank.cka(a, b), rtol=1e-5)  # features are held as float32
    np.testing.assert_allclose(rank.cka(1e-20 * a, b), rank.cka(a, b), rtol=1e-5)
    np.testing.assert_allclose(rank.cka(a, b), rank.cka(b, a), rtol=1e-12)
    assert rank.cka(a * np.logspace(0, 2, 12), a) < 0.9  # not invariant to any invertible map, unlike CCA
    assert rank.cka(a, np.full((200, 3), 0.1)) == 0


def test_cka_of_independent_features_falls_with_the_number_of_images():
    rng = np.random.default_rng(0)
    for count in (40, 20_000):
        a, b = rng.normal(size=(2, count, 20))
        np.testing.assert_allclose(rank.cka(a, b), 20 / (count + 20), rtol=0.2)


def test_cka_table():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(30, count)).astype(np.float32) for count in (4, 50, 8)] + [np.ones((30, 2))]
    table = rank.cka_table(layers)
    expected = np.array([[rank.cka(a, b) for b in layers] for a in layers])
    np.testing.assert_allclose(table, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(table, table.T)
    np.testing.assert_array_equal(np.diag(table), [1, 1, 1, 0])


def test_rankme_does_not_depend_on_scale():
    features = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32)
    np.testing.assert_allclose(rank.rankme(features * 1e-25), rank.rankme(features), rtol=1e-5)


def test_feature_std():
    features = np.random.default_rng(0).normal(size=(20_000, 3)) * [1, 2, 3] + 50
    np.testing.assert_allclose(rank.feature_std(features), 2, rtol=0.02)
    assert rank.feature_std(np.full((10, 3), 4.0)) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="NaN"):
        rank.rankme([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="shape"):
        rank.feature_std(np.zeros(3))
    views = np.ones((4, 3, 2))
    for few in (views[:1], views[:, :1], views[0]):
        with pytest.raises(ValueError, match="at least 2 images and 2 views"):
            rank.lidar(few)
    with pytest.raises(ValueError, match="delta"):
        rank.lidar(views, delta=0)
    views[1, 2, 0] = np.inf
    with pytest.raises(ValueError, match="1 of 4 images"):
        rank.lidar(views)
    with pytest.raises(ValueError, match="same images"):
        rank.cka(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="layer 1's"):
        rank.cka(np.ones((1, 2)), [[np.nan, 1.0]])
    with pytest.raises(ValueError, match="at least one layer"):
        rank.cka_table([])
