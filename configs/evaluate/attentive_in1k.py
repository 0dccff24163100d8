"""V-JEPA's attentive probe on ImageNet-1K: 20 epochs, learning rate 0.001 to 0, weight decay 0.001.

    python launch.py evaluate --config configs/evaluate/attentive_in1k.py --checkpoint DIR

Hardware: GPUs or a TPU slice. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("attentive")
    config.data.name = "tfds:imagenet2012"
    return config
