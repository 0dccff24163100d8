"""LeJEPA on generated scenes, a quarter of the whole run: one change at a time (docs/experiments.md, "LeJEPA on small data").

python tests/study.py tests/studies/lejepa_scenes.py --seeds 1 --parallel 2
"""

CONFIG = "configs/lejepa_scenes.py"
LENGTH = {"optim.steps": 300, "optim.warmup": 30.0, "checkpoint.every": 1000}
SETTINGS = {"probe.every": 0, "lejepa.local_views": 0, "optim.peak_lr": 1e-3, "data.crop_scale": (0.6, 1.0), **LENGTH}

VARIANTS = {
    "two views": {},
    "peak_lr 2e-3": {"optim.peak_lr": 2e-3},
    "crops 0.3": {"data.crop_scale": (0.3, 1.0)},
    "two local views": {"lejepa.local_views": 2},
    "weight 0.02": {"lejepa.weight": 0.02},
    "no jitter": {"views.jitter": 0.0},
}
