"""Settings of a run: every key there is, with its default, and the checks that need no data.

A file in configs/ starts from `default()` and changes what is its own; a command line overrides single keys
(`--config.optim.peak_lr=1e-3`). A key that is not here is refused.
"""

import math
from typing import Any

import ml_collections
from ml_collections import config_dict

from ijepa_jax.attention import IMPLEMENTATIONS
from ijepa_jax.methods.ijepa import LAST_BLOCKS
from ijepa_jax.positions import INTERPOLATIONS
from ijepa_jax.predictor import CONTEXTS
from ijepa_jax.vit import REMAT

# Kept with the settings in checkpoints: how many training images there were, and which (see `data.sources.Source.contents`).
EXAMPLES, CONTENTS = "examples", "contents"

# What must not change when a run continues from a checkpoint: the weights' shapes, the task, and the order of the data.
FIXED_ON_RESUME = (
    "method", "seed", "model.size", "model.patch", "model.width", "model.depth", "model.heads", "model.mlp_ratio",
    "model.dtype", "model.scan", "model.epsilon", "model.positions", "predictor", "target.float8", "masks",
    "decoder.width", "decoder.depth", "decoder.heads", "data.image_size", "data.channels", "data.mean", "data.std",
    "optim.batch_size", "optim.moment_dtype", EXAMPLES, CONTENTS,
)  # fmt: skip


_POSITIVE = (
    "decoder.width", "decoder.depth", "decoder.heads", "decoder.sample_steps",
    "model.patch", "model.width", "model.depth", "model.heads", "model.mlp_ratio", "model.epsilon", "predictor.width",
    "predictor.depth",
    "predictor.heads", "data.channels", "data.eval_crop", "data.buffer", "optim.batch_size", "optim.accumulation",
    "probe.train_images", "probe.test_images", "probe.during_train_images", "probe.during_test_images", "probe.batch_size",
    "probe.knn_k", "probe.knn_temperature", "checkpoint.every", "checkpoint.keep", "log.every",
)  # fmt: skip


_NAMED = {
    "method": ("ijepa", "rcdm"),
    "model.attention": IMPLEMENTATIONS,
    "model.remat": REMAT,
    "model.positions": ("sincos", "table"),
    "model.interpolation": INTERPOLATIONS,
    "predictor.context": CONTEXTS,
    "target.last_block": LAST_BLOCKS,
}


