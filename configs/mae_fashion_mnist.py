"""MAE on Fashion-MNIST: the network, data and probes of configs/fashion_mnist.py, with pixels to be filled in.

    python launch.py pretrain --config configs/mae_fashion_mnist.py --workdir runs/mae_fashion_mnist

Hardware: two CPU cores. Cost: 2442 s on one core beside other work (commit 0c48eab).
Expected, in per cent (trained / random init / pixels), one seed: linear 85.8 / 79.1 / 84.3, knn 84.0 / 69.8 / 81.5.
"""

import ml_collections

from configs import fashion_mnist, mae_scenes
from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run; those that were tried: docs/experiments.md."""
    config, scenes = settings.with_method(fashion_mnist.get_config(), "mae"), mae_scenes.get_config()
    config.model.init = "normal"
    config.mae = scenes.mae
    config.mae.normalised = True
    for name in ("start_lr", "weight_decay", "final_weight_decay", "b2"):
        config.optim[name] = scenes.optim[name]
    return config
