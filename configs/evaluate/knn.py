"""kNN on the checkpoint's own data: cosine similarity, k = 20, temperature 0.07.

    python launch.py evaluate --config configs/evaluate/knn.py --checkpoint DIR

Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("knn")
    config.data.train_images = 10_000
    config.data.test_images = 2000
    return config