def default() -> ml_collections.ConfigDict:
    """All settings, at the values of the paper's ViT-B/16 on ImageNet-1K where it has them (METHOD: appendix A)."""
    return ml_collections.ConfigDict(
        {
            "method": "ijepa",
            "seed": 0,
            "model": {
                "size": "vit_base",  # a name of ijepa_jax.vit.SIZES
                "patch": 16,
                "width": config_dict.placeholder(int),  # these four override the named size
                "depth": config_dict.placeholder(int),
                "heads": config_dict.placeholder(int),
                "mlp_ratio": config_dict.placeholder(float),
                "drop_path": 0.0,  # in the context encoder
                "dtype": "bfloat16",  # of the computation; parameters, optimiser and EMA are float32
                "attention": "xla",  # or cudnn
                "scan": False,  # one scanned block instead of unrolled ones: compiles faster
                "remat": "none",  # or dots, full: recompute activations in the backward pass, for less memory
                "init": "normal",  # or depth_scaled
                "epsilon": 1e-6,  # of layer norms
                "positions": "sincos",  # or table: kept with the weights, never trained, as imported weights bring it
                "interpolation": "bicubic",  # or bicubic_antialias: how positions are resized for images of another size
            },
            "predictor": {
                "width": 384,
                "depth": config_dict.placeholder(int),
                "heads": config_dict.placeholder(int),
                "context": "joint",  # or alone: context tokens do not see mask tokens, and are computed once for all targets
            },  # None: the named size's
            "target": {
                "last_block": "all",  # or targets, distinct: what the target encoder's last block computes; no use with scan
                "float8": False,  # whether its linear layers multiply in eight bits
            },
            "masks": {
                "strategy": "multiblock",  # multiblock, random, block, rasterized
                "mode": "subset",  # subset, raster, pad, reference
                "context_patches": 48,
                "num_context_blocks": 1,
                "num_targets": 4,
                "target_scale": (0.15, 0.2),
                "target_aspect": (0.75, 1.5),
                "context_scale": (0.85, 1.0),
            },
            "data": {
                "name": "tfds:imagenet2012",  # scenes, tfds:..., folder:..., arrays:..., idx:...
                "directory": "",  # where tfds data sets are prepared; empty: ~/tensorflow_datasets
                "size": 20000,  # how many training scenes to generate
                "test_size": 4000,  # likewise, held out
                "image_size": (224, 224),  # height, width
                "channels": 3,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                "crop_scale": (0.3, 1.0),  # random resized crop: share of the area
                "crop_aspect": (3 / 4, 4 / 3),
                "flip": False,
                "color_jitter": 0.0,
                "eval_crop": 0.875,  # evaluation: centre crop after the short side is resized to image size / this
                "exact": False,  # crops of files equal to torchvision's to the bit; costs half as much again
                "workers": 0,  # processes that make batches; 0: threads of this one
                "threads": config_dict.placeholder(int),  # of each; None: see pipeline.train_batches
                "buffer": 2,  # batches made ahead of time
                "max_bad_fraction": 0.01,  # more unreadable images than this stop the run
            },
            "optim": {
                "batch_size": 2048,  # over all devices
                "accumulation": 1,  # parts that a batch is computed in
                "epochs": 0.0,  # give epochs or steps, and leave the other 0
                "steps": 0,
                "warmup": 15.0,  # in the unit chosen: epochs or steps
                "schedule_scale": 1.25,  # schedules are stretched by this and cut off at the end of the run
                "start_lr": 1e-4,
                "peak_lr": 1e-3,
                "final_lr": 1e-6,
                "weight_decay": 0.04,
                "final_weight_decay": 0.4,
                "momentum": 0.996,  # of the exponential moving average
                "final_momentum": 1.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "clip": config_dict.placeholder(float),  # bound on the global gradient norm
                "moment_dtype": "float32",  # of AdamW's first moment
            },
            "decoder": {  # of method rcdm: what is decoded, and the network that does it
                "checkpoint": "",  # the workdir of an I-JEPA run, from which model, predictor, target, masks and images come
                "step": 0,  # which of its checkpoints; 0: the best by probe, else the newest; -1: the newest
                "width": 160,
                "depth": 5,
                "heads": 5,
                "sample_steps": 32,  # of the pictures' sampler
            },
            "warm_start": "",  # a workdir whose target encoder (of its best checkpoint, else its newest) starts this run
            "probe": {
                "every": 0,  # steps between probes during training; 0: at the end only
                "train_images": 10000,
                "test_images": 5000,
                "during_train_images": 2000,  # smaller samples while training goes on
                "during_test_images": 1000,
                "batch_size": 250,
                "knn_k": 20,
                "knn_temperature": 0.07,
                "lidar_images": 128,  # test images whose crops LiDAR is computed of; 0: not computed
                "lidar_views": 4,  # crops of each
            },
            "checkpoint": {
                "every": 1000,  # steps
                "keep": 2,  # the newest so many, besides the best by probe
                "keep_every": 0,  # and every so many steps for good; 0: none
            },
            "log": {
                "every": 1,  # steps between metric lines
                "line_seconds": 10.0,  # between lines of text
                "wandb": "",  # a project of Weights & Biases that shows the run too (pip install wandb); empty: none
            },
            "profile": {"start": 3, "steps": 0},  # trace these steps into WORKDIR/profile
            "mesh": {"data": -1, "fsdp": 1},  # device mesh; -1: all that are left
        }
    )


