"""LeJEPA, a ViT-S/16 on a folder of one's own JPEG, PNG or WebP images; sub-folders, if there are any, are labels.

    python launch.py pretrain --config configs/lejepa_folder.py --config.data.name=folder:PATH --workdir runs/mine

Hardware: one GPU. Cost: 300 epochs take 300 * images / (images per second, which the run prints).
Expected: no figure is known for this size; watch the probes and RankMe, which are logged every 2,000 steps.
"""

import ml_collections

from configs import folder, lejepa_in1k_vitl14
from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run: those of configs/lejepa_in1k_vitl14.py, but local views of 96 pixels, as patches are of 16."""
    config, published = settings.with_method(folder.get_config(), "lejepa"), lejepa_in1k_vitl14.get_config()
    config.model.drop_path = published.model.drop_path
    config.lejepa.furthest = published.lejepa.furthest
    config.data.flip = published.data.flip
    for name in ("schedule_scale", "start_lr", "peak_lr", "final_lr", "weight_decay", "final_weight_decay"):
        config.optim[name] = published.optim[name]
    return config
