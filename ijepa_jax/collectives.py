"""Counts what a compiled program sends between devices, from the text of its optimised HLO."""

import re
from collections import Counter, defaultdict
from typing import NamedTuple

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast", "ring-permute",
)  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation)=%?([^\s,]+)|branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"%([^\s,()]+)")


class Instruction(NamedTuple):
    """A line of HLO: where it stands, whether its result is the computation's; its shape as written, operation, the rest."""

    computation: str
    root: bool
    name: str
    shape: str
    operation: str
    rest: str


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


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape as HLO writes it, "(f32[2,3]{1,0}, bf16[4])", without padding."""
    bits = 0
    for dtype, sizes in _ARRAY.findall(shape):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        bits += count * (8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]))
    return bits // 8


def parse(hlo: str) -> tuple[list[Instruction], str]:
    """All instructions, and the name of the computation that the program starts with."""
    instructions, computation, entry = [], "", ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[2]
            entry = computation if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(computation, bool(found[1]), *found.groups()[1:]))
    return instructions, entry


def executions(instructions: list[Instruction], entry: str) -> tuple[Counter, set[str]]:
    """How often each computation runs, and those that run in a loop of unknown length (they are counted once a loop)."""
    by_computation = defaultdict(list)
    for line in instructions:
        by_computation[line.computation].append(line)
    times, unknown = Counter(), set()
    todo = [(entry, 1, False)]
    while todo:
        name, count, unsure = todo.pop()
        times[name] += count
        if unsure:
            unknown.add(name)
        for line in by_computation[name]:
            if line.operation.endswith(("-done", "-update")):  # belongs to a start, which names the same computation
                continue
            trips = _trips(line, by_computation) if line.operation == "while" else 1
            for one, several in _CALLED.findall(line.rest):
                called = [part.strip().removeprefix("%") for part in several.split(",")] if several else [one]
                todo += [(part, count * (trips or 1), unsure or trips is None) for part in called]
    return times, unknown


def _trips(loop: Instruction, by_computation: dict[str, list[Instruction]]) -> int | None:
    """How often a loop runs: as noted by the compiler, or the bound its counter is compared with; None where neither is."""
    if noted := re.search(r"known_trip_count[^\d]*(\d+)", loop.rest):
        return int(noted[1])
    condition = by_computation[re.search(r"condition=%?([^\s,]+)", loop.rest)[1]]
    constants = (line for line in condition if line.operation == "constant" and re.match(r"[su]\d+\[\]", line.shape))
    bounds = [re.match(r"\d+", line.rest) for line in constants]
    return int(bounds[0][0]) if len(bounds) == 1 and bounds[0] else None


def _kind(line: Instruction) -> str | None:
    kind = line.operation.removesuffix("-start")
    if kind == "collective-permute" and re.search(r'op_name="[^"]*/dot_general"', line.rest):
        return "ring-permute"
    if kind == "all-reduce" and line.computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # as TPUs have it: a fusion of an all-reduce and the slice that a device keeps
    return kind if kind in KINDS else None


def _moved(line: Instruction, shapes: dict[str, str]) -> int:
    """Bytes of the whole arrays of a collective."""
    operands = sum(array_bytes(shapes.get(name, "")) for name in _OPERAND.findall(line.rest.split("), ")[0]))
    if not line.operation.startswith("all-gather"):
        return operands
    return array_bytes(line.shape) - (operands if line.operation.endswith("-start") else 0)  # a start returns both
