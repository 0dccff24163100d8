"""Settings of a run: the keys that all runs share, with their defaults and ranges, and the checks that need no data.

To these come the sections of the run's method, which its own file declares (see methods/config.py).
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from ijepa_jax.settings import ranges
from ijepa_jax.settings.architectures import ATTENTION, GRADIENTS, INTERPOLATIONS, REMAT, SIZES
from ijepa_jax.settings.axes import CROPPING, modality, patch_grid
from ijepa_jax.settings.ranges import check_heads, choice, flag, number, text, whole

SETTINGS = {
    "method": text("ijepa"),  # a name of methods/table.py, or one's own: FILE.py:CLASS, package.module:CLASS
    "seed": whole(0, 0, 2**32 - 1, fixed=True),
    "model": {
        "size": choice("vit_base", SIZES, fixed=True),
        "patch": whole(16, 1, 1024, each_axis=True, fixed=True),  # its side, or (frames, height, width) of it
        "width": whole(None, 4, 65_536, fixed=True),  # these four override the named size
        "depth": whole(None, 1, 1000, fixed=True),
        "heads": whole(None, 1, 4096, fixed=True),
        "mlp_ratio": number(None, 0.25, 100, fixed=True),
        "drop_path": number(0.0, 0, 0.99),  # in the context encoder
        # of the computation; parameters, optimiser and EMA are float32
        "dtype": choice("bfloat16", ("bfloat16", "float32"), fixed=True),
        "attention": choice("auto", ATTENTION),
        "gradients": choice("written", GRADIENTS),  # automatic: jax.jvp and jax.hessian of the loss work; slower
        "scan": flag(False, fixed=True),  # one scanned block instead of unrolled ones: compiles faster
        "remat": choice("none", REMAT),  # recompute activations in the backward pass, for less memory
        "init": choice("normal", ("normal", "fan_in")),
        "epsilon": number(1e-6, 1e-20, 1, fixed=True),  # of layer norms
        # table: kept with the weights, never trained, as imports bring it
        "positions": choice("sincos", ("sincos", "table"), fixed=True),
        "interpolation": choice("bicubic", INTERPOLATIONS),  # how positions are resized for images of another size
    },
    "data": {
        "name": text("tfds:imagenet2012"),  # scenes, tfds:..., folder:..., arrays:..., idx:...
        "directory": text(""),  # where tfds data sets are prepared; empty: ~/tensorflow_datasets
        "size": whole(20000, 1, 10_000_000),  # how many training scenes to generate
        "test_size": whole(4000, 1, 10_000_000),  # likewise, held out
        # of images (height, width), of videos (frames, height, width), of signals (length,)
        "image_size": whole((224, 224), 1, 1_048_576, length=0, each_axis=True, fixed=True),
        "channels": whole(3, 1, 1024, fixed=True),
        "mean": number((0.485, 0.456, 0.406), -1e6, 1e6, length=0, fixed=True),  # of pixels from 0 to 1, or of signals
        "std": number((0.229, 0.224, 0.225), 1e-9, 1e6, length=0, fixed=True),
        # of training: random resized crops; center: as evaluation shows them; none: as they are, in training and evaluation
        "cropping": choice("random", CROPPING),
        "crop_scale": number((0.3, 1.0), 0, 1, "(]", length=2, rising=True),  # of a random crop: share of the area
        "crop_aspect": number((3 / 4, 4 / 3), 0, 1000, "(]", length=2, rising=True),  # relative to that of image_size
        "flip": flag(False),
        "color_jitter": number(0.0, 0, 2.5),  # 2.5: all hues
        "eval_crop": number(0.875, 0, 1, "(]"),  # evaluation: centre crop after the short side is resized to image size / this
        "exact": flag(False),  # crops of files equal to torchvision's to the bit; costs half as much again
        "workers": whole(0, 0, 1024),  # processes that make batches; 0: threads of this one
        "threads": whole(None, 0, 1024),  # of each; None: see pipeline.train_batches
        "buffer": whole(2, 1, 1024),  # batches made ahead of time
        "max_bad_fraction": number(0.01, 0, 1),  # more unreadable images than this stop the run
    },
    "optim": {
        "batch_size": whole(2048, 1, 1_000_000, fixed=True),  # over all devices
        "accumulation": whole(1, 1, 1_000_000),  # parts that a batch is computed in
        "epochs": number(0.0, 0, 1_000_000),  # give epochs or steps, and leave the other 0
        "steps": whole(0, 0, 1_000_000_000),
        "warmup": number(15.0, 0, 1_000_000_000),  # in the unit chosen: epochs or steps
        "schedule_scale": number(1.25, 0, 1000, "(]"),  # schedules are stretched by this and cut off at the end of the run
        "start_lr": number(1e-4, 0, 1000),
        "peak_lr": number(1e-3, 0, 1000, "(]"),
        "final_lr": number(1e-6, 0, 1000),
        "weight_decay": number(0.04, 0, 1000),
        "final_weight_decay": number(0.4, 0, 1000),
        "momentum": number(0.996, 0, 1),  # of the exponential moving average
        "final_momentum": number(1.0, 0, 1),
        "b1": number(0.9, 0, 0.999999),
        "b2": number(0.999, 0, 0.999999),
        "eps": number(1e-8, 1e-20, 1),
        "clip": number(None, 0, 1_000_000, "(]"),  # bound on the global gradient norm
        "moment_dtype": choice("float32", ("float32", "bfloat16"), fixed=True),  # of AdamW's first moment
    },
    "warm_start": text(""),  # a workdir whose encoder (of its best checkpoint, else its newest) starts this run
    "probe": {
        "every": whole(0, 0, 1_000_000_000),  # steps between probes during training; 0: at the end only
        "train_images": whole(10000, 1, 100_000_000),
        "test_images": whole(5000, 1, 100_000_000),
        "during_train_images": whole(2000, 1, 100_000_000),  # smaller samples while training goes on
        "during_test_images": whole(1000, 1, 100_000_000),
        "batch_size": whole(250, 1, 1_000_000),
        "lidar_images": whole(128, 0, 1_000_000),  # test images whose crops LiDAR is computed of; 0: not computed
    },
    "checkpoint": {
        "every": whole(1000, 1, 1_000_000_000),  # steps
        "keep": whole(2, 1, 1_000_000),  # the newest so many, besides the best by probe
        "keep_every": whole(0, 0, 1_000_000_000),  # and every so many steps for good; 0: none
    },
    "log": {
        "every": whole(1, 1, 1_000_000_000),  # steps between metric lines
        "line_seconds": number(10.0, 0, 1_000_000),  # between lines of text
        "wandb": text(""),  # a project of Weights & Biases that shows the run too (pip install wandb); empty: none
    },
    # trace these steps into WORKDIR/profile
    "profile": {"start": whole(3, 1, 1_000_000_000), "steps": whole(0, 0, 1_000_000)},
    # device mesh; -1: all that are left
    "mesh": {"data": whole(-1, -1, 1_000_000, never=0), "fsdp": whole(1, -1, 1_000_000, never=0)},
}


def check_length(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, naming the key, if the length of the run is not given. Settings of imported weights give none."""
    optim = config.optim
    if bool(optim.epochs) == bool(optim.steps):
        raise ValueError(f"give either optim.epochs or optim.steps, not both or none: {optim.epochs} and {optim.steps}")
    length, warmup = optim.schedule_scale * (optim.epochs or optim.steps), optim.warmup
    if int(warmup) >= int(length) if optim.steps else warmup >= length:
        unit = "epochs" if optim.epochs else "steps"
        raise ValueError(
            f"optim.warmup {optim.warmup:g} {unit} must be shorter than the schedule, {length:g} {unit}: optim.{unit} times "
            "optim.schedule_scale"
        )


