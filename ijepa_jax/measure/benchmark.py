"""The real training step, timed: images a second, share of the chip's peak, compilation, memory.

Needs the core's libraries only, so that it runs on a bare GPU image; runs' settings and data sets come by way of configured.py.
"""

import contextlib
import dataclasses
import gzip
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ijepa_jax.devices.sharding import jit_step, make_mesh, place_batch, state_shardings
from ijepa_jax.measure.hlo import op_name, parse
from ijepa_jax.methods import IJepa, Method
from ijepa_jax.methods.optim import Optimizer
from ijepa_jax.model.attention import chosen
from ijepa_jax.model.flops import peak_tflops
from ijepa_jax.model.predictor import Predictor
from ijepa_jax.model.vit import ViT
from ijepa_jax.settings.architectures import ATTENTION, REMAT, SIZES
from ijepa_jax.settings.axes import modality
from ijepa_jax.train.step import State, init, train_step


@dataclasses.dataclass(frozen=True)
class FixedMasks:
    """Contexts and targets of one length, drawn at random from each image's patches: what a step costs depends on no more.

    Targets are drawn from outside of the context as far as there are patches.
    """

    grid: tuple[int, ...]
    context_length: int
    target_length: int
    num_targets: int = 4
    num_context_blocks: int = 1
    mode: str = "subset"

    def __call__(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Masks of the images with these global indices, as `MaskSampler` gives them."""
        patches, count = math.prod(self.grid), len(index)
        if max(self.context_length, self.target_length) > patches:
            raise ValueError(f"a grid of {self.grid} has {patches} patches, fewer than a context or target is to have")
        rng = np.random.default_rng(int(index[0]))

        def cells(blocks: int, length: int, last: np.ndarray | float = 0) -> np.ndarray:
            order = (rng.random((count, blocks, patches)) + last).argsort(axis=-1)
            return np.sort(order[..., :length], axis=-1).astype(np.int32)

        context = cells(self.num_context_blocks, self.context_length)
        inside = (context[..., None] == np.arange(patches)).any(axis=(1, 2))[:, None]  # [B, 1, N]
        return {
            "context": context,
            "target": cells(self.num_targets, self.target_length, last=inside),
            "target_length": np.full((count, self.num_targets), self.target_length, np.int32),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """A step that is timed: what it trains, where, on how much."""

    method: Method
    optimizer: Optimizer
    mesh: Mesh
    batch: int  # images a step
    pixels: tuple[int, ...]  # the shape of an image, video or signal, with its channels
    facts: dict[str, Any]  # what tells it from others
    parts: int = 1  # that a batch is computed in


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of a step that no configuration tells: of the model, of images in pixels, of contexts and targets in patches."""

    model: str = "vit_huge"
    image: int = 224
    patch: int = 14
    batch: int = 128
    context: int = 72
    target: int = 42
    blocks: int = 4
    predictor_width: int = 384
    predictor_depth: int = 12
    dtype: str = "bfloat16"
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    context_blocks: int = 1
    predictor_context: str = "joint"
    target_last_block: str = "all"
    target_float8: bool = False
    width: int = 0  # these two override the named size
    depth: int = 0

    def work(self) -> Work:
        """The step of these sizes. Raises ValueError, naming the flag, for what there is not."""
        known = {"model": tuple(SIZES), "dtype": ("float32", "bfloat16"), "attention": ATTENTION, "remat": REMAT}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"--{name} {getattr(self, name)!r} is not known: it must be one of {', '.join(values)}")
        size = SIZES[self.model]
        shared = {"dtype": jnp.dtype(self.dtype), "attention": self.attention, "scan": self.scan, "remat": self.remat}
        encoder = ViT(self.patch, self.width or size.width, self.depth or size.depth, size.heads, size.mlp_ratio, **shared)
        predictor = Predictor(
            self.predictor_width, self.predictor_depth, size.heads, **shared, context_mode=self.predictor_context
        )
        grid = (self.image // self.patch,) * 2
        masks = FixedMasks(grid, self.context, self.target, self.blocks, self.context_blocks)
        less_work = {"target_last_block": self.target_last_block, "target_float8": self.target_float8}
        method = IJepa(encoder, predictor, masks, (self.image, self.image), **less_work)
        optimizer = method.optimiser(  # whose numbers do not matter
            total_steps=10**5, warmup_steps=10**3, start_lr=1e-4, peak_lr=1e-3, final_lr=1e-6, weight_decay=0.04,
            final_weight_decay=0.4, momentum=0.996, final_momentum=1.0,
        )  # fmt: skip
        used = chosen(self.attention, encoder.dtype, encoder.width // encoder.heads)
        facts = {**dataclasses.asdict(self), "attention": used, "width": encoder.width, "depth": encoder.depth}
        return Work(method, optimizer, make_mesh(), self.batch, (self.image, self.image, 3), facts)


def benchmark(
    work: Work,
    *,
    steps: int = 20,
    warmup: int = 5,
    feed: Iterator[dict[str, np.ndarray]] | None = None,
    compiler_options: dict | None = None,
) -> dict[str, Any]:
    """Times a method's training step on all devices: donated state, data on the devices, median of `steps` after `warmup`.

    Returns the sizes, `images_per_s`, `ms_per_step`, `model_gflop_per_image` (see flops.py), `model_tflop_per_s`, `mfu` (its
    share of the chips' bfloat16 peak, None for chips not known), `first_step_s` and `compile_s` (the first step, and how much
    longer than others it took), `compilations`, `peak_gib` (of one device, None where it does not tell) and `loss`. With
    `feed`, training batches as a loader makes them, the step is fed as well: `fed` has its `images_per_s`, their share of the
    rate without, and the share of the time that the step waited.
    """
    mesh = work.mesh
    if work.batch % mesh.size:
        raise ValueError(f"--batch {work.batch} does not divide among {mesh.size} devices")
    state, step = _prepared(work, compiler_options)
    batch = _random_batch(work)
    begun = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    first = time.perf_counter() - begun
    state, seconds, metrics = _timed(step, state, batch, steps, warmup)
    parts, peak = work.method.flops(), peak_tflops(jax.devices()[0].device_kind)
    flops = sum(parts.values()) if parts else None
    rate = work.batch / seconds
    result = {
        "peer": "ijepa_jax", "jax": jax.__version__, "device": jax.devices()[0].device_kind, "devices": mesh.size,
        **work.facts,
        "images_per_s": rate, "ms_per_step": 1e3 * seconds, "model_gflop_per_image": flops and flops / 1e9,
        "model_tflop_per_s": flops and flops * rate / 1e12,
        "mfu": flops * rate / (peak * 1e12 * mesh.size) if peak and flops else None,
        "first_step_s": first, "compile_s": max(0.0, first - seconds), "compilations": step._cache_size(),
        "peak_gib": _peak_gib(), "loss": float(metrics["loss"]),
    }  # fmt: skip
    if feed is not None:
        result["fed"] = _fed(work, feed, step, state, (warmup, steps), rate)
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in result.items()}


def _prepared(work: Work, compiler_options: dict | None = None) -> tuple[State, Callable]:
    fresh = jax.jit(partial(init, work.method, work.optimizer, 0))
    state = jax.jit(fresh, out_shardings=state_shardings(jax.eval_shape(fresh), work.mesh))()
    step = partial(train_step, method=work.method, optimizer=work.optimizer, seed=0, accumulation=work.parts)
    return state, jit_step(step, state, work.mesh, compiler_options)


def _random_batch(work: Work) -> dict[str, jax.Array]:
    kind = modality(work.pixels[:-1])
    plain = {kind: np.zeros((work.batch, *work.pixels), np.float32 if kind == "signal" else np.uint8)}
    rooms = {name: room for of in work.method.views() for name, room in of.blank(work.batch).items()} or plain
    rng = np.random.default_rng(0)
    shown = {
        name: rng.integers(0, 256, room.shape, np.uint8) if room.dtype == np.uint8 else rng.random(room.shape, np.float32)
        for name, room in rooms.items()
    }
    return place_batch({**shown, **work.method.prepare()(np.arange(work.batch))}, work.mesh)


def _timed(step: Callable, state: State, batch: dict, steps: int, warmup: int) -> tuple[State, float, dict]:
    """The state after them, the median of the seconds of `steps` steps, each waited for, and the last one's metrics."""
    times = []
    for _ in range(warmup + steps):
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - begun)
    return state, statistics.median(times[warmup:]), metrics


