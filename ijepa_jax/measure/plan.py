"""The real training step, compiled ahead of time for hardware that is not there: memory, collectives, relayouts, FLOPs.

TPU slices need libtpu, GPUs jax's CUDA plugin, which both compile on any Linux machine; meshes of CPU devices are simulated.
"""

import re
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import topologies

from ijepa_jax import build
from ijepa_jax.devices import sharding
from ijepa_jax.measure import gpus
from ijepa_jax.measure.collectives import count_collectives
from ijepa_jax.measure.gpus import GPUS
from ijepa_jax.measure.kernels import count_kernels
from ijepa_jax.measure.relayouts import count_relayouts
from ijepa_jax.model.attention import compiled_for
from ijepa_jax.model.flops import PEAK_TFLOPS
from ijepa_jax.train.step import init, train_step

GIB = 2**30
NEEDS_LIBTPU = "a plan for TPUs needs libtpu, which compiles on any Linux machine: pip install 'jax[tpu]'"
_MFU = (40, 60)  # percent of the peak that images a second are computed for
_ROOM = 0.95  # share of a chip's memory that a suggestion may fill, its estimate being rough


class Chip(NamedTuple):
    """An accelerator: dense bfloat16 peak in TFLOP/s, GiB that a program may use, bytes/s of memory; None where not known."""

    peak: float | None
    memory: float | None
    bandwidth: float | None = None
    most: tuple[int, ...] = ()  # chips along each side of the largest slice


CHIPS = {  # memory of TPUs as libtpu limits it, of GPUs the three quarters that JAX takes if it is not told otherwise
    "v5e": Chip(PEAK_TFLOPS["v5e"], 15.75, most=(16, 16)),
    "v5p": Chip(PEAK_TFLOPS["v5p"], 95.74, most=(16, 16, 24)),
    "v6e": Chip(PEAK_TFLOPS["v6e"], 31.25, most=(16, 16)),
    **{name: Chip(PEAK_TFLOPS[name], 0.75 * gpu.memory / GIB, gpu.bandwidth) for name, gpu in GPUS.items()},
    "cpu": Chip(None, None),
}


def plan(config: ml_collections.ConfigDict, topology: str, images: int = 0) -> dict[str, Any]:
    """Compiles the training step of these settings for a topology such as "v5e:16x16" or "cpu:8", and tells what it needs.

    No data set is opened and no device computes anything: a run of epochs tells its chip-hours if it is told how many `images`
    there are. Memory is in GiB of one chip; `fits` is None where the chip's memory
    is not known or, as for GPUs, not what the compiler planned for. A program too large for its chip has `fits` False, and
    `suggestions` name settings that should make it fit, by arithmetic.

    Raises:
        ValueError: settings that do not fit each other or the topology, or a topology that there is not.
        ModuleNotFoundError: libtpu is not installed.
    """
    kind, chip, devices = _devices(topology)  # first, as reading another run's settings counts devices
    config = build.completed(config)
    parts = build.parts(config, devices)
    method, mesh, batch_size = parts.method, parts.mesh, config.optim.batch_size
    counted = method.flops()
    with compiled_for(kind):
        step, state, batch = _step(parts)
        lowered = step.lower(state, batch)
    arguments, flops = _bytes((state, batch)) / GIB, sum(counted.values()) if counted else None
    mfus = [mfu for mfu in _MFU if chip.peak and flops]
    shown = build.total_steps(config, images) * batch_size
    result = {
        "method": method.title,
        "topology": topology,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": batch_size,
        "accumulation": config.optim.accumulation,
        "remat": config.model.remat,
        **_compile(lowered, kind, chip, arguments),
        "tflop_per_step": flops and flops * batch_size / 1e12,
        "gflop_per_image": flops and flops / 1e9,
        **{f"images_per_s_at_{mfu}_mfu": mfu / 100 * chip.peak * 1e12 * mesh.size / flops for mfu in mfus},
        **({"images": shown, "chip_hours": chip_hours(flops * shown)} if flops and shown else {}),
        **(method.padding() or {}),
    }
    if result["fits"] is False:
        result["suggestions"] = suggest(result, state_gib=_bytes(state) / GIB, gradient_gib=_bytes(state.params) / GIB)
    return _rounded(result)


