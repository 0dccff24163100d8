"""Model FLOPs: against counts by hand, the compiler's own, and published figures."""

from functools import partial

import jax
import pytest

from configs import in1k_vitb16, quickstart
from ijepa_jax import build
from ijepa_jax.flops import step_flops
from ijepa_jax.step import init, train_step
from tests import small


def test_counts_by_hand():
    """16 wide, 2 deep, 6x6 patches of 4x4x3 pixels, a context of 9; predictor 8 wide, 1 deep; 4 targets of 9 patches."""
    method = small.method()
    assert (method.masks.context_length, method.masks.target_length) == (9, 9)
    embed, block_product, narrow = 48 * 16, 12 * 16 * 16, 12 * 8 * 8  # multiply-adds of a token
    context = 2 * 9 * embed + 3 * 2 * (9 * block_product + 2 * 9 * 9 * 16)
    target = 36 * embed + 2 * (36 * block_product + 2 * 36 * 36 * 16)
    predictor = 3 * ((9 + 4 * 9) * 16 * 8 + 4 * (18 * narrow + 2 * 18 * 18 * 8))
    assert step_flops(method) == {"context": 2 * context, "target": 2 * target, "predictor": 2 * predictor}


@pytest.mark.parametrize("masks", [{}, {"num_context_blocks": 2}, {"mode": "pad"}], ids=str)
def test_compiler_counts_the_same(masks):
    """The compiler also counts what is not a matrix product: at this width a few per cent."""
    method, optimizer, size = small.method(width=256, heads=4, masks=masks), small.optimizer(), 64
    state = jax.eval_shape(partial(init, method, optimizer, 0))
    step = jax.jit(partial(train_step, method=method, optimizer=optimizer, seed=0))
    counted = step.lower(state, small.batch(method, size)).cost_analysis()["flops"]
    assert 1.0 <= counted / (size * sum(step_flops(method).values())) < 1.06


def test_published_figures():
    """GFLOP an image: 85 for ViT-B/16 with contexts of 69 of 256, 48 of 196 here; 0.153 for the quickstart."""
    counts = [sum(step_flops(build.method(c.get_config())).values()) / 1e9 for c in (in1k_vitb16, quickstart)]
    assert counts == pytest.approx([85, 0.153], rel=0.02)
