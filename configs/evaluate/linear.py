"""The paper's sweep of linear heads, at the size of a small checkpoint's own data, without augmentation.

    python launch.py evaluate --config configs/evaluate/linear.py --checkpoint DIR

Heads are compared on a tenth of the training images that they have not seen.
Hardware: two CPU cores.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("linear")
    config.data.train_images = 4000
    config.data.test_images = 2000
    config.linear.augment = False
    config.linear.select = "held_out"
    config.linear.epochs = 100
    config.linear.decay_every = 40
    config.linear.batch_size = 256
    config.linear.learning_rates = (30.0, 10.0, 3.0)
    return config
