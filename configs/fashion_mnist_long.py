"""Fashion-MNIST with twice the steps of configs/fashion_mnist.py, and nothing else changed: what twice the time adds.

    python launch.py pretrain --config configs/fashion_mnist_long.py --workdir runs/fashion_mnist_long

Hardware: two CPU cores. Cost and accuracy: not measured yet (144 TFLOP, twice configs/fashion_mnist.py).
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