def check_run(config: ml_collections.ConfigDict) -> None:
    """As `check`, and that there is all that a run needs; weights that were imported have settings, but no length of a run."""
    check(config)
    optim, decoder = config.optim, config.decoder
    if bool(optim.epochs) == bool(optim.steps):
        raise ValueError(f"give either optim.epochs or optim.steps, not both or none: {optim.epochs} and {optim.steps}")
    if config.method == "rcdm" and not decoder.checkpoint:
        raise ValueError("decoder.checkpoint is missing: give the workdir whose representations are to be decoded")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, naming the key, where settings contradict each other or are out of range."""
    optim, data, model, decoder = config.optim, config.data, config.model, config.decoder
    flat = flatten(config)
    if config.probe.lidar_images < 0 or config.probe.lidar_views < 2:
        raise ValueError(
            f"probe.lidar_images {config.probe.lidar_images} must not be negative, probe.lidar_views "
            f"{config.probe.lidar_views} at least 2"
        )
    for key in _POSITIVE:
        if flat[key] is not None and flat[key] <= 0:
            raise ValueError(f"{key} {flat[key]} must be positive")
    if optim.moment_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"optim.moment_dtype {optim.moment_dtype!r} must be 'float32' or 'bfloat16'")
    for key, known in _NAMED.items():
        if flat[key] not in known:
            raise ValueError(f"{key} {flat[key]!r} must be one of {', '.join(known)}")
    if decoder.width % 4 or decoder.width % decoder.heads:
        raise ValueError(f"decoder.width {decoder.width} must be a multiple of 4 and of decoder.heads {decoder.heads}")
    if config.method == "rcdm" and config.warm_start:
        raise ValueError("warm_start is for method 'ijepa': a decoder starts afresh")
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype {model.dtype!r} must be 'float32' or 'bfloat16' (float16 would need loss scaling)")
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        raise ValueError("model.attention 'cudnn' needs model.dtype 'bfloat16'")
    if data.workers < 0 or (data.threads is not None and data.threads < 0):
        raise ValueError(f"data.workers {data.workers} and data.threads {data.threads} must not be negative")
    for key, upper in (("crop_scale", 1.0), ("crop_aspect", math.inf)):
        low, high = data[key]
        if not 0 < low <= high <= upper:
            raise ValueError(f"data.{key} {tuple(data[key])} must be (low, high) with 0 < low <= high{' <= 1' * (upper == 1)}")
    if len(data.image_size) != 2:
        raise ValueError(f"data.image_size {tuple(data.image_size)} must be (height, width)")
    if optim.batch_size % optim.accumulation:
        raise ValueError(
            f"optim.batch_size {optim.batch_size} does not divide into optim.accumulation {optim.accumulation} parts"
        )


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All settings by their dotted keys, as JSON types."""
    return dict(_flat(to_plain(config)))


def to_plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings as nested dicts of JSON types."""
    return _plain(config.to_dict())


def from_plain(settings: dict[str, Any]) -> ml_collections.ConfigDict:
    """The inverse of `to_plain`, for the settings kept with a checkpoint; keys that are newer than it take their default.

    Raises ValueError for keys that there are not: what they did, nobody knows here.
    """
    config = default()
    settings = {section: value for section, value in settings.items() if section not in (EXAMPLES, CONTENTS)}
    known = dict(_flat(config.to_dict()))
    if unknown := [f"{key}={value!r}" for key, value in _flat(settings) if key not in known]:
        raise ValueError(f"unknown settings {', '.join(unknown)}: use the version of ijepa_jax that has them")
    for section, value in settings.items():
        if isinstance(value, dict):
            config[section].update({key: tuple(v) if isinstance(v, list) else v for key, v in value.items()})
        else:
            config[section] = value
    return config.lock()


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two plain settings: {key: (old value, new value)}."""
    old, new = dict(_flat(old)), dict(_flat(new))
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}


def fixed_on_resume(key: str) -> bool:
    """Whether a dotted key must stay as it was when a run continues."""
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED_ON_RESUME)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _flat(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
