"""Reads compiled programs: the text of their optimised HLO as instructions, and how often each of them runs."""

import re
from collections import Counter, defaultdict
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation)=%?([^\s,]+)|branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """A line of HLO: where it stands, whether its result is the computation's; its shape as written, operation, the rest."""

    computation: str
    root: bool
    name: str
    shape: str
    operation: str
    rest: str


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
    by_computation = computations_of(instructions)
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


def computations_of(instructions: list[Instruction]) -> dict[str, list[Instruction]]:
    """Instructions by the computation that they stand in."""
    found = defaultdict(list)
    for line in instructions:
        found[line.computation].append(line)
    return found


def _trips(loop: Instruction, by_computation: dict[str, list[Instruction]]) -> int | None:
    """How often a loop runs: as noted by the compiler, or the bound its counter is compared with; None where neither is."""
    if noted := re.search(r"known_trip_count[^\d]*(\d+)", loop.rest):
        return int(noted[1])
    condition = by_computation[re.search(r"condition=%?([^\s,]+)", loop.rest)[1]]
    constants = (line for line in condition if line.operation == "constant" and re.match(r"[su]\d+\[\]", line.shape))
    bounds = [re.match(r"\d+", line.rest) for line in constants]
    return int(bounds[0][0]) if len(bounds) == 1 and bounds[0] else None


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape as HLO writes it, "(f32[2,3]{1,0}, bf16[4])", without padding."""
    bits = 0
    for dtype, sizes in _ARRAY.findall(shape):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        bits += count * (8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]))
    return bits // 8


def sizes_of(shape: str) -> tuple[int, ...]:
    """The sizes of the first array in a shape as HLO writes it."""
    found = _ARRAY.search(shape)
    return tuple(int(size) for size in found[2].split(",") if size) if found else ()


def operands(line: Instruction) -> list[str]:
    """The names of an instruction's operands."""
    return re.findall(r"%([^\s,()]+)", line.rest.split("), ")[0])


def op_name(line: Instruction, lines: dict[str, Instruction]) -> str:
    """What the program calls an instruction, or else its operand."""
    for each in (line, lines.get(first_operand(line))):
        if each and (named := re.search(r'op_name="([^"]*)"', each.rest)):
            return re.sub(r"/\d+(?=/)", "/*", re.sub(r"^jit\([^)]*\)/", "", named[1])).replace("\\'", "'")
    return ""


def first_operand(line: Instruction) -> str:
    return re.match(r"(?:[^%(),]* )?%?([^\s,()]*)", line.rest)[1]
