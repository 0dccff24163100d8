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
