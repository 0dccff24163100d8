"""What an encoder gives of images."""

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.model.encoder import KINDS, Encoder
from ijepa_jax.model.vit import ViT


def test_representations_are_what_they_are_called():
    encoder = Encoder(ViT(patch=4, width=16, depth=5, heads=2), (16, 24), 3, (0.5,) * 3, (0.25,) * 3)
    params = encoder.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    found = encoder.represent(params, jnp.asarray(images), KINDS[:-1])
    assert {kind: value.shape for kind, value in found.items()} == {
        "last": (2, 16), "last4": (2, 64), "patches": (2, 24, 16), "layers": (2, 5, 16),
    }  # fmt: skip
    outputs = encoder.network.apply({"params": params}, (images / np.float32(255) - 0.5) / 0.25, layers=True)
    np.testing.assert_allclose(found["patches"], outputs[-1], atol=1e-5)
    np.testing.assert_allclose(found["last"], outputs[-1].mean(1), atol=1e-5)
    np.testing.assert_allclose(found["last4"][:, -16:], found["last"], atol=1e-5)  # the last block, normed, is the last layer
    np.testing.assert_allclose(found["layers"], np.stack([x.mean(1) for x in outputs[:-1]], 1), atol=1e-5)
    norm = jax.device_get(params["norm"])
    second = np.asarray(jax.nn.standardize(outputs[1], epsilon=1e-6, algorithm="stable")) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(found["last4"][:, :16], second.mean(1), atol=1e-4)
