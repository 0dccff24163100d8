"""MAE ViT-H/14 on ImageNet-1K for 1,600 epochs, as released (He et al., CVPR 2022).

    python launch.py pretrain --config configs/mae_in1k_vith14.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 4096. Not run yet.
Cost, by arithmetic from model FLOPs and not measured: 417 / 278 H200-hours at 40% / 60% of the bf16 peak.
Expected (README and FINETUNE.md of the authors' code): linear probe 77.2%, fine-tuned 86.9%.
All else is as in configs/mae_in1k_vitb16.py. The authors resize crops bicubically; here they are made as for I-JEPA.
"""

import ml_collections

from configs import mae_in1k_vitb16


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = mae_in1k_vitb16.get_config()
    config.model.size = "vit_huge"
    config.model.patch = 14
    config.model.remat = "full"
    return config
