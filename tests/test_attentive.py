"""The attentive probe: it finds what only some patches hold, and is what its paper describes."""

import jax
import numpy as np
import pytest

from ijepa_jax.evaluate.attentive import Attentive, Pooler
from ijepa_jax.model.vit import parameter_count
from ijepa_jax.train.step import init, train_step
from tests import small

WIDTH = 8


def test_pooler_is_one_query_over_all_patches():
    pooler, tokens = Pooler(heads=2, classes=3), np.random.default_rng(0).normal(size=(4, 9, WIDTH)).astype(np.float32)
    params = pooler.init(jax.random.key(0), tokens)["params"]
    attention = WIDTH + (WIDTH + 1) * 3 * WIDTH + 2 * WIDTH  # query, q and kv, norm
    mlp = 2 * WIDTH + (WIDTH + 1) * 4 * WIDTH + (4 * WIDTH + 1) * WIDTH
    assert parameter_count(params) == attention + mlp + (WIDTH + 1) * 3
    logits = pooler.apply({"params": params}, tokens)
    np.testing.assert_allclose(pooler.apply({"params": params}, tokens[:, ::-1]), logits, atol=1e-6)  # order does not matter
    keys = jax.tree.map(lambda leaf: np.asarray(leaf + 0.5 * jax.random.normal(jax.random.key(1), leaf.shape)), params)
    normed = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    normed = normed * keys["norm1"]["scale"] + keys["norm1"]["bias"]
    q = (keys["query"] @ keys["q"]["kernel"] + keys["q"]["bias"]).reshape(2, 4)
    k, v = np.moveaxis((normed @ keys["kv"]["kernel"] + keys["kv"]["bias"]).reshape(4, 9, 2, 2, 4), 2, 0)
    weights = np.exp(np.einsum("hd,bnhd->bhn", q, k) / 2)
    x = keys["query"] + np.einsum("bhn,bnhd->bhd", weights / weights.sum(-1, keepdims=True), v).reshape(4, WIDTH)
    y = np.asarray(jax.nn.standardize(x, epsilon=1e-6)) * keys["norm2"]["scale"] + keys["norm2"]["bias"]
    y = np.asarray(jax.nn.gelu(y @ keys["fc1"]["kernel"] + keys["fc1"]["bias"], approximate=False))
    x = x + y @ keys["fc2"]["kernel"] + keys["fc2"]["bias"]
    expected = x @ keys["head"]["kernel"] + keys["head"]["bias"]
    np.testing.assert_allclose(pooler.apply({"params": keys}, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tasks", [(("where", 2),), (("where", 2), ("always", 3))])
def test_it_learns_what_one_patch_among_many_says(tasks):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 512)
    patches = rng.normal(size=(512, 16, WIDTH)).astype(np.float32)
    patches[:, :, 0] = 0
    patches[np.arange(512), rng.integers(0, 16, 512), 0] = np.where(labels, 6.0, -6.0)
    batch = {"patches": patches, "where": labels.astype(np.int32), "always": np.full(512, 2, np.int32)}
    method, optimizer = Attentive(tasks, heads=2, width=WIDTH), small.optimizer()
    state = init(method, optimizer, seed=0)
    step = jax.jit(lambda state, batch: train_step(state, batch, method=method, optimizer=optimizer, seed=0))
    for _ in range(100):
        state, metrics = step(state, batch)
    logits = method.logits(state.params, patches)
    assert (logits["where"].argmax(-1) == labels).mean() > 0.95 and state.target is None
    assert logits.keys() == dict(tasks).keys() and np.isfinite(metrics["loss"])