def profile(work: Work, *, steps: int = 5, warmup: int = 5) -> tuple[float, dict[str, float]]:
    """Where the time of a step goes, by JAX's profiler: its milliseconds, and those of its operations.

    Operations are named by what they come from in the program (`transpose` is backward; numbers of blocks are *), a fusion
    by its result, the longest first. Devices and threads that work at once are added up. Empty where a device tells nothing.
    """
    state, step = _prepared(work)
    batch = _random_batch(work)
    compiled = step.lower(state, batch).compile()
    lines = {line.name: line for line in parse(compiled.as_text())[0]}
    state = _timed(compiled, state, batch, warmup, 0)[0]
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = _timed(compiled, state, batch, steps, 0)[1]
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spent = Counter()
    for event in events:
        if event.get("ph") == "X" and (line := lines.get(event.get("args", {}).get("hlo_op"))):
            spent[op_name(line, lines) or line.operation] += event["dur"] / 1e3 / steps
    return 1e3 * seconds, dict(spent.most_common())


def _fed(work: Work, feed: Iterator, step: Callable, state: State, counts: tuple[int, int], rate: float) -> dict[str, Any]:
    """The same steps fed by the loader, as training feeds them: the next batch is placed while a step runs."""
    (warmup, steps), waited, late, count = counts, 0.0, None, 0
    with contextlib.closing(feed) as stream:
        for index in range(warmup + steps):
            if index == warmup:
                jax.block_until_ready(late)
                begun, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            batch = place_batch(next(stream), work.mesh)
            waited += time.perf_counter() - asked
            state, metrics = step(state, batch)
            if late is not None:
                jax.device_get(late)  # of the step before: this one runs meanwhile
            late = metrics
            count += index >= warmup
        jax.block_until_ready(late)
    seconds = time.perf_counter() - begun
    fed = work.batch * count / seconds
    return {
        "images_per_s": round(fed, 1),
        "share": round(fed / rate, 4),
        "wait_share": round(waited / seconds, 4),
    }


def _peak_gib() -> float | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None
