"""Counts where a compiled program only rearranges arrays in memory, from the text of its optimised HLO."""

import re
from collections import defaultdict
from typing import Any, NamedTuple

from ijepa_jax.measure.hlo import Instruction, array_bytes, computations_of, executions, first_operand, op_name, operands, parse

KINDS = ("transpose", "copy", "reshape", "fused")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_IDLE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "copy", "transpose", "reshape"}  # compute nothing


class Relayout(NamedTuple):
    """An array that an instruction writes anew, and whether in another layout: a kind of KINDS, or None for the same."""

    kind: str | None
    array: str  # as in "bf16[8,128]"
    bytes: int


class Layout(NamedTuple):
    """The order of an array's dimensions in memory, the fastest first, and the tiles that they are cut into."""

    order: tuple[int, ...]
    tiles: str


def count_relayouts(hlo: str, largest: int = 3) -> dict[str, Any]:
    """Relayouts of one execution on one device: {"count", "bytes", "kinds", "largest", "moves"}.

    A relayout writes an array in another order of dimensions or tiling, without computing anything. `bytes` are those of the
    result, without what tiles pad it by; as many are read. What a loop does counts as often as the loop runs; `"at_least":
    True` is there if one is in a loop of unknown length. `kinds` has "count" and "bytes" for each of KINDS that occurs:
      transpose, copy: the instruction, asynchronous or not, or a fusion of nothing else;
      reshape: one that is left in a program moves data, since the others have become bitcasts;
      fused: a fusion that computes something, and whose result passes such a copy or transpose on its way out.
    `moves` are "count" and "bytes" of copies that keep the layout: between a TPU's memories, or of what is to be overwritten.
    `largest` are the sources of most bytes, each with "op_name" (an empty one if there is no name; numbers of blocks are
    replaced by *), "array", "count" and "bytes".
    """
    instructions, entry = parse(hlo)
    times, unknown = executions(instructions, entry)
    lines, computations = {line.name: line for line in instructions}, computations_of(instructions)
    fused = {_called(line) for line in instructions if line.operation == "fusion"}
    kinds, sources, moves = (defaultdict(lambda: {"count": 0, "bytes": 0}) for _ in range(3))
    at_least = False
    for line in instructions:
        runs = 0 if line.computation in fused else times[line.computation]
        for kind, array, size in _relayouts(line, lines, computations) if runs else ():
            for total in (kinds[kind], sources[op_name(line, lines), array]) if kind else (moves[None],):
                total["count"] += runs
                total["bytes"] += runs * size
            at_least |= line.computation in unknown
    ordered = sorted(sources.items(), key=lambda source: -source[1]["bytes"])[:largest]
    return {
        "count": sum(total["count"] for total in kinds.values()),
        "bytes": sum(total["bytes"] for total in kinds.values()),
        "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds},
        "largest": [{"op_name": name, "array": array, **total} for (name, array), total in ordered],
        "moves": moves[None],
        **({"at_least": True} if at_least else {}),
    }


def _relayouts(line: Instruction, lines: dict[str, Instruction], computations: dict[str, list]) -> list[Relayout]:
    """The relayouts and moves of an instruction that is not itself within a fusion: one at most, but for fusions."""
    if line.operation == "fusion":
        inside = computations[_called(line)]
        roots = [root for root in _roots(inside, lines) if root.operation in ("copy", "transpose")]
        idle = all(each.operation in _IDLE for each in inside)
        found = [_relayout(root, root.operation if idle else "fused", lines) for root in roots]
        return [relayout for relayout in found if relayout.kind or idle]
    kind = line.operation.removesuffix("-start")
    return [_relayout(line, kind, lines)] if kind in ("transpose", "copy", "reshape") else []


def _relayout(line: Instruction, kind: str, lines: dict[str, Instruction]) -> Relayout:
    """What a copy, transpose or reshape does to its operand: `kind`, or nothing but to move it."""
    dtype, sizes, *_ = found = _ARRAY.search(line.shape).groups()
    operand = lines.get(first_operand(line))
    same = operand is not None and line.operation != "reshape" and _layout(*found[1:]) == _source(line, operand)
    array = f"{dtype}[{sizes}]"
    return Relayout(None if same else kind, array, array_bytes(array))


def _source(line: Instruction, operand: Instruction) -> Layout | None:
    """The layout of an operand, its dimensions numbered as those of the result; None where it is not an array."""
    found = _ARRAY.match(operand.shape)
    if not found:
        return None
    layout = _layout(*found.groups()[1:])
    if line.operation != "transpose":
        return layout
    permutation = _numbers(re.search(r"dimensions=\{([\d,]*)\}", line.rest)[1])
    return layout._replace(order=tuple(permutation.index(dimension) for dimension in layout.order))


def _layout(sizes: str, order: str | None, tiles: str | None) -> Layout:
    """A layout as HLO writes it, less the memory that the array is in; without one, the last dimension is the fastest."""
    default = tuple(reversed(range(len(_numbers(sizes)))))
    return Layout(default if order is None else _numbers(order), re.sub(r"S\(\d+\)", "", tiles or ""))


def _roots(inside: list[Instruction], lines: dict[str, Instruction]) -> list[Instruction]:
    """The instructions that make a fusion's results, whatever bitcasts and tuples they pass through afterwards."""
    todo, found = [line for line in inside if line.root], []
    while todo:
        line = todo.pop()
        if line.operation in ("tuple", "bitcast"):
            todo += [lines[name] for name in operands(line) if name in lines]
        else:
            found.append(line)
    return found


def _called(fusion: Instruction) -> str:
    return re.search(r"\bcalls=%?([^\s,]+)", fusion.rest)[1]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
