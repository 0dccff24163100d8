"""V-JEPA's attentive probe, at the size of a small checkpoint's own data, without augmentation.

    python launch.py evaluate --config configs/evaluate/attentive.py --checkpoint DIR

Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("attentive")
    config.data.train_images = 2000
    config.data.test_images = 2000
    config.attentive.augment = False
    config.attentive.epochs = 12
    config.attentive.batch_size = 64
    config.attentive.learning_rate = 3e-3
    return config
