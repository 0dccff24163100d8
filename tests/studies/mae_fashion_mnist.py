"""MAE on Fashion-MNIST, a twentieth of the whole run: one change at a time (docs/experiments.md, "MAE on small data").

python tests/study.py tests/studies/mae_fashion_mnist.py --seeds 1 --parallel 2
"""

CONFIG = "configs/mae_fashion_mnist.py"
LENGTH = {"optim.steps": 1500, "optim.warmup": 150.0, "checkpoint.every": 2000}
SETTINGS = {"probe.every": 0, "probe.train_images": 5000, "probe.test_images": 5000, **LENGTH}

VARIANTS = {
    "recipe": {},
    "peak_lr 5e-4": {"optim.peak_lr": 5e-4},
    "peak_lr 2e-3": {"optim.peak_lr": 2e-3},
    "peak_lr 4e-3": {"optim.peak_lr": 4e-3},
    "hidden 0.5": {"mae.mask_ratio": 0.5},
    "hidden 0.6": {"mae.mask_ratio": 0.6},
    "hidden 0.85": {"mae.mask_ratio": 0.85},
    "no class token": {"mae.class_token": False},
    "plain pixels": {"mae.normalised": False},
    "decoder of 1": {"mae.decoder_depth": 1},
    "decoder of 4": {"mae.decoder_depth": 4},
    "decoder 96 wide": {"mae.decoder_width": 96},
    "decay 0.2": {"optim.weight_decay": 0.2, "optim.final_weight_decay": 0.2},
    "decay 0": {"optim.weight_decay": 0.0, "optim.final_weight_decay": 0.0},
    "b2 0.999": {"optim.b2": 0.999},
    "crops 0.3": {"data.crop_scale": (0.3, 1.0)},
    "mirrored": {"data.flip": True},
    "batch 64, peak_lr 2e-3": {"optim.batch_size": 64, "optim.steps": 750, "optim.warmup": 75.0, "optim.peak_lr": 2e-3},
    "batch 16": {"optim.batch_size": 16, "optim.steps": 3000, "optim.warmup": 300.0},
    "patch 4": {"model.patch": 4, "model.width": 96},
}
