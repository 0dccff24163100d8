"""MAE ViT-B/16 on ImageNet-1K for 1,600 epochs, as released (He et al., CVPR 2022).

    python launch.py pretrain --config configs/mae_in1k_vitb16.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 4096. Not run yet.
Cost, by arithmetic from model FLOPs and not measured: 83 / 56 H200-hours at 40% / 60% of the bf16 peak.
Expected (README and FINETUNE.md of the authors' code): linear probe 67.8%, fine-tuned 83.6%.
The authors resize crops bicubically; here they are made as for I-JEPA.
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default("mae")
    config.model.size = "vit_base"
    config.data.name = "tfds:imagenet2012"
    config.data.image_size = (224, 224)
    config.data.crop_scale = (0.2, 1.0)
    config.data.flip = True
    config.optim.batch_size = 4096
    config.optim.epochs = 1600.0
    config.optim.warmup = 40.0
    config.optim.schedule_scale = 1.0
    config.optim.start_lr = 0.0
    config.optim.peak_lr = 2.4e-3
    config.optim.final_lr = 0.0
    config.optim.weight_decay = 0.05
    config.optim.final_weight_decay = 0.05
    config.optim.b2 = 0.95
    config.probe.every = 25_000
    config.checkpoint.every = 2_500
    config.checkpoint.keep_every = 50_000
    config.log.every = 10
    return config
