"""RankMe, LiDAR and CKA on ImageNet-1K's validation images, at LiDAR's published size.

    python launch.py evaluate --config configs/evaluate/rank_in1k.py --checkpoint DIR

1,000 images in 50 views each, and all validation images for RankMe.
Hardware: GPUs or a TPU slice. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("rank")
    config.data.name = "tfds:imagenet2012"
    config.rank.views = 50
    return config