def chip_hours(flops: float) -> dict[str, dict[str, float]]:
    """By chip, and by per cent of its dense bfloat16 peak, the hours that so many floating-point operations take one chip."""
    return {chip: {str(mfu): flops / (mfu / 100 * peak * 1e12) / 3600 for mfu in _MFU} for chip, peak in PEAK_TFLOPS.items()}


def _rounded(value: Any) -> Any:
    """Floats to four digits, within dictionaries too."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


_TPUS = tuple(name for name, chip in CHIPS.items() if chip.most)


def _devices(topology: str) -> tuple[str, Chip, list]:
    """JAX's platform and the chip that a topology names, and its devices, which only compile.

    Raises ValueError, ModuleNotFoundError.
    """
    name, _, shape = topology.partition(":")
    sides = [int(side) for side in shape.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else []
    if name not in CHIPS or not sides or (name not in _TPUS and len(sides) > 1 + (name in GPUS)):
        raise ValueError(
            f"no topology {topology!r}: use {', '.join(_TPUS)} (as v5e:4x4 or v5p:2x2x4), {', '.join(GPUS)} (as h100:8, or "
            "h100:2x8 of two hosts) or cpu (as cpu:8)"
        )
    chip = CHIPS[name]
    if name in GPUS:
        return "gpu", chip, gpus.devices(name, *[1] * (len(sides) == 1), *sides)
    if name not in _TPUS:
        return "cpu", chip, _simulated(sides[0])
    if len(sides) > len(chip.most) or any(side > most for side, most in zip(sides, chip.most, strict=False)):
        raise ValueError(f"no topology {topology!r}: the largest slice is {name}:{'x'.join(map(str, chip.most))}")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(NEEDS_LIBTPU) from error
    host = {"chips_per_host_bounds": [1, 1, 1]} if set(sides) == {1} else {}
    try:
        return "tpu", chip, list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **host).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"no topology {topology!r}: {error}") from error


def _simulated(count: int) -> list:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the CPU is in use: it keeps the devices that it has
        if jax.device_count("cpu") != count:
            raise
    return jax.devices("cpu")


def _step(parts: build.Parts) -> tuple[Any, Any, dict[str, Any]]:
    """The jitted step as training has it, and shape structures of the state and of a batch where training places them."""
    config, method, mesh, optimizer = parts.config, parts.method, parts.mesh, parts.optimizer()
    shapes = jax.eval_shape(partial(init, method, optimizer, config.seed))
    state = jax.tree.map(_placed, shapes, sharding.state_shardings(shapes, mesh))
    rows = {**parts.loader.blank(1, method.views()), **method.prepare()(np.zeros(1, np.int64))}
    batch = {
        name: _placed(jax.ShapeDtypeStruct((config.optim.batch_size, *row.shape[1:]), row.dtype), sharding.batch_sharding(mesh))
        for name, row in rows.items()
    }
    options = {"seed": config.seed, "accumulation": config.optim.accumulation}
    step = partial(train_step, method=method, optimizer=optimizer, **options)
    return sharding.jit_step(step, state, mesh), state, batch


def _placed(leaf: jax.ShapeDtypeStruct, place) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _bytes(tree: Any) -> int:
    """Bytes on one device of arrays that are placed."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _compile(lowered: jax.stages.Lowered, kind: str, chip: Chip, arguments: float) -> dict[str, Any]:
    """Compiles, and reads the program; what is too large to be compiled, out of the error."""
    simulated = kind == "cpu"
    # the result is the same for a simulated mesh, since nothing runs, and comes much sooner
    hasten = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True} if simulated else None
    begun, text = time.monotonic(), None
    try:
        compiled = lowered.compile(compiler_options=hasten)
        seconds, text = time.monotonic() - begun, compiled.as_text()
        memory = compiled.memory_analysis()
        returned = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the state comes back where it was
        temporary = (memory.temp_size_in_bytes + returned + memory.generated_code_size_in_bytes) / GIB
        arguments = memory.argument_size_in_bytes / GIB
        total = arguments + temporary
    except jax.errors.JaxRuntimeError as error:
        seconds = time.monotonic() - begun
        total, limit = out_of_memory(str(error))
        if total is None:
            raise
        chip, temporary = chip._replace(memory=limit), total - arguments
    known = chip.memory and (not simulated or arguments > chip.memory)
    return {
        "fits": bool(text and total <= chip.memory) if known else None,
        "argument_gib": arguments,
        "temporary_gib": temporary,
        "total_gib": total,
        "chip_gib": chip.memory,
        "collectives": count_collectives(text) if text else None,
        "relayouts": count_relayouts(text) if text else None,
        **(_kernels(count_kernels(text), chip) if kind == "gpu" and text else {}),
        "compile_s": seconds,
    }


