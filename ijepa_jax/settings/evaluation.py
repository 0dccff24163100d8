"""Settings of an evaluation: every key there is, with its default, and the checks that need no data.

A file in configs/evaluate/ starts from `default(PROTOCOL)` and changes what is its own; a command line overrides single keys.
Defaults are the paper's (appendix A), the attentive probe's V-JEPA's; configs/evaluate/*.py without `_in1k` make them fit a
small checkpoint on a small machine.
"""

import ml_collections

from ijepa_jax.settings import ranges
from ijepa_jax.settings.architectures import REMAT
from ijepa_jax.settings.ranges import choice, flag, number, text, whole

# Pixels want strengths up to 10, encoders that use few directions as little as 1e-7 (docs/evaluation.md).
L2 = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
PROTOCOLS = ("knn", "logistic", "linear", "attentive", "finetune", "segmentation", "rank")

_LAYERS = ("last", "last4")

SETTINGS = {
    "protocol": choice("knn", PROTOCOLS),
    "step": whole(0, -1, 1_000_000_000),  # which checkpoint; 0: the best by probe, else the newest; -1: the newest
    "seed": whole(0, 0, 2**31 - 1),
    "seeds": whole(1, 1, 1000),  # how many seeds, from `seed` on, the protocol is run with
    "data": {
        # those that are empty or None here are the checkpoint's own
        "name": text(""),
        "directory": text(""),
        "size": whole(None, 1, 10_000_000),  # of the generated scenes
        "test_size": whole(None, 1, 10_000_000),
        # of the examples that the encoder is given: the side of square images, or as for pretraining
        "image_size": whole(None, 1, 1_048_576, each_axis=True),
        "crop": number(None, 0, 1, "(]"),  # centre crop after the short side is resized to image size / this
        "tasks": text(""),  # of several, these, with commas between; empty: all
        "train_images": whole(0, 0, 100_000_000),  # so many, evenly spread over the data set; 0: all
        "test_images": whole(0, 0, 100_000_000),
        "fraction": number(1.0, 0, 1, "(]"),  # of the training images that are left: the same share of every class
        "batch_size": whole(250, 1, 1_000_000),  # images that features are computed of at a time
        "workers": whole(0, 0, 1024),  # as for pretraining
        "threads": whole(None, 0, 1024),
        "buffer": whole(2, 1, 1024),
        "max_bad_fraction": number(0.01, 0, 1),  # more unreadable images than this stop the evaluation
    },
    "baselines": flag(True),  # the same for an encoder with random weights, and for raw pixels where the protocol can
    "cache": flag(True),  # keep features in the checkpoint's workdir, for the next evaluation
    "augment": {  # of training images, where features are computed anew for every epoch
        "crop_scale": number((0.08, 1.0), 0, 1, "(]", length=2, rising=True),
        "crop_aspect": number((3 / 4, 4 / 3), 0, 1000, "(]", length=2, rising=True),
        "flip": flag(True),
    },
    "knn": {"k": whole(20, 1, 1_000_000), "temperature": number(0.07, 1e-3, 1000)},
    "logistic": {"l2": number(L2, 0, 1e9, "(]", length=0)},  # strengths, of which a tenth of the training images chooses
    "linear": {
        "layers": choice(_LAYERS, _LAYERS, length=0),
        "norms": choice(("none", "batch"), ("none", "batch"), length=0),
        "learning_rates": number((0.01, 0.05, 0.001), 0, 1000, "(]", length=0),  # for 256 images: scaled with the batch
        "weight_decays": number((5e-4, 0.0), 0, 1000, length=0),
        "epochs": whole(50, 1, 1_000_000),
        "decay_every": whole(15, 1, 1_000_000),  # epochs between divisions of the learning rate by ten
        "batch_size": whole(16384, 1, 1_000_000),
        "augment": flag(True),
        # what the best head is chosen on, as published; held_out: a tenth of the training images
        "select": choice("test", ("test", "held_out")),
    },
    "attentive": {
        "epochs": whole(20, 1, 1_000_000),
        "batch_size": whole(1024, 1, 1_000_000),
        "learning_rate": number(1e-3, 0, 1000, "(]"),
        "weight_decay": number(1e-3, 0, 1000),
        "heads": whole(None, 1, 4096),  # None: the encoder's
        "augment": flag(True),
    },
    "finetune": {
        "epochs": whole(50, 1, 1_000_000),
        "warmup": number(5.0, 0, 1_000_000),  # epochs
        "batch_size": whole(528, 1, 1_000_000),
        "learning_rate": number(1e-4, 0, 1000, "(]"),
        "weight_decay": number(0.04, 0, 1000),
        "layer_decay": number(0.75, 0, 1, "(]"),
        "drop_path": number(0.25, 0, 0.99),
        "smoothing": number(0.1, 0, 1, "[)"),
        "mixup": number(0.8, 0, 1000),
        "cutmix": number(1.0, 0, 1000),
        "rand_augment": number(9.0, 0, 10),  # magnitude of two operations; 0: none
        "remat": choice("pretraining", ("pretraining", *REMAT)),  # what is computed again, for less memory: as there, or else
    },
    # training patches, drawn by the seed
    "segmentation": {
        "l2": number((1e-2, 1e-3, 1e-4), 0, 1e9, "(]", length=0),
        "patches": whole(100_000, 1, 1_000_000_000),
    },
    # for LiDAR; RankMe and CKA take the test images
    "rank": {"images": whole(1000, 1, 10_000_000), "views": whole(10, 2, 1000)},
    "mesh": {"data": whole(-1, -1, 1_000_000, never=0), "fsdp": whole(1, -1, 1_000_000, never=0)},
}


def default(protocol: str) -> ml_collections.ConfigDict:
    """All settings, for one of PROTOCOLS."""
    config = ranges.defaults(SETTINGS)
    config.protocol = protocol
    return config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, naming the key, where settings contradict each other or are out of range."""
    ranges.check(config, SETTINGS)
    if config.mesh.data == config.mesh.fsdp == -1:
        raise ValueError("mesh.data and mesh.fsdp are both -1: one of them takes the devices that the other leaves")
    if config.protocol == "segmentation" and config.data.fraction < 1:
        raise ValueError("data.fraction is of labelled images: give segmentation's patches by segmentation.patches")
    if config.linear.select == "held_out" and config.linear.augment:
        raise ValueError("linear.select 'held_out' needs linear.augment=False: new crops are made of all training images")
