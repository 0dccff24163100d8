"""Settings of an evaluation: every key there is, with its default, and the checks that need no data.

A file in configs/evaluate/ starts from `default(PROTOCOL)` and changes what is its own; a command line overrides single keys.
Defaults are the paper's (appendix A), the attentive probe's V-JEPA's; configs/evaluate/*.py without `_in1k` make them fit a
small checkpoint on a small machine.
"""

import ml_collections
from ml_collections import config_dict

from ijepa_jax.config import flatten

PROTOCOLS = ("knn", "logistic", "linear", "attentive", "finetune", "segmentation", "rank")

_POSITIVE = (
    "seeds", "data.batch_size", "knn.k", "knn.temperature", "linear.epochs", "linear.batch_size", "attentive.epochs",
    "attentive.batch_size", "finetune.epochs", "finetune.batch_size", "finetune.layer_decay", "rank.images", "rank.views",
    "segmentation.patches",
    "interval.resamples", "data.image_size", "data.crop", "data.size", "data.test_size",
)  # fmt: skip


def default(protocol: str) -> ml_collections.ConfigDict:
    """All settings, for one of PROTOCOLS."""
    return ml_collections.ConfigDict(
        {
            "protocol": protocol,
            "step": 0,  # which checkpoint; 0: the best by probe, else the newest; -1: the newest
            "seed": 0,
            "seeds": 1,  # how many seeds, from `seed` on, the protocol is run with
            "data": {
                # those that are empty or None here are the checkpoint's own
                "name": "",
                "directory": "",
                "size": config_dict.placeholder(int),  # of the generated scenes
                "test_size": config_dict.placeholder(int),
                "image_size": config_dict.placeholder(int),  # side of the square images that the encoder is given
                "crop": config_dict.placeholder(float),  # centre crop after the short side is resized to image size / this
                "tasks": "",  # of several, these, with commas between; empty: all
                "train_images": 0,  # so many, evenly spread over the data set; 0: all
                "test_images": 0,
                "fraction": 1.0,  # of the training images that are left: the same share of every class, drawn by the seed
                "batch_size": 250,  # images that features are computed of at a time
                "workers": 0,  # as for pretraining
                "threads": config_dict.placeholder(int),
                "buffer": 2,
                "max_bad_fraction": 0.01,  # more unreadable images than this stop the evaluation
            },
            "baselines": True,  # the same for an encoder with random weights, and for raw pixels where the protocol can
            "cache": True,  # keep features in the checkpoint's workdir, for the next evaluation
            "augment": {  # of training images, where features are computed anew for every epoch
                "crop_scale": (0.08, 1.0),
                "crop_aspect": (3 / 4, 4 / 3),
                "flip": True,
            },
            "knn": {"k": 20, "temperature": 0.07},
            "logistic": {"l2": (1.0, 1e-1, 1e-2, 1e-3, 1e-4)},  # strengths, the best taken on a tenth of the training images
            "linear": {
                "layers": ("last", "last4"),
                "norms": ("none", "batch"),
                "learning_rates": (0.01, 0.05, 0.001),  # for 256 images: scaled with the batch
                "weight_decays": (5e-4, 0.0),
                "epochs": 50,
                "decay_every": 15,  # epochs between divisions of the learning rate by ten
                "batch_size": 16384,
                "augment": True,
                "select": "test",  # what the best head is chosen on, as published; held_out: a tenth of the training images
            },
            "attentive": {
                "epochs": 20,
                "batch_size": 1024,
                "learning_rate": 1e-3,
                "weight_decay": 1e-3,
                "heads": config_dict.placeholder(int),  # None: the encoder's
                "augment": True,
            },
            "finetune": {
                "epochs": 50,
                "warmup": 5.0,  # epochs
                "batch_size": 528,
                "learning_rate": 1e-4,
                "weight_decay": 0.04,
                "layer_decay": 0.75,
                "drop_path": 0.25,
                "smoothing": 0.1,
                "mixup": 0.8,
                "cutmix": 1.0,
                "rand_augment": 9.0,  # magnitude of two operations; 0: none
            },
            "segmentation": {"l2": (1e-2, 1e-3, 1e-4), "patches": 100_000},  # training patches, drawn by the seed
            "rank": {"images": 1000, "views": 10},  # for LiDAR; RankMe and CKA take the test images
            "interval": {"level": 0.95, "resamples": 1000},
            "mesh": {"data": -1, "fsdp": 1},
        }
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, naming the key, where settings contradict each other or are out of range."""
    if config.protocol not in PROTOCOLS:
        raise ValueError(f"protocol {config.protocol!r} is not known: it must be one of {', '.join(PROTOCOLS)}")
    flat = flatten(config)
    for key in _POSITIVE:
        if flat[key] is not None and flat[key] <= 0:
            raise ValueError(f"{key} {flat[key]} must be positive")
    if not 0 < config.data.fraction <= 1:
        raise ValueError(f"data.fraction {config.data.fraction} must be over 0 and at most 1")
    if not 0 < config.interval.level < 1:
        raise ValueError(f"interval.level {config.interval.level} must be between 0 and 1")
    linear = config.linear
    for key, known in (("layers", ("last", "last4")), ("norms", ("none", "batch"))):
        if not linear[key] or not {*linear[key]} <= {*known}:
            raise ValueError(f"linear.{key} {tuple(linear[key])} must be some of {', '.join(known)}")
    if linear.select not in ("test", "held_out"):
        raise ValueError(f"linear.select {linear.select!r} must be 'test' or 'held_out'")
    if linear.select == "held_out" and linear.augment:
        raise ValueError("linear.select 'held_out' needs linear.augment=False: new crops are made of all training images")
    if config.rank.views < 2:
        raise ValueError(f"rank.views {config.rank.views} must be at least 2")
