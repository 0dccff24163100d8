"""Fashion-MNIST, short runs of many settings: does the loss tell the probe? (docs/experiments.md, "LeJEPA on small data")

python tests/study.py tests/studies/loss_and_probe.py --seeds 1 --parallel 2
"""

CONFIG = "configs/lejepa_fashion_mnist.py"
METRICS = ("loss", "sigreg", "invariance")
SETTINGS = {"probe.every": 0, "probe.train_images": 5000, "probe.test_images": 5000}
LEJEPA = {"optim.steps": 200, "optim.warmup": 20.0, "checkpoint.every": 1000}  # of 64 images, each seen twice
IJEPA = {"config": "configs/fashion_mnist.py", "optim.steps": 800, "optim.warmup": 80.0, "checkpoint.every": 1000}  # of 32
IJEPA["optim.momentum"] = 0.99  # for so short a run


def _decay(value: float) -> dict[str, float]:
    return {"optim.weight_decay": value, "optim.final_weight_decay": value}


_CHANGES = {
    "lejepa": {
        "recipe": {},
        "peak_lr 2e-4": {"optim.peak_lr": 2e-4},
        "peak_lr 6e-4": {"optim.peak_lr": 6e-4},
        "peak_lr 5e-3": {"optim.peak_lr": 5e-3},
        "peak_lr 1e-2": {"optim.peak_lr": 1e-2},
        "decay 0.5": _decay(0.5),
        "weight 0.01": {"lejepa.weight": 0.01},
        "weight 0.2": {"lejepa.weight": 0.2},
        "weight 0.5": {"lejepa.weight": 0.5},
        "crops 0.3": {"data.crop_scale": (0.3, 1.0)},
        "crops 0.1": {"data.crop_scale": (0.1, 1.0)},
        "outputs 8": {"lejepa.outputs": 8},
        "outputs 128": {"lejepa.outputs": 128},
        "init normal": {"model.init": "normal"},
        "no jitter": {"views.jitter": 0.0},
        "patch 4": {"model.patch": 4, "model.width": 96},
    },
    "ijepa": {
        "recipe": {},
        "peak_lr 1e-4": {"optim.peak_lr": 1e-4},
        "peak_lr 3e-4": {"optim.peak_lr": 3e-4},
        "peak_lr 3e-3": {"optim.peak_lr": 3e-3},
        "peak_lr 1e-2": {"optim.peak_lr": 1e-2},
        "decay 0.5": _decay(0.5),
        "momentum 0.9": {"optim.momentum": 0.9},
        "momentum 0.999": {"optim.momentum": 0.999},
        "whiten": {"target.norm": "whiten"},
        "crops 0.3": {"data.crop_scale": (0.3, 1.0)},
        "crops 1": {"data.crop_scale": (1.0, 1.0)},
        "hidden 0.4": {"masks.mask_ratio": 0.4, "masks.context_patches": 9},
        "hidden 0.75": {"masks.mask_ratio": 0.75, "masks.context_patches": 4},
        "init normal": {"model.init": "normal"},
        "predictor 1": {"predictor.depth": 1},
        "patch 4": {"model.patch": 4, "model.width": 96, "masks.context_patches": 24},
    },
}
_BASES = {"lejepa": LEJEPA, "ijepa": IJEPA}
VARIANTS = {f"{method}, {name}": _BASES[method] | change for method, of in _CHANGES.items() for name, change in of.items()}
