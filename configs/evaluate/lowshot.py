"""Logistic regression on frozen features with 1% of the checkpoint's own labels.

    python launch.py evaluate --config configs/evaluate/lowshot.py --checkpoint DIR

Three seeds draw three such shares, the same of every class.
Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("logistic")
    config.data.train_images = 10_000
    config.data.test_images = 2000
    config.data.fraction = 0.01
    config.seeds = 3
    return config
