"""The paper's linear probe on ImageNet-1K (appendix A): LARS, batch 16384, 50 epochs, the best head of the sweep.

    python launch.py evaluate --config configs/evaluate/linear_in1k.py --checkpoint DIR

All heads are trained at once on features of newly cropped images, so that it costs 50 passes of the encoder over ImageNet.
Expected (paper, table 1): ViT-B/16 72.9, ViT-L/16 77.5, ViT-H/14 79.3, ViT-H/16 at 448 pixels 81.1.
Other data of the paper's transfer table: --config.data.name=tfds:cifar100 and so on; images are resized to the encoder's.
Hardware: GPUs or a TPU slice. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("linear")
    config.data.name = "tfds:imagenet2012"
    return config
