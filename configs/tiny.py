"""A run that ends within a minute and learns nothing: for trying things out, and for tests.

    python launch.py pretrain --config configs/tiny.py --workdir /tmp/tiny

Hardware: one CPU core.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = quickstart.get_config()
    config.model.width = 32
    config.model.depth = 2
    config.model.heads = 2
    config.predictor.width = 16
    config.predictor.depth = 1
    config.target.norm = "layer"
    config.data.size = 512
    config.data.test_size = 128
    config.data.image_size = (32, 32)
    config.model.patch = 4
    config.optim.batch_size = 16
    config.optim.steps = 40
    config.optim.warmup = 10.0
    config.probe.every = 20
    config.probe.train_images = 256
    config.probe.test_images = 128
    config.probe.during_train_images = 128
    config.probe.during_test_images = 64
    config.checkpoint.every = 10
    return config