def _kernels(counted: dict[str, Any], chip: Chip) -> dict[str, Any]:
    """What a GPU's program launches and moves, and the time of a step if its products ran at the peak and all else at the
    bandwidth of the memory, one after the other: no program is faster, and none comes near."""
    kinds = counted["kinds"]
    moved = sum(total["bytes"] for kind, total in kinds.items() if kind not in ("product", "attention", "collective"))
    return {
        "kernels": counted["count"],
        "bytes_gb": counted["bytes"] / 1e9,
        "copies": kinds.get("copy", {"count": 0})["count"],
        "kernel_kinds": kinds,
        "largest_kernels": counted["largest"],
        "program_tflop": counted["flops"] / 1e12,
        "roofline_ms": 1e3 * (counted["flops"] / (chip.peak * 1e12) + moved / chip.bandwidth),
    }


def out_of_memory(message: str) -> tuple[float | None, float | None]:
    """GiB that a program needs and GiB that there are, from the compiler's error; None, None if it is another error."""
    found = re.search(r"RESOURCE_EXHAUSTED.*?([\d.]+)([KMGT])\b.*?([\d.]+)([KMGT])\b", message, re.DOTALL)
    if not found:
        return None, None
    unit = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
    return float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]]


def suggest(result: dict[str, Any], state_gib: float, gradient_gib: float) -> list[str]:
    """Settings that should make a program fit, the cheapest first, from what a chip holds of the state and the gradient.

    Temporaries beside the gradient are taken to be activations, which shrink with the images a chip works on at a time.
    """
    data, fsdp, parts = result["mesh"]["data"], result["mesh"]["fsdp"], result["accumulation"]
    activations = max(0.0, result["temporary_gib"] - gradient_gib)
    rows = result["batch_size"] // (result["chips"] * parts)

    def needed(more_parts: int = 1, more_fsdp: int = 1, more_chips: int = 1) -> float:
        gradients = gradient_gib * (2 if parts * more_parts > 1 else 1)  # the sum, and a part's
        return (state_gib + gradients) / more_fsdp + activations / (more_parts * more_chips)

    powers = [2**i for i in range(1, 13)]
    choices = {
        "more_parts": {k: f"--config.optim.accumulation={parts * k}" for k in powers if rows % k == 0},
        "more_fsdp": {k: f"--mesh data={data // k},fsdp={fsdp * k}" for k in powers if data % k == 0},
        "more_chips": {k: f"{result['chips'] * k} chips" for k in powers if rows % k == 0},
    }
    found = []
    if result["remat"] != "full" and state_gib + gradient_gib < _ROOM * result["chip_gib"]:
        found.append("--config.model.remat=full (recomputes activations: far fewer temporaries)")
    for what, changes in choices.items():
        sizes = {change: needed(**{what: factor}) for factor, change in changes.items()}
        smallest = next((change for change, gib in sizes.items() if gib <= _ROOM * result["chip_gib"]), None)
        found += [f"{smallest} (about {sizes[smallest]:.1f} GiB)"] if smallest else []
    return found or [f"more of all: larger fsdp, optim.accumulation and more than {result['chips']} chips"]


