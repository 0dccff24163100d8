"""Prints what masks look like on average, as one line of JSON.

    python tests/mask_statistics.py --grid 14 --batch 128 --batches 300 --mode reference

Mode `reference` cuts contexts as the released code does, to the shortest of each batch instead of a static length; mode
`ijepa` reports what the default sampler hands to training. Coverage of a cell is the share of images that hold it.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

try:
    import ijepa_jax  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ijepa_jax.methods.masks import STRATEGIES, MaskSampler, keep_first

CONTEXT_PATCHES = {14: 48, 16: 72, 28: 272}
REFERENCE_SHORTEST = 11  # the released code accepts contexts of more than 10 patches


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=int, default=14, help="rows and columns of patches")
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--mode", choices=("reference", "ijepa"), default="ijepa")
    parser.add_argument("--context-patches", type=int, help="K; default 48, 72, 272 on grids of 14, 16, 28, else a quarter")
    parser.add_argument("--strategy", choices=STRATEGIES, default="multiblock")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_sampler(arguments: argparse.Namespace) -> MaskSampler:
    grid, context_patches = arguments.grid, arguments.context_patches
    if context_patches is None:  # the ablated strategies keep all they can
        quarter = CONTEXT_PATCHES.get(grid, grid * grid // 4)
        context_patches = quarter if arguments.strategy == "multiblock" else 0
    return MaskSampler(
        (grid, grid),
        strategy=arguments.strategy,
        mode="reference" if arguments.mode == "reference" else "subset",
        context_patches=context_patches,
        batch_size=arguments.batch,
        seed=arguments.seed,
    )


def cut_contexts(sampler: MaskSampler, index: np.ndarray, masks: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts before and after the cut, and the union of targets, bool [B, N], as the mode has them."""
    if sampler.mode == "reference":
        blocks = sampler.blocks(index, REFERENCE_SHORTEST)
        before = blocks.available[:, 0]
        return before, keep_first(before, before.sum(-1).min()), blocks.union
    blocks = sampler.blocks(index, sampler.context_length)
    after = np.zeros_like(blocks.union)
    np.put_along_axis(after, masks["context"][:, 0], True, -1)
    return blocks.available[:, 0], after, blocks.union


def measure(sampler: MaskSampler, batch: int, batches: int) -> dict:
    """Averages over `batches` batches of `batch` consecutive images."""
    sampler(np.arange(batch))  # the first call prepares tables
    sums = np.zeros((3, np.prod(sampler.grid)))
    seconds, lengths = [], Counter()
    for number in range(batches):
        index = np.arange(number * batch, (number + 1) * batch)
        start = time.perf_counter()
        masks = sampler(index)
        seconds.append(time.perf_counter() - start)
        sums += [cells.sum(0) for cells in cut_contexts(sampler, index, masks)]
        lengths.update(masks["target_length"].ravel().tolist())
    images = batch * batches
    before, after, union = (sums.sum(-1) / images).tolist()
    _, context, target = (sums / images).reshape(3, *sampler.grid).tolist()
    return {
        "context_before_cut_mean": before,
        "context_after_cut_mean": after,
        "target_lengths": {length: count / lengths.total() for length, count in sorted(lengths.items())},
        "union_of_targets_mean": union,
        "coverage_context": context,
        "coverage_target": target,
        "microseconds_per_image": float(np.median(seconds)) / batch * 1e6,
    }


if __name__ == "__main__":
    arguments = parse_arguments()
    print(json.dumps(measure(make_sampler(arguments), arguments.batch, arguments.batches)))
