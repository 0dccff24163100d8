"""kNN on ImageNet-1K: all 1.28 million training images as the bank, k = 20, temperature 0.07.

    python launch.py evaluate --config configs/evaluate/knn_in1k.py --checkpoint DIR

Hardware: one pass of the encoder over ImageNet; the bank takes 4 bytes a feature, split over a process's devices. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("knn")
    config.data.name = "tfds:imagenet2012"
    return config
