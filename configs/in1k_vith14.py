"""ViT-H/14 on ImageNet-1K for 300 epochs, as released.

    python launch.py pretrain --config configs/in1k_vith14.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 2048, for instance 8 or 16 H200s, or 64 to
256 TPU v5e chips.
Cost, by arithmetic from model FLOPs and not measured: 183 / 122 H200-hours at 40% / 60% of the bf16 peak; or 3.6 hours
on a v5e-256 slice at 40%.
Expected: linear probe on ImageNet-1K 79.3%, with 1% of the labels 73.3% (paper, tables 1 and 2); linear transfer to
CIFAR-100 87.5%, Places205 58.4%, iNaturalist18 47.6%, Clevr/Count 86.7%, Clevr/Dist 72.4% (tables 3 and 4).
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default()
    config.model.size = "vit_huge"
    config.model.patch = 14
    config.model.remat = "full"
    config.masks.context_patches = 72
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = (224, 224)
    config.optim.batch_size = 2048
    config.optim.epochs = 300.0
    config.optim.warmup = 40.0
    config.optim.start_lr = 0.0002
    config.probe.every = 25_000
    config.checkpoint.every = 2_500
    config.checkpoint.keep_every = 50_000
    config.log.every = 10
    return config
