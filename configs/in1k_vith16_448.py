"""ViT-H/16 at 448 pixels on ImageNet-1K for 300 epochs, as released.

    python launch.py pretrain --config configs/in1k_vith16_448.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 2048, for instance 8 or 16 H200s, or 64 to
256 TPU v5e chips.
Cost, by arithmetic from model FLOPs and not measured: 653 / 436 H200-hours at 40% / 60% of the bf16 peak; or 12.8 hours
on a v5e-256 slice at 40%.
Expected: linear probe on ImageNet-1K 81.1%, with 1% of the labels 77.3% (paper, tables 1 and 2).
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default()
    config.model.size = "vit_huge"
    config.model.patch = 16
    config.model.remat = "full"
    config.masks.context_patches = 272
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = (448, 448)
    config.optim.batch_size = 2048
    config.optim.epochs = 300.0
    config.optim.warmup = 40.0
    config.optim.start_lr = 0.0002
    config.probe.every = 25_000
    config.checkpoint.every = 2_500
    config.checkpoint.keep_every = 50_000
    config.log.every = 10
    return config
