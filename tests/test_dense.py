"""The linear layer: its numbers, whole or in parts, its float32 gradients, and what bfloat16 sums in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.model.vit import Dense


def setup(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x, cotangent = jax.random.normal(keys[0], (8, 64, 16), dtype), jax.random.normal(keys[1], (8, 64, 32), dtype)
    params = Dense(32, dtype).init(keys[2], x)["params"]
    return x, cotangent, {**params, "bias": jax.random.normal(keys[3], (32,))}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_equals_linens_layer(dtype):
    x, cotangent, params = setup(dtype)
    theirs = nn.Dense(32, dtype=dtype, precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None)
    (ours, ours_back), (expected, back) = (
        jax.vjp(lambda p, x, layer=layer: layer.apply({"params": p}, x), params, x) for layer in (Dense(32, dtype), theirs)
    )
    np.testing.assert_array_equal(ours, expected)
    d_params, d_x = ours_back(cotangent)
    np.testing.assert_array_equal(d_x, back(cotangent)[1])
    if dtype == jnp.float32:  # in bfloat16, theirs sums the gradient of the bias in bfloat16: it is off by up to 9% here
        for name, gradient in back(cotangent)[0].items():
            np.testing.assert_allclose(d_params[name], gradient, rtol=1e-5, atol=1e-4)  # sums of 512 in another order


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_parts_are_slices_of_the_whole_output(dtype):
    x, cotangent, params = setup(dtype)

    def together(params, x):
        return jnp.concatenate(Dense(32, dtype, parts=4).apply({"params": params}, x), axis=-1)

    (ours, ours_back), (expected, back) = (
        jax.vjp(f, params, x) for f in (together, lambda params, x: Dense(32, dtype).apply({"params": params}, x))
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    (d_params, d_x), (expected_params, expected_x) = ours_back(cotangent), back(cotangent)
    rounding = 1e-6 if dtype == jnp.float32 else 2**-8  # of the parts, which are added in the dtype of the computation
    np.testing.assert_allclose(*(np.asarray(d, np.float32) for d in (d_x, expected_x)), atol=2 * rounding)
    for name, gradient in expected_params.items():
        np.testing.assert_allclose(d_params[name], gradient, rtol=1e-5, atol=1e-4)


def test_bfloat16_gradients_are_summed_in_float32():
    x, cotangent, params = setup(jnp.bfloat16)
    gradient = jax.vjp(lambda p: Dense(32, jnp.bfloat16).apply({"params": p}, x), params)[1](cotangent)[0]
    x, cotangent = np.asarray(x, np.float64), np.asarray(cotangent, np.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    # 512 products of order 1: bfloat16 would be off by 0.1
    np.testing.assert_allclose(gradient["kernel"], np.einsum("bsi,bso->io", x, cotangent), atol=1e-4)
    np.testing.assert_allclose(gradient["bias"], cotangent.sum((0, 1)), atol=1e-4)
