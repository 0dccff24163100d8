"""A few thousand images of one's own, on a laptop's processor: a small ViT that follows from their size and number.

    python launch.py pretrain --config configs/folder_small.py --config.data.name=folder:PATH --workdir runs/mine

for 64x64 pixels; others by `--config.data.image_size=96,96`. These two settings are enough: `derive` makes the others of them
(docs/small_data.md has the table, and what to expect).

Hardware: one of two CPU cores. Cost: 2015 s (commit b9cf67c).
Expected, in per cent (trained / random init / pixels), tiles of 27 photographs, 3 seeds, processors differing by a few points:
linear 70.8 ± 2.4 / 52.4 ± 0.1 / 31.0, knn 63.1 ± 0.4 / 52.1 ± 0.7 / 38.8.
"""

import math
from collections.abc import Callable, Collection

import ml_collections

from configs import quickstart

EPOCHS, FEWEST, MOST = 60, 5000, 30_000  # steps count for more than images do, but not without end


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run before its images are known."""
    config = quickstart.get_config()
    config.masks.strategy = "random"
    config.masks.context_patches = 0  # all that are not hidden
    config.data.name = "folder:images"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optim.momentum = 0.996
    config.probe.test_images = 5000
    derive(config)
    return config


def derive(config: ml_collections.ConfigDict, given: Collection[str] = (), count: Callable[[], int] | None = None) -> None:
    """Sets what follows from `data.image_size` and from the number of training images, but no key that is `given`.

    `count` tells that number; None: it is not known. Raises ValueError for sizes that make no grid of patches.
    """
    data, optim = config.data, config.optim
    if len(data.image_size) != 2:
        raise ValueError(f"data.image_size {tuple(data.image_size)} must be (height, width): this configuration is of images")
    if "model.patch" not in given:
        config.model.patch = patch_of(*data.image_size)
    if optim.epochs:
        follow = {"optim.steps": 0, "optim.warmup": optim.epochs / 10}
    else:
        if "optim.steps" not in given:
            optim.steps = min(max(EPOCHS * count() // optim.batch_size, FEWEST), MOST) if count else MOST
        follow = {
            "optim.warmup": optim.steps / 10,
            "probe.every": max(1, optim.steps // 6),
            "checkpoint.every": max(1, optim.steps // 10),
        }
    config.update_from_flattened_dict({key: value for key, value in follow.items() if key not in given})


def patch_of(height: int, width: int) -> int:
    """The side of patches that makes a grid nearest to 8x8, at least 4x4, and of images below 64 pixels the one nearest to 8.

    Raises ValueError, with a size that would do, where there is none near.
    """
    patch, wanted = _nearest(height, width)
    if patch:
        return patch
    size, side = (height, width), round(wanted)
    while not _nearest(*size)[0]:
        size = tuple(max(4, round(length / side)) * side for length in size)
        side += 1
    raise ValueError(
        f"data.image_size {height, width} is not of patches of about {wanted:.0f} pixels: give {size}, for example"
    )


def _nearest(height: int, width: int) -> tuple[int | None, float]:
    """The best side that divides both, None if it is far from what is wanted; and that."""
    wanted = max(8.0, math.sqrt(height * width) / 8)
    sides = [side for side in range(1, min(height, width) // 4 + 1) if height % side == width % side == 0]
    patch = min(sides, key=lambda side: abs(math.log(side / wanted)), default=None)
    return (patch if patch and 0.7 < patch / wanted < 1.5 else None), wanted
