"""Counter-based random numbers: pure, broadcasting, uniform, independent."""

import numpy as np

from ijepa_jax.data import counter


def test_pure_and_broadcasting():
    index, draw = np.arange(50), np.arange(7)
    table = counter.uniform(3, index[:, None], draw)
    assert table.shape == (50, 7)
    assert table[20, 4] == counter.uniform(3, 20, 4)
    np.testing.assert_array_equal(table[10:20], counter.uniform(3, index[10:20, None], draw))


def test_uniform_and_uncorrelated():
    table = counter.uniform(0, np.arange(20_000)[:, None], np.arange(8))
    assert table.min() >= 0 and table.max() < 1
    np.testing.assert_allclose(table.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(table.std(0), 12**-0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(table.T), np.eye(8), atol=0.03)
    np.testing.assert_allclose(np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1], 0, atol=0.03)


def test_seeds_and_orders_differ():
    assert counter.bits(0, 1, 2) != counter.bits(1, 1, 2)
    assert counter.bits(0, 1, 2) != counter.bits(0, 2, 1)
    assert counter.bits(0, 1) != counter.bits(0, 1, 0)
