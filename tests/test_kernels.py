"""Counting kernels in the HLO text of a program for GPUs: kinds, bytes with slices and updates in place, FLOPs, loops."""

import jax.numpy as jnp
import pytest

from ijepa_jax.measure import gpus
from ijepa_jax.measure.kernels import count_kernels
from ijepa_jax.model import attention

HLO = """HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%gemm_fusion (p0: bf16[64,128], p1: bf16[128,32]) -> bf16[64,32] {
  %p0 = bf16[64,128]{1,0} parameter(0)
  %p1 = bf16[128,32]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,32]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%norm (p2: f32[64,32]) -> f32[64] {
  %p2 = f32[64,32]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %mean = f32[64]{0} reduce(%p2, %zero), dimensions={1}, to_apply=%add.1
}

%one_of_many (p3: f32[10,64], p4: s32[]) -> f32[64] {
  %p3 = f32[10,64]{1,0} parameter(0)
  %p4 = s32[] parameter(1)
  %row = f32[1,64]{1,0} dynamic-slice(%p3, %p4, %p4), dynamic_slice_sizes={1,64}
  ROOT %twice = f32[64]{0} multiply(%row, %row)
}

%written (p5: f32[10,64], p6: f32[1,64], p7: s32[]) -> f32[10,64] {
  %p5 = f32[10,64]{1,0} parameter(0)
  %p6 = f32[1,64]{1,0} parameter(1)
  %p7 = s32[] parameter(2)
  ROOT %put = f32[10,64]{1,0} dynamic-update-slice(%p5, %p6, %p7, %p7)
}

%turned (p8: f32[64,32]) -> f32[32,64] {
  %p8 = f32[64,32]{1,0} parameter(0)
  ROOT %transposed = f32[32,64]{1,0} transpose(%p8), dimensions={1,0}
}

%condition (state: (s32[], f32[10,64])) -> pred[] {
  %bound = s32[] constant(3)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

%body (state: (s32[], f32[10,64])) -> (s32[], f32[10,64]) {
  %stack = f32[10,64]{1,0} get-tuple-element(%state), index=1
  %i = s32[] get-tuple-element(%state), index=0
  %a_row = f32[64]{0} fusion(%stack, %i), kind=kLoop, calls=%one_of_many, metadata={op_name="jit(step)/blocks/2/slice"}
  ROOT %next = (s32[], f32[10,64]) tuple(%i, %stack)
}

%async (p9: f32[10,64], p10: f32[1,64], p11: s32[]) -> f32[10,64] {
  %p9 = f32[10,64]{1,0} parameter(0)
  %p10 = f32[1,64]{1,0} parameter(1)
  %p11 = s32[] parameter(2)
  ROOT %kept = f32[10,64]{1,0} dynamic-update-slice(%p9, %p10, %p11, %p11)
}

ENTRY %main (x: bf16[64,128], w: bf16[128,32]) -> f32[] {
  %x = bf16[64,128]{1,0} parameter(0)
  %w = bf16[128,32]{1,0} parameter(1)
  %y = bf16[64,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm_fusion
  %gemm = (bf16[64,32]{1,0}, s8[256]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %wide = f32[64,32]{1,0} convert(%y)
  %mean.1 = f32[64]{0} fusion(%wide), kind=kInput, calls=%norm, metadata={op_name="jit(step)/norm/mean"}
  %many = f32[10,64]{1,0} fusion(%wide, %mean.1, %i0), kind=kLoop, calls=%written
  %loop = (s32[], f32[10,64]) while(%state0), condition=%condition, body=%body
  %start = ((f32[10,64], f32[1,64], s32[]), f32[10,64], u32[]) async-start(%many, %mean.1, %i0), calls=%async
  %done = f32[10,64]{1,0} async-done(%start)
  %ahead = ((f32[10,64], s32[]), f32[64], u32[]) fusion-start(%many, %i0), kind=kLoop, calls=%one_of_many
  %read = f32[64]{0} fusion-done(%ahead)
  %moved = f32[32,64]{1,0} fusion(%wide), kind=kLoop, calls=%turned
  %all = f32[64]{0} all-reduce(%mean.1), to_apply=%add.1
  %q = bf16[2,16,4,8]{3,2,1,0} parameter(2)
  %fused = (bf16[2,4,16,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","16","16"]}}}
  ROOT %end = f32[] copy(%all)
}
"""


def test_kernels_are_counted_by_kind_with_what_they_move_and_multiply():
    found = count_kernels(HLO)
    row, wide = 4 * 64, 4 * 64 * 32
    product = 2 * (64 * 128 + 128 * 32 + 64 * 32)
    assert found["kinds"] == {
        "product": {"count": 2, "bytes": 2 * product + 256},
        "attention": {"count": 1, "bytes": 2 * 4 * (2 * 16 * 4 * 8)},
        "reduction": {"count": 1, "bytes": wide + row},
        # what is written in place counts as its update, what is sliced as the slice, and a loop three times
        "elementwise": {"count": 5, "bytes": (row + row) + 3 * (row + 4 + row) + (row + row)},
        # an asynchronous one counts once; of what a loop stacks, the part
        "copy": {"count": 3, "bytes": 2 * wide + row + 4 + 2 * row},
        "collective": {"count": 1, "bytes": 2 * row},
        "other": {"count": 1, "bytes": wide + wide // 2},
    }
    assert found["count"] == sum(total["count"] for total in found["kinds"].values())
    assert found["flops"] == 2 * 2 * 64 * 128 * 32 + 2 * 2 * (2 * 4 * 16 * 16) * 8
    assert found["largest"][0]["kind"] == "copy" and {"blocks/*/slice", "norm/mean"} <= {
        each["op_name"] for each in found["largest"]
    }


def test_attention_by_itself_is_cudnn_s_where_that_applies(monkeypatch):
    def chosen(dtype=jnp.bfloat16, width=80, **options):
        return attention.chosen("auto", dtype, width, **options)

    assert chosen() == "xla"  # there is no GPU here
    with attention.compiled_for("gpu"):
        assert [chosen(width=width) for width in (24, 128, 20, 136)] == ["cudnn", "cudnn", "xla", "xla"]
        assert chosen(jnp.float32) == chosen(more_than_lengths=True) == "xla"
        assert attention.chosen("xla", jnp.bfloat16, 64) == "xla"
    with attention.compiled_for("tpu"):
        assert chosen() == "xla"
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    attention._cudnn_works.cache_clear()
    with pytest.warns(UserWarning, match="attention is computed by XLA, as cuDNN's does not run here: "):
        assert chosen() == "xla"
    assert chosen() == "xla"  # and is not tried again
    attention._cudnn_works.cache_clear()


def test_without_the_plugin_one_line_says_so(monkeypatch):
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="needs jax's CUDA plugin"):
        gpus.devices("h100", 1, 8)
