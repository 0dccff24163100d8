"""A small ViT on Fashion-MNIST, 28x28 grey photographs of clothing shown at 32x32.

    python launch.py pretrain --config configs/fashion_mnist.py --workdir runs/fashion_mnist

The data are the idx files of `../shared/data/fashion-mnist` where that folder is, else TFDS's `fashion_mnist`; from anywhere
else: `--config.data.name=idx:DIR` (Debian's package dataset-fashion-mnist holds the files, too).

Hardware: two CPU cores. Cost: 1105 s (commit ed9edf4).
Expected, in per cent (trained / random init / pixels), 3 seeds, processors differing by a few points:
linear 85.4 ± 0.4 / 78.1 ± 1.0 / 84.3, knn 83.3 ± 0.9 / 70.9 ± 1.5 / 81.5.
"""

from pathlib import Path

import ml_collections

from configs import quickstart

_IDX = Path("../shared/data/fashion-mnist")


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run; why they are what they are: docs/experiments.md, "Why does it learn so little?"."""
    config = quickstart.get_config()
    config.model.width = 144
    config.model.patch = 8
    config.model.init = "fan_in"
    config.target.norm = "layer"
    config.masks.strategy = "random"
    config.masks.context_patches = 6
    config.data.name = f"idx:{_IDX}" if _IDX.is_dir() else "tfds:fashion_mnist"
    config.data.image_size = (32, 32)
    config.data.channels = 1
    config.data.mean = (0.286,)
    config.data.std = (0.353,)
    config.optim.steps = 30_000
    config.optim.warmup = 3000.0
    config.optim.momentum = 0.996
    config.probe.every = 5000
    config.probe.train_images = 10_000
    config.probe.test_images = 5000
    config.checkpoint.every = 3000
    return config
