"""RankMe, LiDAR, the spread of features and the likeness of layers (CKA), on the checkpoint's own data; no labels.

    python launch.py evaluate --config configs/evaluate/rank.py --checkpoint DIR

Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("rank")
    config.data.train_images = 4000
    config.data.test_images = 2000
    config.rank.images = 500
    config.rank.views = 4
    return config