def check(config: ml_collections.ConfigDict, known: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, where settings contradict each other or are out of range; `known`: all there are."""
    ranges.check(config, known)
    if config.mesh.data == config.mesh.fsdp == -1:
        raise ValueError("mesh.data and mesh.fsdp are both -1: one of them takes the devices that the other leaves")
    optim, data, model = config.optim, config.data, config.model
    axes = len(data.image_size)
    check_heads("model.", model.width or SIZES[model.size].width, model.heads or SIZES[model.size].heads, axes)
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        raise ValueError("model.attention 'cudnn' needs model.dtype 'bfloat16'")
    if model.attention == "cudnn" and model.gradients == "automatic":
        raise ValueError("model.gradients 'automatic' needs model.attention 'xla': cudnn has gradients of its own")
    if data.color_jitter and data.channels not in (1, 3):
        raise ValueError(f"data.color_jitter {data.color_jitter} needs data.channels 1 or 3, not {data.channels}")
    for key in ("mean", "std"):
        if len(data[key]) != data.channels:
            raise ValueError(f"data.{key} {tuple(data[key])} must have one value for each of data.channels {data.channels}")
    try:
        patch_grid(data.image_size, model.patch)
    except ValueError as error:
        raise ValueError(f"data.image_size, model.patch: {error}") from error
    if modality(data.image_size) == "signal" and (data.flip or data.color_jitter):
        size = f"data.image_size {tuple(data.image_size)} is of signals"
        raise ValueError(f"{size}, which are not flipped or jittered: images have (height, width)")
    if optim.batch_size % optim.accumulation:
        raise ValueError(
            f"optim.batch_size {optim.batch_size} does not divide into optim.accumulation {optim.accumulation} parts"
        )
