"""Trains the same few steps on several meshes and compares them with one device; prints one JSON line.

    python tests/equivalence.py                                                     # I-JEPA, small
    python tests/equivalence.py --config configs/tiny.py --config.method=FILE.py:CLASS  # any method, by a run's settings

Cells are meshes of simulated CPU devices, data x fsdp: 8x1, 4x2 and 1x8 in one process, and 4x1 and 2x2 in two real
processes of two devices each, which talk over loopback (`2 processes: 4x1`). For each:

- `loss_error`: the largest relative difference of a step's loss
- `weight_error`: the largest difference of a tensor (trained or target) in units of its norm, or of how far AdamW can have
  moved it (the sum of learning rates), if that is more; key biases, whose gradient is zero but for rounding, are left out
- `largest`: that tensor
- `compilations` of the step

The exit code is 1 if an error is above 1e-5 or a step compiled twice. With a configuration the batch, the data and the
networks are its own; make them small (`--config.KEY=VALUE`), and its batch a multiple of eight. AdamW's `eps` is 1e-3 then,
as with 1e-8 gradients that are zero but for rounding, of whatever parameter, would move it as far as any other's.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from functools import partial

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BAR = 1e-5
CELLS = {
    "1x1": (1, 1, 1), "8x1": (1, 8, 1), "4x2": (1, 4, 2), "1x8": (1, 1, 8),
    "2 processes: 4x1": (2, 4, 1), "2 processes: 2x2": (2, 2, 2),
}  # fmt: skip
BATCH = 16


def train(options: argparse.Namespace) -> None:
    """A process of a cell: trains, and has the first one write losses and weights."""
    import jax

    from ijepa_jax.devices import processes

    if options.processes > 1:
        processes.start(options.coordinator, options.processes, options.process)
    from ijepa_jax.devices import sharding
    from ijepa_jax.train.step import init, train_step

    method, optimizer, batches = small_run() if not options.config else configured_run(options.config, options.settings)
    mesh = sharding.make_mesh(options.data, options.fsdp)
    fresh = partial(init, method, optimizer, 0)
    places = sharding.state_shardings(jax.eval_shape(fresh), mesh)
    state = jax.jit(fresh, out_shardings=places)()
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    step = partial(train_step, method=method, optimizer=optimizer, seed=0, accumulation=options.accumulation)
    step = sharding.jit_step(step, state, mesh)

    def placed():
        with contextlib.closing(batches()) as stream:
            for batch in stream:
                yield sharding.place_batch({key: batch[key] for key in batch.keys() - {"index", "source", "bad"}}, mesh)

    state = method.begin(state, placed)
    losses, reach = [], 0.0
    with contextlib.closing(placed()) as stream:
        for _ in range(options.steps):
            state, metrics = step(state, next(stream))
            losses.append(float(metrics["loss"]))
            reach += float(metrics["learning_rate"])
    tensors = jax.tree_util.tree_leaves_with_path({"params": state.params, "target": state.target})
    weights = {jax.tree_util.keystr(path, simple=True, separator="/"): processes.fetch(leaf) for path, leaf in tensors}
    if processes.is_first():
        np.savez(options.out, losses=losses, reach=reach, split=split, compilations=step._cache_size(), **weights)


def small_run() -> tuple:
    """I-JEPA, its optimiser and batches of noise; wide enough that its larger tensors are split along fsdp."""
    import jax

    from ijepa_jax.data import arrays, pipeline
    from ijepa_jax.methods import IJepa
    from ijepa_jax.methods.masks import MaskSampler
    from ijepa_jax.methods.optim import make_optimizer
    from ijepa_jax.model.predictor import Predictor
    from ijepa_jax.model.vit import ViT

    sampler = MaskSampler((6, 6), context_patches=9)
    method = IJepa(
        ViT(patch=4, width=192, depth=2, heads=3, drop_path=0.1), Predictor(width=144, depth=2, heads=3), sampler, (24, 24)
    )
    optimizer = make_optimizer(
        total_steps=100, warmup_steps=10, start_lr=2e-4, peak_lr=1e-3, final_lr=1e-6, weight_decay=0.04, final_weight_decay=0.4,
        momentum=0.99, final_momentum=1.0, clip=1.0,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (64, 30, 28, 3), np.uint8)
    share = pipeline.Share(jax.process_index(), jax.process_count())
    stream = partial(
        pipeline.train_batches, arrays.ArraySource(pixels, {}, "noise"), sampler, pipeline.View((24, 24)), seed=0,
        batch_size=BATCH, share=share,
    )  # fmt: skip
    return method, optimizer, stream


def configured_run(file: str, settings: list[str]) -> tuple:
    """The method, the optimiser and the batches of a run's settings."""
    from ijepa_jax import build
    from ijepa_jax import cli as commandline

    config = commandline.read(["pretrain", "--config", file, *settings]).config
    config = build.completed(config)
    config.optim.eps = 1e-3
    method, loader = build.method(config), build.loader(config)
    data = loader.open("train")
    return (
        method,
        build.optimizer(config, method, len(data)),
        lambda: loader.train_batches(data, method.prepare(), views=method.views()),
    )


