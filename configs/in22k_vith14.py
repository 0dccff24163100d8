"""ViT-H/14 on ImageNet-22K for 66 epochs, as released.

    python launch.py pretrain --config configs/in22k_vith14.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 2048, for instance 8 or 16 H200s, or 64 to
256 TPU v5e chips.
`folder:imagenet22k` stands for a folder with one sub-folder of JPEGs a class.
Cost, by arithmetic from model FLOPs and not measured: 446 / 297 H200-hours at 40% / 60% of the bf16 peak; or 8.7 hours
on a v5e-256 slice at 40%.
Expected: linear transfer to CIFAR-100 89.5%, Places205 57.8%, iNaturalist18 50.5%, Clevr/Count 88.6%, Clevr/Dist 75.0%
(paper, tables 3 and 4).
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
    config.data.name = "folder:imagenet22k"
    config.data.image_size = (224, 224)
    config.optim.batch_size = 2048
    config.optim.epochs = 66.0
    config.optim.warmup = 3.0
    config.optim.start_lr = 0.0002
    config.probe.every = 25_000
    config.checkpoint.every = 2_500
    config.checkpoint.keep_every = 50_000
    config.log.every = 10
    return config
