"""Fashion-MNIST with twice the steps of configs/fashion_mnist.py, and nothing else changed: what twice the time adds.

    python launch.py pretrain --config configs/fashion_mnist_long.py --workdir runs/fashion_mnist_long

Hardware: one of two CPU cores. Cost: 5421 s (commit 0baff1f).
Expected, in per cent (trained / random init / pixels), one seed, processors differing by a few points:
linear 85.7 / 77.0 / 84.3, knn 83.9 / 69.5 / 81.5.
"""

import ml_collections

from configs import fashion_mnist


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = fashion_mnist.get_config()
    config.optim.steps = 60_000
    config.optim.warmup = 6000.0
    config.probe.every = 10_000
    config.checkpoint.every = 5000
    return config
