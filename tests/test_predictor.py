"""The predictor: shapes, independence of pairs, padding of targets and of contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.model.predictor import Predictor

GRID = (4, 4)


def predictor(**changes) -> Predictor:
    return Predictor(**{"width": 8, "depth": 2, "heads": 2, **changes})


def inputs(c: int = 2, k: int = 5, m: int = 3, t: int = 4):
    keys = jax.random.split(jax.random.key(0), 3)
    context = jax.random.normal(keys[0], (2, c, k, 12))
    context_index = jax.vmap(jax.vmap(lambda key: jax.random.permutation(key, 16)[:k]))(jax.random.split(keys[1], (2, c)))
    target_index = jax.vmap(jax.vmap(lambda key: jax.random.permutation(key, 16)[:t]))(jax.random.split(keys[2], (2, m)))
    return context, context_index, target_index


def run(context, context_index, target_index, context_length=None, target_length=None, **changes):
    module = predictor(**changes)
    params = module.init(jax.random.key(1), context, context_index, target_index, GRID)["params"]
    # weights large enough that attention matters
    params = jax.tree.map(lambda x: 5 * x, params)
    return module.apply({"params": params}, context, context_index, target_index, GRID, context_length, target_length)


def test_every_pair_of_context_and_target_is_predicted_by_itself():
    context, context_index, target_index = inputs()
    together = run(context, context_index, target_index)
    assert together.shape == (2, 3, 2, 4, 12)
    for c in range(2):
        for m in range(3):
            alone = run(context[:, c : c + 1], context_index[:, c : c + 1], target_index[:, m : m + 1])
            np.testing.assert_allclose(alone[:, 0, 0], together[:, m, c], atol=2e-5)


def test_the_prediction_depends_on_where_the_target_is_and_on_the_context():
    context, context_index, target_index = inputs()
    base = run(context, context_index, target_index)
    moved = run(context, context_index, (target_index + 1) % 16)
    other = run(context + 1, context_index, target_index)
    assert np.abs(moved - base).max() > 1e-3 and np.abs(other - base).max() > 1e-3


@pytest.mark.parametrize("pad_context", [False, True])
def test_padding_changes_no_valid_prediction(pad_context):
    context, context_index, target_index = inputs(c=1)
    context_length = jnp.array([[3], [5]]) if pad_context else None
    target_length = jnp.array([[4, 2, 1], [3, 4, 2]])
    padded = run(context, context_index, target_index, context_length, target_length)
    for image in range(2):
        k = int(context_length[image, 0]) if pad_context else 5
        for m in range(3):
            t = int(target_length[image, m])
            exact = run(
                context[image : image + 1, :, :k],
                context_index[image : image + 1, :, :k],
                target_index[image : image + 1, m : m + 1, :t],
            )
            np.testing.assert_allclose(padded[image, m, 0, :t], exact[0, 0, 0], atol=2e-5)


def test_padded_contexts_alone_are_enough():
    context, context_index, target_index = inputs(c=1)
    full = jnp.full((2, 1), 5)
    np.testing.assert_allclose(
        run(context, context_index, target_index, full), run(context, context_index, target_index), atol=2e-5
    )


def test_alone_contexts_give_the_same_predictions_where_no_block_comes_after_their_change():
    """In the first block a mask token sees the same context tokens either way; in the second they have become others."""
    lengths = jnp.array([[3], [5]]), jnp.array([[4, 2, 1], [3, 4, 2]])
    for c, given in ((1, lengths), (2, (None, None))):
        tokens = inputs(c=c)
        valid = np.arange(4) < (np.full((2, 3), 4) if given[1] is None else np.asarray(given[1]))[..., None]
        joint, alone = (run(*tokens, *given, depth=1, context_mode=name) for name in ("joint", "alone"))
        difference = np.abs(joint - alone).max(axis=(2, 4))
        assert difference[valid].max() < 2e-5
    deep = [run(*inputs(), context_mode=name) for name in ("joint", "alone")]
    assert np.abs(deep[0] - deep[1]).max() > 1e-3


@pytest.mark.parametrize("scan", [False, True])
def test_alone_contexts_and_other_blocks_learn_nothing_of_a_target_block(scan):
    context, context_index, target_index = inputs()
    together = run(context, context_index, target_index, context_mode="alone", scan=scan)
    moved = run(
        context, context_index, target_index.at[:, 1].set((target_index[:, 1] + 1) % 16), context_mode="alone", scan=scan
    )
    np.testing.assert_allclose(moved[:, [0, 2]], together[:, [0, 2]], atol=2e-5)
    assert np.abs(moved[:, 1] - together[:, 1]).max() > 1e-3
    one = run(context[:, 1:], context_index[:, 1:], target_index, context_mode="alone", scan=scan)
    np.testing.assert_allclose(one[:, :, 0], together[:, :, 1], atol=2e-5)


def test_an_unknown_way_of_the_context_is_named():
    with pytest.raises(ValueError, match="'apart' must be one of joint, alone"):
        run(*inputs(), context_mode="apart")
