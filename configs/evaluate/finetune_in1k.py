"""Full fine-tuning on ImageNet-1K (paper, appendix A).

    python launch.py evaluate --config configs/evaluate/finetune_in1k.py --checkpoint DIR

50 epochs, batch 528, learning rate 1e-4, weight decay 0.04, layer decay 0.75, drop path 0.25, mixup 0.8, cutmix 1.
The batch must divide among the devices: it is rounded down to what does.
Hardware: GPUs or a TPU slice. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("finetune")
    config.data.name = "tfds:imagenet2012"
    config.finetune.remat = "full"
    return config
