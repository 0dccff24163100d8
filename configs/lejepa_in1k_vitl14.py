"""LeJEPA ViT-L/14 on ImageNet-1K for 100 epochs (Balestriero and LeCun, arXiv 2511.08544).

    python launch.py pretrain --config configs/lejepa_in1k_vitl14.py --workdir DIR

Hardware: GPUs or a TPU slice whose number of devices divides the batch of 512. Not run yet.
Cost, by arithmetic from model FLOPs and not measured: 137 / 91 H200-hours at 40% / 60% of the bf16 peak; 1,521 GFLOP an image.
Expected, by a secondary summary of the paper that was not checked against it: linear probe 77.1%, and 74.7% after 100 epochs at
this batch. Views and optimiser are those of the authors' README; slices, weight and the integral's reach those of that
summary; the lengths of warm-up and projector are a guess. The authors' own commands for such runs cannot be run from what is
released.
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default("lejepa")
    config.model.size = "vit_large"
    config.model.patch = 14
    config.model.drop_path = 0.1
    config.lejepa.local_size = (98, 98)
    config.lejepa.furthest = 5.0
    config.data.flip = True
    config.optim.batch_size = 512
    config.optim.epochs = 100.0
    config.optim.warmup = 10.0
    config.optim.schedule_scale = 1.0
    config.optim.start_lr = 0.0
    config.optim.peak_lr = 5e-4
    config.optim.final_lr = 5e-7
    config.optim.weight_decay = 0.05
    config.optim.final_weight_decay = 0.05
    return config
