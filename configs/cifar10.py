"""A small ViT on CIFAR-10, 32x32 colour photographs.

    python launch.py pretrain --config configs/cifar10.py --workdir runs/cifar10

The data are TFDS's `cifar10`, prepared beforehand; a folder of images does as well: `--config.data.name=folder:DIR`.

Hardware: one GPU, or CPU cores and patience. Cost and accuracy: not measured yet.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = quickstart.get_config()
    config.model.size = "vit_tiny"
    config.model.patch = 4
    config.target.norm = "layer"
    config.predictor.width = 96
    config.predictor.depth = 4
    config.masks.context_patches = 24
    config.data.name = "tfds:cifar10"
    config.data.image_size = (32, 32)
    config.data.crop_scale = (0.3, 1.0)
    config.data.mean = (0.491, 0.482, 0.447)
    config.data.std = (0.247, 0.243, 0.262)
    config.optim.batch_size = 256
    config.optim.steps = 40_000
    config.optim.warmup = 4000.0
    config.optim.peak_lr = 5e-4
    config.optim.momentum = 0.996
    config.probe.every = 4000
    config.probe.test_images = 5000
    config.checkpoint.every = 2000
    return config
