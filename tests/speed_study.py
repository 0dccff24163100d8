"""Settles by measurement what makes a step fast on this machine; prints a line of JSON for each thing measured, then a table.

    python tests/speed_study.py decisive --peer torch_ijepa.py --seconds 480  # first on a GPU: what decides most, in this order
    python tests/speed_study.py attention                  # cuDNN or XLA, for each number of tokens and head width
    python tests/speed_study.py options --model vit_large  # scan, remat, batch size, compiler options, less work: one at a time
    python tests/speed_study.py table --peer torch_ijepa.py  # B/16, L/16, H/14, H/16-448 beside PyTorch, eager and compiled
    python tests/speed_study.py profile --model vit_huge   # where the time of a step goes
    python tests/speed_study.py growth --picture FILE.png  # time against batch, tokens, width, depth, with fitted lines

`--small` takes sizes for a CPU; `--seconds` is when it ends, `--row` what one measurement may take; `--out` is a file that
gets each line when it is there. Only the core's libraries are needed, but for the picture. Each step is measured in a process
of its own, so that neither memory nor its peak is another's. What does not run, for want of memory or time or because the
device cannot, is a line with its error. With JAX_COMPILATION_CACHE_DIR what was compiled once is not compiled again.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import launch
from ijepa_jax.measure import benchmark
from ijepa_jax.measure.benchmark import Workload
from ijepa_jax.model.attention import attend
from ijepa_jax.settings.architectures import SIZES

ROOT = Path(__file__).resolve().parent.parent
TOKENS = (50, 72, 114, 196, 256, 320)
HEAD_WIDTHS = (24, 32, 64, 80, 88)
_LEAST = 15  # seconds, under which no measurement is begun
ROWS = 2**15  # tokens in all, so that every shape has about the same linear layers around it

TABLE = {  # the published runs' models, with the static lengths of their contexts and targets
    "B/16": Workload("vit_base", 224, 16, 256, 48, 42, predictor_depth=6),
    "L/16": Workload("vit_large", 224, 16, 128, 48, 42, predictor_depth=12),
    "H/14": Workload("vit_huge", 224, 14, 128, 72, 56, predictor_depth=12),
    "H/16-448": Workload("vit_huge", 448, 16, 32, 272, 168, predictor_depth=12),
}
SMALL = Workload("vit_nano", 32, 4, 64, 24, 12, predictor_width=64, predictor_depth=2, dtype="float32")
COMPILER_OPTIONS = {
    "gpu": (
        {"xla_gpu_enable_cublaslt": True, "xla_gpu_enable_triton_gemm": False},  # biases within products
        {"xla_gpu_enable_latency_hiding_scheduler": True},
        {"xla_gpu_enable_command_buffer": ""},
        {"xla_gpu_enable_triton_gemm": False},
        {"xla_gpu_enable_cudnn_layer_norm": True},
    ),
    "cpu": ({"xla_cpu_prefer_vector_width": "512"}, {"xla_cpu_enable_fast_math": True}),
}


def decisive(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The published sizes beside compiled PyTorch; of the smallest, what may be chosen; eager PyTorch, and a profile."""
    sizes = {"small": SMALL} if arguments.small else {name: TABLE[name] for name in ("B/16", "H/14", "L/16")}
    for name, work in sizes.items():
        yield {"model": name, "peer": "ijepa_jax", **_tried(lambda w=work: _measured(w, arguments))}
        if arguments.peer:
            yield {"model": name, "peer": "torch, compiled", **_tried(lambda w=work: _peer(w, arguments, ("--compile",)))}
    name, work = next(iter(sizes.items()))
    for attention in ("xla", "cudnn"):
        changed = dataclasses.replace(work, attention=attention)
        yield {"model": name, "peer": "ijepa_jax", "attention": attention, **_tried(lambda w=changed: _measured(w, arguments))}
    for chosen in COMPILER_OPTIONS[_backend()]:  # the loss tells whether numbers are still right
        yield {"model": name, "peer": "ijepa_jax", **chosen, **_tried(lambda c=chosen: _measured(work, arguments, c))}
    for name, work in sizes.items() if arguments.peer else ():
        yield {"model": name, "peer": "torch", **_tried(lambda w=work: _peer(w, arguments, ()))}
    yield from profile(arguments)


