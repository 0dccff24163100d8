"""Model FLOPs: against counts by hand, the compiler's own, and published figures."""

import dataclasses
from functools import partial
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

import configs
from configs import in1k_vitb16, in1k_vith14, in22k_vitg16, quickstart
from ijepa_jax import build
from ijepa_jax.model.flops import index_padding, lane_padding, step_flops, unfriendly_sizes
from ijepa_jax.train.step import init, train_step
from tests import small

PUBLISHED = sorted(path.stem for path in Path(configs.__file__).parent.glob("in*k_*.py"))


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_index_padding_of_published_runs_is_at_most_3_percent(name):
    padding = index_padding(build.method(import_module(f"configs.{name}").get_config()))
    assert 0 < padding <= 0.03, f"{name} spends {padding:.2%} of its model FLOPs on padded tokens"


def test_there_are_published_runs():
    assert {name.split("_")[0] for name in PUBLISHED} == {"in1k", "in22k"}


@pytest.mark.parametrize("masks", [{}, {"num_context_blocks": 2}, {"mode": "pad", "num_context_blocks": 2}], ids=str)
def test_index_padding_by_hand(masks):
    """Image by image, sequence by sequence, with the lengths that the sampler gives."""
    method, images = small.method(masks=masks), 5
    drawn = method.prepare()(np.arange(images))
    targets = drawn["target_length"].tolist()
    contexts = drawn.get("context_length", np.full_like(drawn["context"][..., 0], method.masks.context_length)).tolist()

    def needed(contexts: list[int], targets: list[int]) -> int:
        total = 36 * 48 * 16 + 2 * (36 * 12 * 16**2 + 2 * 36**2 * 16)
        for context in contexts:
            total += 2 * context * 48 * 16 + 3 * 2 * (context * 12 * 16**2 + 2 * context**2 * 16)
            total += 3 * context * 16 * 8
            for target in targets:
                pair = context + target
                total += 3 * (target * 16 * 8 + pair * 12 * 8**2 + 2 * pair**2 * 8)
        return 2 * total

    static = images * sum(step_flops(method).values())
    assert static > sum(map(needed, contexts, targets))
    assert index_padding(method, images) == pytest.approx(1 - sum(map(needed, contexts, targets)) / static, rel=1e-9)


def test_targets_of_one_size_are_not_padded():
    assert index_padding(small.method(masks={"target_scale": (0.25, 0.25), "target_aspect": (1.0, 1.0)})) == 0


def test_sizes_that_a_batch_shares_are_sampled_from_many_batches():
    shared = {"mode": "reference", "batch_size": 2048, "context_patches": 4}
    assert index_padding(small.method(masks=shared)) == index_padding(small.method(masks={**shared, "batch_size": 1}))


def test_lane_padding_by_hand():
    """Heads of 8 and 4; contexts of 9, images of 36, predictor sequences of 18 tokens; tiles of 8 (16) sublanes, 128 lanes."""
    method = small.method()
    context, target, predictor = 3 * 2 * 2, 2 * 2, 3 * 4 * 2  # times, depth, heads; the predictor's times include 4 targets
    real = 4 * (context * 9 * 9 * 8 + target * 36 * 36 * 8 + predictor * 18 * 18 * 4)
    heads = 4 * 128 * (context * 9 * 9 + target * 36 * 36 + predictor * 18 * 18)
    padded = 4 * 128 * 128 * (context * 16 + target * 40 + predictor * 24)
    model, found = sum(step_flops(method).values()), lane_padding(method)
    assert found.pop("head_dims") == {"encoder": 8, "predictor": 4}
    assert found == pytest.approx(
        {"of_attention": 1 - real / padded, "of_model": (padded - real) / model, "head_dims_of_model": (heads - real) / model}
    )
    half = 4 * 128 * 128 * (context * 16 + target * 48 + predictor * 32)
    assert lane_padding(small.method(dtype=jax.numpy.bfloat16))["of_attention"] == pytest.approx(1 - real / half)


def test_unfriendly_sizes_are_named():
    names = ["patch 48", "encoder width 16", "encoder mlp 64", "predictor width 8", "predictor mlp 32"]
    assert unfriendly_sizes(small.method()) == names
    assert unfriendly_sizes(build.method(in1k_vitb16.get_config())) == []
    assert unfriendly_sizes(build.method(in22k_vitg16.get_config())) == []  # 1,408 and 6,144
    assert unfriendly_sizes(build.method(in1k_vith14.get_config())) == ["patch 588"]


def test_contexts_alone_are_counted_once_for_all_targets():
    joint = small.method()
    alone = dataclasses.replace(joint, predictor=dataclasses.replace(joint.predictor, context_mode="alone"))
    k, m, t, d = joint.masks.context_length, 4, joint.masks.target_length, joint.predictor.width
    linear = 2 * 12 * d**2  # of a token: 4 d^2 for attention's products, 8 d^2 for the MLP's
    expected = k * linear + m * t * linear + 4 * d * (k * k + m * t * (k + t))
    outside = 3 * 2 * 16 * d * (k + m * t)
    assert step_flops(alone)["predictor"] == 3 * expected + outside
    assert step_flops(alone)["predictor"] < step_flops(joint)["predictor"]
