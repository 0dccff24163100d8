"""LeJEPA on generated scenes: the quickstart's network, data and probes, without target or predictor.

    python launch.py pretrain --config configs/lejepa_scenes.py --workdir runs/lejepa_scenes

Hardware: one CPU core. Cost: 1095 s beside other work (commit 282bae3).
Expected, in per cent (trained / random init / pixels), means of four tasks, one seed:
linear 48.0 / 36.9 / 38.2, knn 38.0 / 30.8 / 32.7.
"""

import ml_collections

from configs import lejepa_fashion_mnist, quickstart
from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run; those that were tried: docs/experiments.md."""
    config, fashion = settings.with_method(quickstart.get_config(), "lejepa"), lejepa_fashion_mnist.get_config()
    config.lejepa = fashion.lejepa
    config.lejepa.local_size = (32, 32)
    config.data.flip = True
    config.views.strengths = (0.4, 0.4, 0.0, 0.0)
    config.views.grey = 0.0
    config.views.solarise = 0.0
    config.views.kernel = 5
    config.views.sigma = (0.1, 1.0)
    config.optim.batch_size = 64
    config.optim.clip = None
    for name in ("weight_decay", "final_weight_decay"):
        config.optim[name] = fashion.optim[name]
    config.optim.steps = 1200
    config.optim.warmup = 120.0
    return config