def attention(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Forward and backward of one attention layer, in each implementation."""
    rows, heads = (2**11, 2) if arguments.small else (ROWS, 16)
    for tokens in TOKENS[:2] if arguments.small else TOKENS:
        for width in HEAD_WIDTHS[:2] if arguments.small else HEAD_WIDTHS:
            for padded in (False, True):
                for implementation in ("xla", "cudnn"):
                    shape = {"tokens": tokens, "head_width": width, "padded": padded, "attention": implementation}
                    yield {**shape, **_tried(lambda s=shape: {"ms": _attention_ms(rows // s["tokens"], heads, **s)})}


def _attention_ms(batch: int, heads: int, tokens: int, head_width: int, padded: bool, attention: str) -> float:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    q, k, v, gradient = (jax.random.normal(jax.random.key(n), (batch, tokens, heads * head_width), dtype) for n in range(4))
    lengths = jnp.full(batch, tokens - 4) if padded else None

    @jax.jit
    def run(q, k, v, gradient):
        out, backward = jax.vjp(lambda *qkv: attend(*qkv, heads, lengths, attention), q, k, v)
        return out, backward(gradient)

    jax.block_until_ready(run(q, k, v, gradient))
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        jax.block_until_ready([run(q, k, v, gradient) for _ in range(5)])
        times.append((time.perf_counter() - begun) / 5)
    return 1e3 * statistics.median(times)


def options(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each option by itself beside the plain step."""
    plain = _workload(arguments)
    if arguments.batch:
        plain = dataclasses.replace(plain, batch=arguments.batch)
    changes: list[dict[str, Any]] = [
        {}, {"attention": "xla"}, {"scan": True}, {"remat": "dots"}, {"remat": "full"}, {"batch": plain.batch // 2},
        {"batch": plain.batch * 2}, {"target_last_block": "targets"}, {"target_last_block": "distinct"},
        {"predictor_context": "alone"}, {"target_float8": True}, {"context_blocks": 2},
    ]  # fmt: skip
    for change in changes:
        yield {**change, **_tried(lambda c=change: _measured(dataclasses.replace(plain, **c), arguments))}
    for chosen in COMPILER_OPTIONS[_backend()]:
        yield {**chosen, **_tried(lambda c=chosen: _measured(plain, arguments, c))}
    yield {"again": "plain", **_tried(lambda: _measured(plain, arguments))}


def table(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The published models here and in PyTorch, eager and compiled, in turn."""
    for name, work in ({"small": SMALL} if arguments.small else TABLE).items():
        for choice in ("xla", "cudnn") if launch.accelerator_at_hand() else ("xla",):
            found = _tried(lambda w=work, a=choice: _measured(dataclasses.replace(w, attention=a), arguments))
            yield {"model": name, "peer": f"ijepa_jax, {choice}", **found}
        for how in ((), ("--compile",)) if arguments.peer else ():
            found = _tried(lambda w=work, h=how: _peer(w, arguments, h))
            yield {"model": name, "peer": "torch" + ", compiled" * bool(how), **found}


def _peer(work: Workload, arguments: argparse.Namespace, how: tuple[str, ...]) -> dict[str, Any]:
    sizes = ("model", "image", "patch", "batch", "context", "target", "blocks", "predictor_width", "predictor_depth")
    flags = [f"--{name.replace('_', '-')}={getattr(work, name)}" for name in sizes]
    found = _printed([arguments.peer, *flags, f"--steps={arguments.steps}", *how], arguments)
    return {key: found[key] for key in ("images_per_s", "ms_per_step", "model_tflop_per_s", "peak_gib")}


def profile(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The operations that take longest, and what all of them take together beside the step."""
    step_ms, spent = benchmark.profile(_workload(arguments).work(), steps=arguments.steps)
    total = sum(spent.values())
    for name, ms in list(spent.items())[:40]:
        yield {"operation": name, "ms": ms, "share": ms / total}
    yield {"operation": "all", "ms": total, "step_ms": step_ms}


def growth(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The time of a step against one size at a time, the others as they are."""
    plain = _workload(arguments)
    side, size = plain.image // plain.patch, SIZES[plain.model]
    sizes: dict[str, list[tuple[int, dict[str, int]]]] = {
        "batch": [(n, {"batch": n}) for n in _around(plain.batch)],
        "tokens": [
            (n * n, {"image": n * plain.patch, **_lengths(plain, n * n / side**2)}) for n in (side // 2, side, side * 3 // 2)
        ],
        "width": [
            (int(size.width * n), {"width": int(size.width * n), "predictor_width": int(plain.predictor_width * n)})
            for n in (0.5, 1, 1.5, 2)
        ],
        "depth": [(int(size.depth * n), {"depth": int(size.depth * n)}) for n in (0.5, 1, 2, 3)],
    }
    for what, values in sizes.items():
        found = []
        for value, change in values:
            measured = _tried(lambda c=change: _measured(dataclasses.replace(plain, **c), arguments))
            yield {"size": what, "value": value, **measured}
            if "error" not in measured:
                found.append((value, measured["ms_per_step"], measured["gflop_per_step"]))
        yield {"size": what, **fit(found)}


def _around(value: int) -> list[int]:
    return [max(1, value // 4), max(1, value // 2), value, value * 2]


def _lengths(plain: Workload, factor: float) -> dict[str, int]:
    return {"context": max(4, round(plain.context * factor)), "target": max(1, round(plain.target * factor))}


def fit(points: list[tuple[float, float, float]]) -> dict[str, float]:
    """(size, ms, GFLOP of a step) -> the line through sizes and ms, and the exponents by which ms and GFLOP grow with size."""
    if len(points) < 2:
        return {"error": "fewer than two sizes ran"}
    sizes, times, flops = np.array(points, float).T
    slope, intercept = np.polyfit(sizes, times, 1)
    exponents = [np.polyfit(np.log(sizes), np.log(values), 1)[0] for values in (times, flops)]
    worst = np.abs(times - (intercept + slope * sizes)).max() / times.max()
    return {
        "ms_per_unit": float(slope), "ms_at_zero": float(intercept), "worst_residual": float(worst),
        "exponent_ms": float(exponents[0]), "exponent_flops": float(exponents[1]),
    }  # fmt: skip


def _workload(arguments: argparse.Namespace) -> Workload:
    if arguments.small:
        return SMALL
    return next(work for work in TABLE.values() if work.model == arguments.model)


def _measured(work: Workload, arguments: argparse.Namespace, compiler_options: dict | None = None) -> dict[str, Any]:
    """A step timed by `launch.py benchmark` in a process of its own: memory of the device, and its peak, are that step's."""
    given = {name: value for name, value in dataclasses.asdict(work).items() if value is not False}
    flags = [f"--{name.replace('_', '-')}" + (f"={value}" * (value is not True)) for name, value in given.items()]
    options = ",".join(f"{name}={value}" for name, value in (compiler_options or {}).items())
    command = [ROOT / "launch.py", "benchmark", *flags, f"--steps={arguments.steps}", f"--compiler-options={options}"]
    found = _printed(command, arguments)
    kept = ("images_per_s", "ms_per_step", "model_tflop_per_s", "mfu", "peak_gib", "first_step_s", "attention", "loss")
    return {**{key: found[key] for key in kept}, "gflop_per_step": found["model_gflop_per_image"] * work.batch}


def _backend() -> str:
    return "gpu" if launch.accelerator_at_hand() else "cpu"


def _printed(command: list[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a Python program prints as its last line of JSON, within the time that a measurement may take.

    Raises RuntimeError with its last line of errors, and subprocess.TimeoutExpired.
    """
    seconds = min(arguments.row, arguments.ends - time.monotonic())
    if seconds < _LEAST:
        raise RuntimeError("no time left")
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except Exception as error:  # whatever a compiler or a device says: the others are still to be measured
        return {"error": " ".join(str(error).split())[:300]}


def picture(found: list[dict[str, Any]], path: str) -> None:
    """Draws the growth of a step's time with each size, and the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(line["size"] for line in found))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), layout="constrained")
    for name, axis in zip(names, axes, strict=True):
        lines = [line for line in found if line["size"] == name]
        points = np.array([(line["value"], line["ms_per_step"]) for line in lines if "ms_per_step" in line])
        axis.plot(*points.T, "o")
        for line in lines:
            if "ms_per_unit" in line:
                ends = np.array([0, points[:, 0].max()])
                axis.plot(ends, line["ms_at_zero"] + line["ms_per_unit"] * ends, lw=1)
        axis.set(xlabel=name, ylabel="ms a step", ylim=(0, None), xlim=(0, None))
    figure.savefig(path, dpi=120)


def as_table(found: list[dict[str, Any]]) -> str:
    """Measurements as Markdown."""
    columns = list(dict.fromkeys(key for line in found for key in line))
    rows = [[f"{v:.4g}" if isinstance(v := line.get(key, ""), float) else str(v) for key in columns] for line in found]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    studies = {study.__name__: study for study in (decisive, attention, options, table, profile, growth)}
    parser.add_argument("study", choices=studies)
    parser.add_argument("--model", choices=sorted({work.model for work in TABLE.values()}), default="vit_large")
    parser.add_argument("--batch", type=int, default=0, help="of `options`, instead of the table's")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--seconds", type=float, default=540, help="that all measurements may take")
    parser.add_argument("--row", type=float, default=180, help="seconds that one may take")
    parser.add_argument("--out", default="", help="a file that each measurement is added to as a line of JSON")
    parser.add_argument("--peer", default="", help="the PyTorch program that `table` runs as well")
    parser.add_argument("--picture", default="", help="where `growth` draws its lines")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    arguments = parser.parse_args()
    launch.keep_freed_memory()
    arguments.ends, found = time.monotonic() + arguments.seconds, []
    for line in studies[arguments.study](arguments):
        found.append(line)
        print(json.dumps(line), flush=True)
        if arguments.out:
            with Path(arguments.out).open("a") as file:
                file.write(json.dumps(line) + "\n")
        if time.monotonic() > arguments.ends:
            print(f"stopped after {arguments.seconds:.0f} s; the rest was not measured", file=sys.stderr)
            break
    print(as_table(found))
    if arguments.picture and arguments.study == "growth":
        picture(found, arguments.picture)


if __name__ == "__main__":
    main()
