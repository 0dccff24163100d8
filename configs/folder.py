"""A ViT-S/16 on a folder of one's own JPEG, PNG or WebP images; sub-folders, if there are any, are labels.

    python launch.py pretrain --config configs/folder.py --config.data.name=folder:PATH --workdir runs/mine

Hardware: one GPU. Cost: 300 epochs take 300 * images / (images per second, which the run prints).
Expected: watch the probes and RankMe rather than the loss; they are logged every 2,000 steps.
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default()
    config.model.size = "vit_small"
    config.data.name = "folder:images"
    config.optim.batch_size = 256
    config.optim.epochs = 300.0
    config.optim.warmup = 15.0
    config.probe.every = 2000
    config.checkpoint.every = 1000
    return config
