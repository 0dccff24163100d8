"""Gradients that are JAX's (model.gradients=automatic): the written ones, and what those cannot give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax import build
from ijepa_jax.decode.denoiser import Denoiser
from tests import small

OPTIONS = [
    {"scan": True, "remat": "full"},
    {"depth": 1, "drop_path": 0.5, "remat": "dots", "masks": {"mode": "pad", "context_patches": 20}},
    {"depth": 1, "predictor": {"context_mode": "alone"}, "dtype": jnp.bfloat16},
]


def loss_of(options: dict, **more):
    """The loss as a function of the parameters, and these."""
    method = small.method(**options, **more)
    batch, key = small.batch(method, 2), jax.random.key(1)
    params = jax.jit(method.init)(key)
    return lambda params: method.loss(params, method.target(params), batch, key)[0], params


@pytest.mark.parametrize("options", OPTIONS)
def test_automatic_gradients_are_the_written_ones_in_both_directions(options):
    written, params = loss_of(options)
    automatic, _ = loss_of(options, automatic=True)
    ours, theirs = jax.jit(jax.value_and_grad(written))(params), jax.jit(jax.value_and_grad(automatic))(params)
    exact = "dtype" not in options
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):  # bfloat16 has 8 bits
        np.testing.assert_allclose(a, b, rtol=1e-4 if exact else 0.1, atol=(1e-7 if exact else 0.02) + 1e-5 * np.abs(b).max())
    tangent = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), params)
    along = sum(jnp.vdot(g, t) for g, t in zip(jax.tree.leaves(theirs[1]), jax.tree.leaves(tangent), strict=True))
    slope = jax.jit(lambda params: jax.jvp(automatic, (params,), (tangent,))[1])(params)
    np.testing.assert_allclose(slope, along, rtol=1e-4 if exact else 0.1)
    with pytest.raises(TypeError, match="jvp"):
        jax.jit(lambda params: jax.jvp(written, (params,), (tangent,))).lower(params)


def test_the_hessian_is_that_of_two_backward_passes():
    loss, params = loss_of({"depth": 1}, automatic=True)

    def scaled(by: jax.Array) -> jax.Array:
        return loss({name: jax.tree.map(lambda leaf: leaf * by, tree) for name, tree in params.items()})

    hessian, twice = jax.jit(lambda at: (jax.hessian(scaled)(at), jax.grad(jax.grad(scaled))(at)))(1.5)
    assert abs(hessian) > 1e-6
    np.testing.assert_allclose(hessian, twice, rtol=1e-3)


def test_the_setting_reaches_every_network():
    for gradients, automatic in (("written", False), ("automatic", True)):
        method = build.method(small.config(model__gradients=gradients))
        assert method.network.automatic == method.predictor.automatic == method.backbone().network.automatic == automatic
    with pytest.raises(ValueError, match="'automatic' needs model.attention 'xla'"):
        build.method(small.config(model__gradients="automatic", model__attention="cudnn", model__dtype="bfloat16"))


def test_the_decoders_network_has_them_too():
    network = Denoiser(16, 1, 2, automatic=True)
    given = (jnp.ones((2, 3, 12)), jnp.zeros((2, 3), int), jnp.array([3, 2]), jnp.array([0.1, 0.5]), jnp.ones((2, 5)), (6, 6))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), *given))
    out, slope = jax.eval_shape(lambda p: jax.jvp(lambda p: network.apply(p, *given), (p,), (p,)), params)
    assert out.shape == slope.shape
