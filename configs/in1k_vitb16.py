"""ViT-B/16 on ImageNet-1K for 600 epochs, as in the paper.

    python launch.py pretrain --config configs/in1k_vitb16.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 2048, for instance 8 or 16 H200s, or 64 to
256 TPU v5e chips.
Cost, by arithmetic from model FLOPs and not measured: 45 / 30 H200-hours at 40% / 60% of the bf16 peak; or 0.9 hours
on a v5e-256 slice at 40%.
Expected: linear probe on ImageNet-1K 72.9% (paper, table 1).
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default()
    config.model.size = "vit_base"
    config.model.patch = 16
    config.masks.context_patches = 48
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = (224, 224)
    config.optim.batch_size = 2048
    config.optim.epochs = 600.0
    config.optim.warmup = 15.0
    config.optim.start_lr = 0.0001
    config.probe.every = 25_000
    config.checkpoint.every = 2_500
    config.checkpoint.keep_every = 50_000
    config.log.every = 10
    return config
