"""Schedules at the precision that replaying the reference needs, and what weight decay acts on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.methods import optim
from tests import small

TOTAL, WARMUP = 234_375, 25_000  # ViT-H/14: 1.25 * 300 epochs and 40 epochs of 625 steps
STEPS = np.unique([0, 1, 2, WARMUP - 2, WARMUP - 1, WARMUP, 100_000, 187_499, TOTAL - 100, TOTAL - 2, TOTAL - 1])


def reference(step: int) -> tuple[float, float, float]:
    """METHOD section 3, in float64."""
    t = step + 1
    cosine = lambda t, total: (1 + np.cos(np.pi * t / total)) / 2  # noqa: E731
    lr = 2e-4 + t / WARMUP * 8e-4 if t < WARMUP else 1e-6 + (1e-3 - 1e-6) * cosine(t - WARMUP, TOTAL - WARMUP)
    return lr, 0.4 + (0.04 - 0.4) * cosine(t, TOTAL), 0.996 + step * 0.004 / TOTAL


@pytest.mark.parametrize("which", range(3))
def test_schedules_keep_float32_precision_to_the_end(which):
    schedule = [
        optim.warmup_cosine(2e-4, 1e-3, 1e-6, WARMUP, TOTAL), optim.cosine(0.04, 0.4, TOTAL), optim.linear(0.996, 1.0, TOTAL),
    ][which]  # fmt: skip
    received = jax.jit(jax.vmap(schedule))(jnp.asarray(STEPS, jnp.int32))
    assert received.dtype == jnp.float32
    np.testing.assert_allclose(received, [reference(int(step))[which] for step in STEPS], rtol=3e-7)


def test_schedules_never_pass_their_end():
    late = TOTAL + 1000
    assert float(optim.warmup_cosine(2e-4, 1e-3, 1e-6, WARMUP, TOTAL)(late)) == pytest.approx(1e-6)
    assert float(optim.cosine(0.04, 0.4, TOTAL)(late)) == pytest.approx(0.4)
    assert float(optim.linear(0.996, 1.0, TOTAL)(late)) == 1.0


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warm-up of 100 steps must be shorter than the schedule of 100 steps"):
        small.optimizer(warmup_steps=100)


@pytest.mark.parametrize("scan", [False, True])
def test_decay_acts_on_kernels_and_the_mask_token_only(scan):
    params = small.method(scan=scan).init(jax.random.key(0))
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 1)[-1]: value
        for path, value in jax.tree_util.tree_leaves_with_path(optim.decay_mask(params))
    }
    assert decayed == {"kernel": True, "mask_token": True, "bias": False, "scale": False}


def test_clipping_bounds_the_gradient_norm():
    params = {"kernel": jnp.ones((3, 4))}
    huge = {"kernel": jnp.full((3, 4), 1e6)}
    plain, clipped = small.optimizer().transformation, small.optimizer(clip=0.5).transformation
    first = {}
    for name, transformation in (("plain", plain), ("clipped", clipped)):
        _, state = transformation.update(huge, transformation.init(params), params)
        first[name] = next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3, 4))  # (1 - b1) * gradient
    np.testing.assert_allclose(np.linalg.norm(first["clipped"]), 0.05, rtol=1e-5)
    assert np.linalg.norm(first["plain"]) > 1e5
