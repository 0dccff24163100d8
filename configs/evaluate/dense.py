"""What is seen in each patch of generated scenes, told by a linear classifier from that patch's feature.

    python launch.py evaluate --config configs/evaluate/dense.py --checkpoint DIR

For checkpoints of other data than scenes: --config.data.name=scenes. Object count and distance, the paper's Clevr tasks, are
tasks of the other protocols on scenes and on tfds:clevr.
Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("segmentation")
    config.data.train_images = 4000
    config.data.test_images = 2000
    config.data.crop = 1.0
    return config
