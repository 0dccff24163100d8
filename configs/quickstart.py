"""The quickstart: a small ViT on generated scenes, what a bare `python launch.py` runs.

    python launch.py

Hardware: two CPU cores at 2.4 GHz. Cost: 454 s (commit 0bd28d1).
Expected, in per cent (trained / random init / pixels), means of four tasks, 3 seeds, processors differing by a few points:
linear 46.2 ± 0.5 / 36.8 ± 0.9 / 38.2, knn 34.9 ± 1.1 / 30.7 ± 0.7 / 32.7.
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default()
    config.model.size = "vit_pico"
    config.model.patch = 8
    config.model.dtype = "float32"
    config.predictor.width = 48
    config.target.norm = "whiten"
    config.masks.context_patches = 16
    config.masks.target_scale = (0.1, 0.2)
    config.data.name = "scenes"
    config.data.image_size = (64, 64)
    config.data.crop_scale = (0.6, 1.0)
    config.data.eval_crop = 1.0
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.optim.batch_size = 32
    config.optim.steps = 2400
    config.optim.warmup = 240.0
    config.optim.schedule_scale = 1.0
    config.optim.peak_lr = 1e-3
    config.optim.final_lr = 1e-5
    config.optim.momentum = 0.99
    config.optim.clip = 3.0
    config.probe.batch_size = 50
    config.probe.every = 1200
    config.probe.during_train_images = 1000
    config.probe.during_test_images = 500
    config.probe.lidar_images = 64
    config.probe.train_images = 10000
    config.probe.test_images = 2000
    config.checkpoint.every = 400
    return config
