"""Counts what a compiled program sends between devices, from the text of its optimised HLO."""

import re
from collections import defaultdict

from ijepa_jax.measure.hlo import Instruction, array_bytes, executions, operands, parse

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast", "ring-permute",
)  # fmt: skip


def count_collectives(hlo: str) -> dict[str, dict[str, int | bool]]:
    """Collectives of one execution by kind: {"all-reduce": {"count": 3, "bytes": 4096}, ...}, in the order of KINDS.

    `bytes` are those of the whole arrays that are gathered, reduced or exchanged by one device with its group: the result of an
    all-gather, the operands of the others. What a loop does counts as often as the loop runs; `"at_least": True` marks a
    kind that is in a loop of unknown length. A collective that the compiler split into asynchronous parts counts once.

    A `ring-permute` is one of the steps by which the TPU compiler gathers the input of a matrix product, or scatters its
    result, while it computes the product: it stands in for a part of an all-gather or reduce-scatter.
    """
    instructions, entry = parse(hlo)
    times, unknown = executions(instructions, entry)
    shapes = {line.name: line.shape for line in instructions}
    seen: dict[tuple, Instruction] = {}
    for line in instructions:
        kind = _kind(line)
        if kind and times[line.computation]:
            chain = re.search(r"chain_id=(\S+?)[,}]", line.rest)  # of the parts that one collective was split into
            seen.setdefault((kind, chain[1] if chain else line.name), line)
    totals = defaultdict(lambda: {"count": 0, "bytes": 0})
    for (kind, _), line in seen.items():
        totals[kind]["count"] += times[line.computation]
        totals[kind]["bytes"] += times[line.computation] * _moved(line, shapes)
        if line.computation in unknown:
            totals[kind]["at_least"] = True
    return {kind: totals[kind] for kind in KINDS if kind in totals}


def _kind(line: Instruction) -> str | None:
    kind = line.operation.removesuffix("-start")
    if kind == "collective-permute" and re.search(r'op_name="[^"]*/dot_general"', line.rest):
        return "ring-permute"
    if kind == "all-reduce" and line.computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # as TPUs have it: a fusion of an all-reduce and the slice that a device keeps
    return kind if kind in KINDS else None


def _moved(line: Instruction, shapes: dict[str, str]) -> int:
    """Bytes of the whole arrays of a collective."""
    given = sum(array_bytes(shapes.get(name, "")) for name in operands(line))
    if not line.operation.startswith("all-gather"):
        return given
    return array_bytes(line.shape) - (given if line.operation.endswith("-start") else 0)  # a start returns both