def table(result: dict[str, Any]) -> str:
    """The plan as text."""
    chips, mesh = result["chips"], ", ".join(f"{name}={size}" for name, size in result["mesh"].items())
    rows = result["batch_size"] // chips
    lines = [
        f"{result['topology']}: {chips} chips as {mesh}; batch {result['batch_size']}, {rows} images a chip"
        + (f" in {result['accumulation']} parts" if result["accumulation"] > 1 else ""),
        f"memory of a chip  {_verdict(result)}",
        f"  state and batch {result['argument_gib']:10.2f} GiB",
        f"  temporary       {result['temporary_gib']:10.2f} GiB, with the program itself",
    ]
    if result["collectives"] is not None:
        lines += ["collectives of a step" + ("" if result["collectives"] else "  none")]
        for kind, total in result["collectives"].items():
            least = " at least" if "at_least" in total else ""
            lines.append(f"  {kind:20} {total['count']:6}  {total['bytes'] / 2**20:12,.1f} MiB{least}")
        lines += _relayout_lines(result["relayouts"]) if "kernels" not in result else _kernel_lines(result)
    if result["tflop_per_step"] is None:
        lines.append(f"model FLOPs  {result['method']} does not tell them (Method.flops)")
    else:
        each = f"{result['gflop_per_image']:,.1f} GFLOP an image"
        lines.append(f"model FLOPs  {result['tflop_per_step']:,.1f} TFLOP a step, {each}")
    lines += _padding_lines(result) if "lane_padding" in result else []
    lines += [
        f"by arithmetic, not measured: {result[f'images_per_s_at_{mfu}_mfu']:,.0f} images/s at {mfu}% MFU"
        for mfu in _MFU
        if f"images_per_s_at_{mfu}_mfu" in result and result["fits"] is not False
    ]
    if "chip_hours" in result:
        lines.append(
            f"chip-hours of the run's {result['images']:,} images, by arithmetic, at {' and '.join(map(str, _MFU))}% MFU"
        )
        lines.append(
            "  "
            + "; ".join(
                f"{chip} {', '.join(f'{each:,.3g}' for each in hours.values())}" for chip, hours in result["chip_hours"].items()
            )
        )
    lines.append(f"compiled in {result['compile_s']:.1f} s")
    lines += [f"to make it fit, by arithmetic: {suggestion}" for suggestion in result.get("suggestions", ())]
    return "\n".join(lines)


def _relayout_lines(relayouts: dict[str, Any]) -> list[str]:
    least = " at least" if "at_least" in relayouts else ""

    def line(name: str, total: dict[str, int]) -> str:
        return f"  {name:20} {total['count']:6}  {total['bytes'] / 2**20:12,.1f} MiB{least}"

    largest = [(each, each["bytes"] / each["count"] / 2**20) for each in relayouts["largest"]]
    return [
        "relayouts of a step, on a chip" + ("" if relayouts["count"] else "  none"),
        *(line(kind, total) for kind, total in relayouts["kinds"].items()),
        *(f"    largest: {each['count']} of {mib:,.1f} MiB  {each['array']}  {each['op_name']}" for each, mib in largest),
        line("layout kept", relayouts["moves"]),
    ]


def _kernel_lines(result: dict[str, Any]) -> list[str]:
    def line(name: str, total: dict[str, int]) -> str:
        return f"  {name:20} {total['count']:6}  {total['bytes'] / 1e9:12,.2f} GB"

    largest = result["largest_kernels"]
    return [
        f"kernels of a step, on a GPU  {result['kernels']}, moving {result['bytes_gb']:,.1f} GB",
        *(line(kind, total) for kind, total in result["kernel_kinds"].items()),
        *(f"    {line(each['kind'], each).strip()}  {each['array']}  {each['op_name']}" for each in largest),
        f"roofline, not measured  {result['roofline_ms']:,.1f} ms: {result['program_tflop']:,.1f} TFLOP at the peak, what is "
        "no product at the memory's bandwidth",
    ]


def _padding_lines(result: dict[str, Any]) -> list[str]:
    lanes, sizes = result["lane_padding"], result["unfriendly_sizes"]
    dims = ", ".join(f"{name} {dim}" for name, dim in lanes["head_dims"].items())
    return [
        f"index padding  {result['index_padding']:.2%} of model FLOPs",
        f"lane padding on TPUs  {lanes['of_attention']:.1%} of attention's products, {lanes['of_model']:.1%} of model FLOPs"
        f" ({lanes['head_dims_of_model']:.1%} by head dims alone: {dims})",
        f"sizes that are no multiple of 128  {', '.join(sizes) or 'none'}",
    ]


def _verdict(result: dict[str, Any]) -> str:
    total, limit = f"{result['total_gib']:.2f} GiB", f"{result['chip_gib']} GiB"
    if result["fits"] is None:
        return f"{total} as XLA's CPU compiler plans it, on devices that are simulated; an accelerator's will differ"
    return f"{total} of {limit}: {'fits' if result['fits'] else 'does NOT fit'}"