def run_cell(name: str, options: argparse.Namespace, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Runs a cell's processes; returns what the first of them wrote."""
    count, data, fsdp = CELLS[name]
    out = folder / f"{name.replace(' ', '_')}.npz"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(data * fsdp // count)}
    started = []
    for process in range(count):
        arguments = {
            "data": data, "fsdp": fsdp, "steps": options.steps, "accumulation": options.accumulation, "processes": count,
            "process": process, "coordinator": coordinator, "out": out, "config": options.config,
        }  # fmt: skip
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in arguments.items()), *options.settings]
        output = (folder / f"{out.stem}.{process}.log").open("w")
        started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=600) for process in started]
    if any(codes):
        logs = [(folder / f"{out.stem}.{process}.log").read_text()[-2000:] for process in range(count)]
        raise SystemExit(f"cell {name} failed with exit codes {codes}:\n" + "\n".join(logs))
    with np.load(out) as saved:
        return dict(saved)


def without_key_bias(name: str, tensor: np.ndarray) -> np.ndarray:
    """A bias of queries, keys and values without its middle third; all else as it is."""
    if not name.endswith("qkv/bias"):
        return tensor
    third = tensor.shape[-1] // 3
    return np.concatenate([tensor[..., :third], tensor[..., 2 * third :]], axis=-1)


def compare(ours: dict[str, np.ndarray], one: dict[str, np.ndarray]) -> dict[str, float]:
    """The errors of a cell against one device."""
    errors = {}
    for name in one.keys() - {"losses", "reach", "split", "compilations"}:
        a, b = without_key_bias(name, ours[name]).astype(float), without_key_bias(name, one[name]).astype(float)
        norm = max(np.linalg.norm(b), float(one["reach"]) * np.sqrt(b.size))
        errors[name] = np.linalg.norm(a - b) / norm if norm else float(np.any(a))
    return {
        "loss_error": float(np.max(np.abs(ours["losses"] / one["losses"] - 1))),
        "weight_error": float(np.max([*errors.values()])),  # not max, which would drop a NaN
        "largest": max(errors, key=errors.get),
        "compilations": int(ours["compilations"]),
        "split_tensors": int(ours["split"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--accumulation", type=int, default=1, help="parts that each batch is computed in")
    parser.add_argument("--cells", nargs="*", choices=[*CELLS][1:], default=[*CELLS][1:])
    for name in ("data", "fsdp", "processes", "process"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    for name in ("coordinator", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--config", default="", help="a configuration file, whose method is trained")
    options, options.settings = parser.parse_known_args()
    if unknown := [setting for setting in options.settings if not options.config or not setting.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.out:
        train(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        one, *others = (run_cell(name, options, pathlib.Path(folder)) for name in ("1x1", *options.cells))
    cells = {name: compare(other, one) for name, other in zip(options.cells, others, strict=True)}
    worst = float(np.max([[cell["loss_error"], cell["weight_error"]] for cell in cells.values()]))
    print(json.dumps({"cells": cells, "worst": worst}))
    return int(not worst <= BAR or any(cell["compilations"] != 1 for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
