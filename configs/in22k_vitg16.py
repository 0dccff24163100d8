"""ViT-g/16 on ImageNet-22K for 44 epochs, as released.

    python launch.py pretrain --config configs/in22k_vitg16.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 2048, for instance 8 or 16 H200s, or 64 to
256 TPU v5e chips.
`folder:imagenet22k` stands for a folder with one sub-folder of JPEGs a class.
Cost, by arithmetic from model FLOPs and not measured: 334 / 223 H200-hours at 40% / 60% of the bf16 peak; or 6.5 hours
on a v5e-256 slice at 40%.
Expected: linear transfer to CIFAR-100 89.5%, Places205 59.1%, iNaturalist18 55.3%, Clevr/Count 86.7%, Clevr/Dist 73.0%
(paper, tables 3 and 4).
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default()
    config.model.size = "vit_giant"
    config.model.patch = 16
    config.model.remat = "full"
    config.masks.context_patches = 48
    config.data.name = "folder:imagenet22k"
    config.data.image_size = (224, 224)
    config.optim.batch_size = 2048
    config.optim.epochs = 44.0
    config.optim.warmup = 3.0
    config.optim.start_lr = 0.0002
    config.probe.every = 25_000
    config.checkpoint.every = 2_500
    config.checkpoint.keep_every = 50_000
    config.log.every = 10
    return config
