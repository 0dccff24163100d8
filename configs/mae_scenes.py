"""MAE on generated scenes: the quickstart's network, data and probes, with pixels to be filled in.

    python launch.py pretrain --config configs/mae_scenes.py --workdir runs/mae_scenes

Hardware: one CPU core. Cost: 465 s, beside another such run.
Expected, in per cent (trained / random init / pixels), one seed: linear 47.8 / 43.8 / 38.2, knn 36.3 / 31.9 / 32.7.
"""

import ml_collections

from configs import quickstart
from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run; those that were tried: docs/experiments.md."""
    config = settings.with_method(quickstart.get_config(), "mae")
    config.mae.decoder_width = 48
    config.mae.decoder_depth = 2
    config.mae.decoder_heads = 3
    config.mae.normalised = False
    config.optim.start_lr = 0.0
    config.optim.weight_decay = 0.05
    config.optim.final_weight_decay = 0.05
    config.optim.b2 = 0.95
    return config
