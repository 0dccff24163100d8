"""LeJEPA on Fashion-MNIST: the network, data and probes of configs/fashion_mnist.py, without target or predictor.

    python launch.py pretrain --config configs/lejepa_fashion_mnist.py --workdir runs/lejepa_fashion_mnist

Hardware: one CPU core. Cost: 1290 s (commit b9cf6f9).
Expected, in per cent (trained / random init / pixels), 3 seeds:
linear 84.6 ± 0.2 / 78.1 ± 1.1 / 84.3, knn 80.2 ± 0.2 / 70.9 ± 1.5 / 81.5.
"""

import ml_collections

from configs import fashion_mnist
from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run; those that were tried: docs/experiments.md."""
    config = settings.with_method(fashion_mnist.get_config(), "lejepa")
    config.data.flip = True
    config.data.crop_scale = (0.6, 1.0)
    config.lejepa.local_views = 0
    config.lejepa.class_token = False
    config.lejepa.embedding = 0
    config.lejepa.projector_width = 512
    config.lejepa.outputs = 32
    config.lejepa.slices = 256
    config.views.kernel = 5
    config.views.sigma = (0.1, 1.0)
    config.views.solarise = 0.0
    config.optim.batch_size = 64
    config.optim.steps = 2500
    config.optim.warmup = 250.0
    config.optim.peak_lr = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.final_weight_decay = 0.05
    config.probe.every = 1250
    config.checkpoint.every = 500
    return config
