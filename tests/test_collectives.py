"""Counting collectives in HLO text: loops, asynchronous parts, shapes."""

from ijepa_jax.measure.collectives import count_collectives
from ijepa_jax.measure.hlo import array_bytes

HLO = """HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition.1 (state: (s32[], f32[4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[] compare(%counter, %bound), direction=LT
}

%body.1 (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %weights = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.1 = bf16[4,32]{1,0:T(8,128)(2,1)S(1)} all-gather(%weights), channel_id=1, dimensions={1}
  ROOT %next = (s32[], f32[4]) tuple(%counter, %x)
}

%all-reduce-scatter.3 (p: f32[8,8]) -> f32[2,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %all-reduce.9 = f32[8,8]{1,0} all-reduce(%p), channel_id=7, to_apply=%add.1
  ROOT %slice = f32[2,8]{1,0} dynamic-slice(%all-reduce.9, %i, %zero), dynamic_slice_sizes={2,8}
}

%part.1 (p: f32[2]) -> f32[8] {
  %p.1 = f32[2]{0} parameter(0)
  ROOT %all-gather.7 = f32[8]{0} all-gather(%p.1), channel_id=1, dimensions={0}, frontend_attributes={chain_id="5"}
}

%part.2 (p: f32[2]) -> f32[8] {
  %p.2 = f32[2]{0} parameter(0)
  ROOT %all-gather.8 = f32[8]{0:S(1)} all-gather(%p.2), channel_id=1, dimensions={0}, frontend_attributes={chain_id="5"}
}

ENTRY %main.1_spmd (x: f32[4], y: f32[8,8]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[8,8]{1,0} parameter(1)
  %loop = (s32[], f32[4]) while(%start), condition=%condition.1, body=%body.1
  %all-reduce.1 = (f32[4]{0}, /*index=1*/f32[8,8]{1,0}) all-reduce(%x, %y), channel_id=2, to_apply=%add.1
  %scattered = f32[2,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
  %fusion.1 = f32[8]{0} fusion(%z), kind=kOutput, calls=%part.1
  %fusion.2 = f32[8]{0} fusion(%z), kind=kOutput, calls=%part.2
  %start.1 = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), channel_id=3, dimensions={0}
  %done.1 = f32[16]{0} all-gather-done(%start.1)
  %ring.1 = f32[2]{0} collective-permute(%p.1), channel_id=6, metadata={op_name="jit(step)/fc1/dot_general"}
  ROOT %collective-permute.1 = f32[4]{0} collective-permute(%x), channel_id=4, source_target_pairs={{0,1},{1,0}}
}
"""


def test_counts_a_program():
    assert count_collectives(HLO) == {
        "all-gather": {"count": 3 + 1 + 1, "bytes": 3 * 4 * 32 * 2 + 8 * 4 + 16 * 4},
        "reduce-scatter": {"count": 1, "bytes": 8 * 8 * 4},
        "all-reduce": {"count": 1, "bytes": 4 * 4 + 8 * 8 * 4},
        "collective-permute": {"count": 1, "bytes": 4 * 4},
        "ring-permute": {"count": 1, "bytes": 2 * 4},
    }


def test_a_noted_number_of_trips_comes_first_and_an_unknown_one_is_marked():
    noted = HLO.replace("body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"12"}}')
    assert count_collectives(noted)["all-gather"]["count"] == 12 + 1 + 1
    unknown = HLO.replace("constant(3)", "parameter(3)")
    assert count_collectives(unknown)["all-gather"] == {"count": 3, "bytes": 4 * 32 * 2 + 8 * 4 + 16 * 4, "at_least": True}
    assert "at_least" not in count_collectives(unknown)["all-reduce"]


def test_a_program_without_any():
    assert (
        count_collectives(HLO.split("ENTRY")[0] + "ENTRY %main (x: f32[4]) -> f32[4] {\n  ROOT %x = f32[4] parameter(0)\n}")
        == {}
    )


def test_bytes_of_shapes():
    assert array_bytes("(f32[2,3]{1,0}, bf16[4]{0:T(8,128)(2,1)})") == 24 + 8
    assert array_bytes("(pred[10], s8[3], f8e4m3fn[5], s4[6], u64[], token[])") == 10 + 3 + 5 + 3 + 8
