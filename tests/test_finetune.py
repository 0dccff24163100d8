"""Fine-tuning: the layer-wise decay, the loss, and that it starts where the encoder is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax.evaluate.finetune import FineTuned, make_optimizer
from ijepa_jax.methods.optim import scale_by_layer
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.vit import ViT
from ijepa_jax.settings.evaluation import default
from ijepa_jax.train.step import init, train_step


def encoder(**changes):
    return Encoder(ViT(**{"patch": 4, "width": 16, "depth": 3, "heads": 2, **changes}), (8, 8), 3, (0.5,) * 3, (0.25,) * 3)


def method(**changes):
    return FineTuned(encoder(), (("shade", 2),), **{"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, **changes})


@pytest.mark.parametrize("scan", [False, True])
def test_updates_shrink_layer_by_layer_towards_the_image(scan):
    """BEiT's rule: 0.5 ** 4 for the embedding, then 0.5 ** 3, 2, 1 for the three blocks, 1 for the rest."""
    params = {"encoder": encoder(scan=scan).init(jax.random.key(0)), "heads": {"shade": {"bias": jnp.ones(2)}}}
    ones = jax.tree.map(jnp.ones_like, params)
    scaled, _ = scale_by_layer(0.5, 3).update(ones, optax.EmptyState())
    blocks = scaled["encoder"]["blocks"]
    for i, expected in enumerate([0.125, 0.25, 0.5]):
        leaves = [leaf[i] for leaf in jax.tree.leaves(blocks["scanned"])] if scan else jax.tree.leaves(blocks[str(i)])
        assert all((leaf == expected).all() for leaf in leaves)
    assert set(np.asarray(scaled["encoder"]["patch_embed"]["kernel"]).ravel().tolist()) == {0.0625}
    assert float(scaled["encoder"]["norm"]["scale"][0]) == float(scaled["heads"]["shade"]["bias"][0]) == 1


def test_loss_is_smoothed_cross_entropy_of_pooled_patches():
    of = method(smoothing=0.2)
    params = of.init(jax.random.key(0))
    params["heads"]["shade"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 2))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 1, 0], np.int32)
    value, _ = of.loss(params, None, {"image": images, "shade": labels}, jax.random.key(2))
    pooled = encoder().represent(params["encoder"], jnp.asarray(images))["last"]
    share = jax.nn.log_softmax(pooled @ params["heads"]["shade"]["kernel"])
    expected = -(0.9 * share[np.arange(4), labels] + 0.1 * share[np.arange(4), 1 - labels]).mean()
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_it_learns_and_mixing_does_not_prevent_it():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64).astype(np.int32)
    images = (rng.integers(0, 60, (64, 8, 8, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    of, settings = method(mixup=0.8, cutmix=1.0, smoothing=0.1), default("finetune").finetune
    settings.learning_rate = 3e-3
    optimizer = make_optimizer(settings, steps_per_epoch=10, steps=60, depth=3)
    state = init(of, optimizer, seed=0)
    step = jax.jit(lambda state, batch: train_step(state, batch, method=of, optimizer=optimizer, seed=0))
    for _ in range(60):
        state, _ = step(state, {"image": images, "shade": labels})
    assert (of.logits(state.params, jnp.asarray(images))["shade"].argmax(-1) == labels).all()


def test_drop_path_acts_in_training_only():
    of = method()
    dropping = FineTuned(encoder(drop_path=0.9), of.tasks, 0.0, 0.0, 0.0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), of.init(jax.random.key(0))
    )
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    still = dropping.logits(params, images)["shade"]
    np.testing.assert_array_equal(still, of.logits(params, images)["shade"])
    assert not np.allclose(dropping.logits(params, images, jax.random.key(3))["shade"], still)
