"""LeJEPA on generated scenes, half the whole run: one change at a time (docs/experiments.md, "LeJEPA on small data").

python tests/study.py tests/studies/lejepa_scenes.py --seeds 1 --parallel 2
"""

CONFIG = "configs/lejepa_scenes.py"
LENGTH = {"optim.steps": 600, "optim.warmup": 60.0, "checkpoint.every": 1000}
SETTINGS = {"probe.every": 0, **LENGTH}

TWO = {"lejepa.local_views": 0}
VARIANTS = {
    "two views": TWO,
    "two views, crops 0.3": TWO | {"data.crop_scale": (0.3, 1.0)},
    "two views, crops 0.2": TWO | {"data.crop_scale": (0.2, 1.0)},
    "two views, peak_lr 2e-3": TWO | {"optim.peak_lr": 2e-3},
    "two views, peak_lr 5e-4": TWO | {"optim.peak_lr": 5e-4},
    "two views, weight 0.02": TWO | {"lejepa.weight": 0.02},
    "two views, no jitter": TWO | {"views.jitter": 0.0},
    "two views, init fan_in": TWO | {"model.init": "fan_in"},
    "two local views besides": {},
}
