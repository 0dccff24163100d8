"""Full fine-tuning on the checkpoint's own data, beside the same training from random weights.

    python launch.py evaluate --config configs/evaluate/finetune.py --checkpoint DIR

Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("finetune")
    config.data.train_images = 2000
    config.data.test_images = 1000
    config.augment.crop_scale = (0.6, 1.0)
    config.finetune.epochs = 4
    config.finetune.warmup = 1.0
    config.finetune.batch_size = 32
    config.finetune.learning_rate = 2e-3
    config.finetune.drop_path = 0.0
    config.finetune.mixup = 0.0
    config.finetune.cutmix = 0.0
    config.finetune.rand_augment = 0.0
    return config
