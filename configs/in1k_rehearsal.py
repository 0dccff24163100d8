"""The whole sequence of docs/reproduce.md in minutes: configs/in1k_vith14.py with a small network, small images and few steps.

    python launch.py pretrain --config configs/in1k_rehearsal.py --config.data.name=tfds:packed/standin --workdir runs/rehearsal

What is not named here is the published run's.
Hardware: two CPU cores. Expected: that every command runs; its accuracies mean nothing.
"""

import ml_collections

from configs import in1k_vith14


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = in1k_vith14.get_config()
    config.model.size = "vit_pico"
    config.model.dtype = "float32"
    config.predictor.width = 48
    config.predictor.depth = 2
    config.data.name = "tfds:packed/standin"
    config.data.image_size = (112, 112)  # a grid of 8x8 patches instead of 16x16
    config.masks.context_patches //= 4
    config.optim.batch_size = 64
    config.optim.epochs = 8.0
    config.optim.warmup = 1.0
    config.probe.every = 120
    config.checkpoint.every = 60
    return config
