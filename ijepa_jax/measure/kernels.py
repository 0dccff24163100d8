"""Counts what a program compiled for GPUs launches, and what its kernels move, from the text of its optimised HLO."""

import math
import re
from collections import defaultdict
from typing import Any, NamedTuple

from ijepa_jax.measure.hlo import Instruction, array_bytes, computations_of, executions, op_name, operands, parse, sizes_of

KINDS = ("product", "attention", "reduction", "elementwise", "copy", "collective", "other")
_NO_KERNEL = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-start",
}  # fmt: skip
_COLLECTIVES = ("all-", "reduce-scatter", "collective-", "ragged-all-to-all")
_IDLE = {"parameter", "constant", "bitcast", "copy", "transpose", "reshape", "tuple", "get-tuple-element"}
_FUSIONS = ("fusion", "fusion-start")  # the second is one that other work need not wait for
_LONG = 120  # characters of a name
_SLICES = ("dynamic-slice", "slice", "gather")


class Kernel(NamedTuple):
    """A kernel: its kind, bytes read and written, floating-point operations of its products, what it makes, and for what."""

    kind: str
    bytes: int
    flops: int
    array: str
    op_name: str


def count_kernels(hlo: str, largest: int = 5) -> dict[str, Any]:
    """Kernels of one execution on one GPU: {"count", "bytes", "flops", "kinds", "largest"}; `kinds` has those of KINDS.

    `bytes` are those of a kernel's operands and results, of sliced operands what is read; caches are not known to it. `flops`
    are those of matrix products, attention's included. `copy` is what computes nothing, but moves arrays or lays them out
    anew. What a loop does counts as often as the loop runs. `largest` are the sources of most bytes beside products, each with
    its kind, "op_name" (numbers of blocks are replaced by *), "array", "count" and "bytes".
    """
    instructions, entry = parse(hlo)
    times, _ = executions(instructions, entry)
    lines, inside = {line.name: line for line in instructions}, computations_of(instructions)
    called = {name for line in instructions for name in _fused(line)}
    kinds, sources = (defaultdict(lambda: {"count": 0, "bytes": 0}) for _ in range(2))
    flops = 0
    for line in instructions:
        runs = 0 if line.computation in called else times[line.computation]
        if not runs or line.operation in _NO_KERNEL or line.operation.endswith(("-done", "-update")):
            continue
        kernel = _kernel(line, lines, inside)
        flops += runs * kernel.flops
        source = (kernel.kind, kernel.op_name, kernel.array)
        for total in (kinds[kernel.kind], *([sources[source]] if kernel.kind != "product" else [])):
            total["count"] += runs
            total["bytes"] += runs * kernel.bytes
    ordered = sorted(sources.items(), key=lambda source: -source[1]["bytes"])[:largest]
    return {
        "count": sum(total["count"] for total in kinds.values()),
        "bytes": sum(total["bytes"] for total in kinds.values()),
        "flops": flops,
        "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds},
        "largest": [{"kind": kind, "op_name": name, "array": array, **total} for (kind, name, array), total in ordered],
    }


def _fused(line: Instruction) -> list[str]:
    """Computations that an instruction runs within its kernel: fused ones, and what a reduction or a sort applies."""
    named = re.findall(r"\bto_apply=%?([^\s,]+)", line.rest) if line.operation != "call" else []
    return [*named, *(re.findall(r"\bcalls=%?([^\s,]+)", line.rest) if line.operation in _FUSIONS else [])]


def _kernel(line: Instruction, lines: dict[str, Instruction], inside: dict[str, list[Instruction]]) -> Kernel:
    body = inside[_fused(line)[-1]] if line.operation in _FUSIONS else [line]
    moved = _moved(line, lines, body)
    flops = sum(_product_flops(each, lines) for each in body)
    named = (re.sub(r"\{[^}]*\}", "", body[-1].shape), op_name(line, lines))
    return Kernel(_kind(line, body), moved, flops, *(name if len(name) < _LONG else f"{name[:_LONG]}..." for name in named))


def _kind(line: Instruction, body: list[Instruction]) -> str:
    operations = {each.operation for each in body}
    target = _target(line)
    if "fmha" in target:
        return "attention"
    if "dot" in operations or "matmul" in target or "gemm" in target:
        return "product"
    if line.operation.startswith(_COLLECTIVES):
        return "collective"
    if operations & {"reduce", "reduce-window"}:
        return "reduction"
    if operations <= _IDLE or line.operation.startswith(("copy", "transpose", "dynamic-", "slice", "concatenate")):
        return "copy"
    return "elementwise" if line.operation in _FUSIONS else "other"


def _moved(line: Instruction, lines: dict[str, Instruction], body: list[Instruction]) -> int:
    """Bytes that a kernel reads and writes."""
    given = [lines[name] for name in operands(line) if name in lines]
    if line.operation == "dynamic-update-slice":
        return 2 * array_bytes(lines[operands(line)[1]].shape)
    if line.operation in _SLICES:
        return 2 * array_bytes(line.shape)
    if line.operation not in _FUSIONS:
        return sum(array_bytes(each.shape) for each in given) + array_bytes(line.shape)
    parameters = {int(re.match(r"\d+", each.rest)[0]): each.name for each in body if each.operation == "parameter"}
    in_place = {operands(each)[0]: each for each in body if each.operation == "dynamic-update-slice"}
    read = 0
    for i, each in enumerate(given):
        users = [user for user in body if parameters.get(i) in operands(user)]
        if users and all(user.operation in _SLICES and operands(user)[0] == parameters[i] for user in users):
            read += sum(array_bytes(user.shape) for user in users)
        elif parameters.get(i) not in in_place:
            read += array_bytes(each.shape)
    updates = [lines[operands(each)[1]] for each in in_place.values()]
    whole = sum(array_bytes(each.shape) for each in in_place.values())
    return read + array_bytes(body[-1].shape) - whole + sum(array_bytes(each.shape) for each in updates)


def _product_flops(line: Instruction, lines: dict[str, Instruction]) -> int:
    """Those of a matrix product, or of attention by cuDNN, else 0; a multiplication and an addition count as 2."""
    target = _target(line)
    if "fmha" in target:
        # two products of [B, H, Q, S] logits' size forward, five backward, which computes the logits again
        logits = re.search(r'"intermediate_tensor_shape":\{[^[]*"dimensions":\[([^\]]*)\]', line.rest)
        query = sizes_of(lines[operands(line)[0]].shape)
        products = 5 if "Backward" in target else 2
        return 2 * products * math.prod(map(int, re.findall(r"\d+", logits[1]))) * query[-1] if logits else 0
    found = re.search(r"lhs_contracting_dim(?:ension)?s=?\"?:?[{\[]([\d\",]*)", line.rest)
    if found is None or not (line.operation == "dot" or "gemm" in target or "matmul" in target):
        return 0
    left = sizes_of(lines[operands(line)[0]].shape)
    contracted = math.prod(left[int(axis)] for axis in re.findall(r"\d+", found[1]))
    return 2 * math.prod(sizes_of(line.shape)) * contracted


def _target(line: Instruction) -> str:
    """The library's function that an instruction calls; empty where it calls none."""
    found = re.search(r'custom_call_target="([^"]+)"', line.rest)
    return found[1] if found else ""
