"""The paper's dense probes, Clevr/Count and Clevr/Dist, for an encoder trained on ImageNet.

    python launch.py evaluate --config configs/evaluate/dense_in1k.py --checkpoint DIR

The linear probe on CLEVR's images, centre-cropped and flipped, with VTAB's classes: 3 to 10 objects, six bins of distance.
Expected (paper, table 4), count and distance: ViT-H/14 on IN-1K 86.7 and 72.4, on IN-22K 88.6 and 75.0.
Hardware: GPUs or a TPU slice. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("linear")
    config.data.name = "tfds:clevr"
    config.data.crop = 1.0
    config.augment.crop_scale = (1.0, 1.0)
    config.augment.crop_aspect = (1.0, 1.0)
    return config
