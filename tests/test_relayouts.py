"""Counting relayouts in HLO text: what moves data and what does not, loops, fusions, sources."""

import pytest

from ijepa_jax.measure.relayouts import count_relayouts

PROGRAM = """HloModule jit_step, is_scheduled=true

%only_copy (p: bf16[4,8]) -> bf16[4,8] {{
  %p.1 = bf16[4,8]{{1,0}} parameter(0)
  %convert.1 = bf16[4,8]{{1,0}} bitcast(%p.1)
  ROOT %copy.1 = bf16[4,8]{{0,1}} copy(%convert.1)
}}

%scaled_copy (p: f32[4,8]) -> (f32[4,8], f32[32]) {{
  %p.2 = f32[4,8]{{1,0}} parameter(0)
  %scaled = f32[4,8]{{1,0}} multiply(%p.2, %p.2)
  %copy.2 = f32[4,8]{{0,1}} copy(%scaled)
  %flat = f32[32]{{0}} bitcast(%copy.2)
  ROOT %both = (f32[4,8]{{1,0}}, f32[32]{{0}}) tuple(%scaled, %flat)
}}

%inner_copy (p: f32[4,8]) -> f32[4] {{
  %p.3 = f32[4,8]{{1,0}} parameter(0)
  %copy.3 = f32[4,8]{{0,1}} copy(%p.3)
  ROOT %sum = f32[4]{{0}} reduce(%copy.3, %zero), dimensions={{1}}, to_apply=%add
}}

%condition (state: (s32[], f32[4,8])) -> pred[] {{
  %bound = s32[] constant(3)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %x.1 = f32[4,8]{{1,0}} get-tuple-element(%state), index=1
  %copy.4 = f32[4,8]{{0,1}} copy(%x.1), metadata={{op_name="jit(step)/blocks/while/body/reshape" id=1}}
  ROOT %next = (s32[], f32[4,8]) tuple(%counter, %copy.4)
}}

ENTRY %main (a: f32[4,8], b: bf16[4,8]) -> f32[4,8] {{
  %a = f32[4,8]{{1,0:T(8,128)}} parameter(0)
  %b = bf16[4,8]{{1,0}} parameter(1), metadata={{op_name="batch[\\'b\\']"}}
  {}
  ROOT %end = f32[4,8]{{1,0:T(8,128)}} add(%a, %a)
}}
"""


def counted(*lines: str) -> dict:
    return count_relayouts(PROGRAM.format("\n  ".join(lines)))


NOTHING = {"count": 0, "bytes": 0, "kinds": {}, "largest": [], "moves": {"count": 0, "bytes": 0}}


@pytest.mark.parametrize(
    "line, kind, size",
    [
        ("%x = f32[4,8]{0,1:T(8,128)} copy(%a)", "copy", 128),
        ("%x = f32[4,8]{0,1:T(8,128)S(1)} copy(%a)", "copy", 128),
        ("%x = f32[4,8]{1,0:T(4,128)} copy(%a)", "copy", 128),
        ("%x = f32[4,8]{0,1:T(8,128)} copy(f32[4,8]{1,0:T(8,128)} %a)", "copy", 128),
        ("%x = (f32[4,8]{0,1}, f32[4,8]{1,0}, u32[]) copy-start(%a)", "copy", 128),
        ("%x = f32[8,4]{1,0:T(8,128)} transpose(%a), dimensions={1,0}", "transpose", 128),
        ("%x = f32[32]{0:T(1024)} reshape(%a)", "reshape", 128),
        ("%x = bf16[4,8]{0,1} fusion(%b), kind=kLoop, calls=%only_copy", "copy", 64),
        ("%x = (f32[4,8]{1,0}, f32[32]{0}) fusion(%a), kind=kLoop, calls=%scaled_copy", "fused", 128),
    ],
)
def test_counts_what_changes_the_layout(line, kind, size):
    found = counted(line)
    assert found["kinds"] == {kind: {"count": 1, "bytes": size}}
    assert (found["count"], found["bytes"], found["moves"]["count"]) == (1, size, 0)


@pytest.mark.parametrize(
    "line",
    [
        "%x = f32[4,8]{1,0:T(8,128)S(1)} copy(%a)",
        "%x = f32[4,8]{1,0:T(8,128)} copy(%a)",
        "%x = (f32[4,8]{1,0:T(8,128)S(1)}, f32[4,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)",
        "%x = f32[8,4]{0,1:T(8,128)} transpose(%a), dimensions={1,0}",
    ],
)
def test_what_keeps_the_layout_is_told_apart(line):
    assert counted(line) == {**NOTHING, "moves": {"count": 1, "bytes": 128}}


@pytest.mark.parametrize(
    "line",
    [
        "%x = f32[32]{0} bitcast(%a)",
        "%x = f32[4,8]{1,0} copy-done(%begun)",
        "%x = f32[4]{0} fusion(%a), kind=kInput, calls=%inner_copy",
    ],
)
def test_what_copies_nothing_counts_nothing(line):
    assert counted(line) == NOTHING


def test_a_transpose_of_three_dimensions_follows_its_permutation():
    """[2,3,4] in order {2,1,0} becomes [4,2,3]: its dimensions 2, 1, 0 are the result's 0, 2, 1."""
    cube = "%cube = f32[2,3,4]{2,1,0} parameter(2)"
    free = counted(cube, "%x = f32[4,2,3]{0,2,1} transpose(%cube), dimensions={2,0,1}")
    moved = counted(cube, "%x = f32[4,2,3]{1,0,2} transpose(%cube), dimensions={2,0,1}")
    assert free["count"] == 0 and moved["kinds"] == {"transpose": {"count": 1, "bytes": 96}}


def test_loops_count_as_often_as_they_run():
    loop = "%loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body"
    known = counted(loop)
    assert known["kinds"] == {"copy": {"count": 3, "bytes": 3 * 128}} and "at_least" not in known
    assert known["largest"] == [{"op_name": "blocks/while/body/reshape", "array": "f32[4,8]", "count": 3, "bytes": 3 * 128}]
    unknown = count_relayouts(PROGRAM.format(loop).replace("constant(3)", "parameter(1)"))
    assert unknown["count"] == 1 and unknown["at_least"] is True


def test_sources_are_one_for_all_blocks_and_come_largest_first():
    lines = [
        f'%x.{i} = f32[4,8]{{0,1}} copy(%a), metadata={{op_name="jit(train_step)/jvp(ViT)/blocks/{i}/qkv/add" id={i}}}'
        for i in range(12)
    ]
    others = [f"%y.{i} = bf16[4,{8 + i}]{{0,1}} copy(%b)" for i in range(3)]
    found = counted(*others, *lines)
    assert found["largest"] == [
        {"op_name": "jvp(ViT)/blocks/*/qkv/add", "array": "f32[4,8]", "count": 12, "bytes": 12 * 128},
        {"op_name": "batch['b']", "array": "bf16[4,10]", "count": 1, "bytes": 80},
        {"op_name": "batch['b']", "array": "bf16[4,9]", "count": 1, "bytes": 72},
    ]
    assert found["count"] == 15
