"""LeJEPA, a ViT-S/16 on a folder of one's own JPEG, PNG or WebP images; sub-folders, if there are any, are labels.

    python launch.py pretrain --config configs/lejepa_folder.py --config.data.name=folder:PATH --workdir runs/mine

Hardware: one GPU. Cost: 300 epochs take 300 * images / (images per second, which the run prints).
Expected: no figure is known for this size; watch the probes and RankMe, which are logged every 2,000 steps.
"""

import ml_collections

from configs import folder
from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run: those of configs/lejepa_in1k_vitl14.py, but local views of 96 pixels, as patches are of 16."""
    config = settings.with_method(folder.get_config(), "lejepa")
    config.model.drop_path = 0.1
    config.lejepa.furthest = 5.0
    config.data.flip = True
    config.optim.schedule_scale = 1.0
    config.optim.start_lr = 0.0
    config.optim.peak_lr = 5e-4
    config.optim.final_lr = 5e-7
    config.optim.weight_decay = 0.05
    config.optim.final_weight_decay = 0.05
    return config
