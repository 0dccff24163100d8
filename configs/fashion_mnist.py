"""A small ViT on Fashion-MNIST, 28x28 grey photographs of clothing shown at 32x32.

    python launch.py pretrain --config configs/fashion_mnist.py --workdir runs/fashion_mnist

The data are the idx files of `../shared/data/fashion-mnist` where that folder is, else TFDS's `fashion_mnist`; from anywhere
else: `--config.data.name=idx:DIR` (Debian's package dataset-fashion-mnist holds the files, too).

Hardware: two CPU cores. Cost: 771 s (commit 2cf94f5).
Expected, in per cent (this encoder / random init / pixels), one seed, processors differing by a few points:
linear 81.9 / 78.9 / 84.3, knn 77.3 / 49.3 / 81.5.
"""

from pathlib import Path

import ml_collections

from configs import quickstart

_IDX = Path("../shared/data/fashion-mnist")


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = quickstart.get_config()
    config.model.patch = 4
    config.masks.context_patches = 24
    config.masks.target_scale = (0.1, 0.2)
    config.data.name = f"idx:{_IDX}" if _IDX.is_dir() else "tfds:fashion_mnist"
    config.data.image_size = (32, 32)
    config.data.channels = 1
    config.data.mean = (0.286,)
    config.data.std = (0.353,)
    config.data.crop_scale = (0.3, 1.0)
    config.optim.steps = 10_000
    config.optim.warmup = 1000.0
    config.optim.peak_lr = 5e-4
    config.optim.momentum = 0.996
    config.probe.every = 2000
    config.probe.train_images = 10_000
    config.probe.test_images = 5000
    config.checkpoint.every = 2000
    return config
