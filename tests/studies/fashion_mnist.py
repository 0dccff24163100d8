"""Fashion-MNIST, a third of the committed run: one change at a time (docs/experiments.md, "Why does it learn so little?").

python tests/study.py tests/studies/fashion_mnist.py --parallel 2
"""

from tests.trials import METRICS  # noqa: F401 - the study's

CONFIG = "configs/fashion_mnist.py"
COMMITTED = {  # of that file, until this study
    "model.patch": 4, "model.width": None, "model.init": "normal", "masks.strategy": "multiblock", "masks.context_patches": 24,
    "data.crop_scale": (0.3, 1.0), "optim.peak_lr": 5e-4, "optim.momentum": 0.996,
}  # fmt: skip
LENGTH = {"optim.steps": 3000, "optim.warmup": 300.0, "probe.every": 1000, "checkpoint.every": 3000}
SETTINGS = {"method": "tests/trials.py:Trial", **COMMITTED, **LENGTH}

SUPERVISED = {"method": "tests/trials.py:Supervised"}
EMBED, RANDOM = {"custom.embed_scale": 12.0}, {"masks.strategy": "random", "masks.context_patches": 24}
CROPS = {"data.crop_scale": (0.6, 1.0)}
THREE = EMBED | RANDOM | CROPS
FAN_IN = RANDOM | CROPS | {"custom.fan_in": "encoder,predictor"}
PATCH_8 = {"model.patch": 8, "masks.context_patches": 6, "optim.steps": 12_600}  # for about as many FLOPs

VARIANTS = {
    "committed": {},
    "committed, as the package has it": {"method": "ijepa"},  # the same but for what is measured on the way, and rounding
    # what could be learned
    "supervised": SUPERVISED,
    "supervised, embed 12, lr 0.002": SUPERVISED | EMBED | {"optim.peak_lr": 2e-3},
    "supervised, embed 12, lr 0.002, crops 0.6": SUPERVISED | EMBED | CROPS | {"optim.peak_lr": 2e-3},
    # one change
    "embed 4": {"custom.embed_scale": 4.0},
    "embed 12": EMBED,
    "random masks": RANDOM,
    "sigreg": {"custom.sigreg": 0.02},
    "momentum 0.99": {"optim.momentum": 0.99},
    "momentum 0.9995": {"optim.momentum": 0.9995},
    "two contexts": {"masks.num_context_blocks": 2, "optim.steps": 1808},  # at equal compute
    "alone": {"predictor.context": "alone", "optim.steps": 3516},  # likewise
    # two
    "embed 12, lr 0.002": EMBED | {"optim.peak_lr": 2e-3},
    "embed 12, random masks": EMBED | RANDOM,
    "embed 12, crops 0.6": EMBED | CROPS,
    "embed 12, pixels": EMBED | {"custom.pixels": True},
    # three, and one more
    "three": THREE,
    "three, times 5": THREE | {"optim.steps": 15000, "probe.every": 1500},
    "three, pixels": THREE | {"custom.pixels": True},
    "three, stem": THREE | {"custom.stem": True, "custom.embed_scale": 4.0},
    "three, hidden 0.75": THREE | {"masks.mask_ratio": 0.75, "masks.context_patches": 16},
    "three, sigreg": THREE | {"custom.sigreg": 0.02},
    "three, lr 0.001": THREE | {"optim.peak_lr": 1e-3},
    "three, warm-up 900": THREE | {"optim.warmup": 900.0},
    "three, batch 16": THREE | {"optim.batch_size": 16},
    "three, batch 128, lr 0.001": THREE | {"optim.batch_size": 128, "optim.peak_lr": 1e-3},
    "three, two blocks": THREE | {"custom.last_blocks": 2},
    "three, feature": THREE | {"custom.norm": "feature"},
    "three, whiten": THREE | {"target.norm": "whiten"},
    "three, centred": THREE | {"custom.centred": True},
    "three, l2": THREE | {"custom.error": "l2"},
    "three, predictor 1": THREE | {"predictor.depth": 1},
    "three, width 192, depth 2": THREE | {"model.width": 192, "model.depth": 2},
    "three, patch 8": THREE | PATCH_8 | {"custom.embed_scale": 6.0},
    "three, patch 2": THREE | {"custom.embed_scale": 24.0, "model.patch": 2, "masks.context_patches": 96, "optim.steps": 700},
    # linear layers that start as wide as their inputs, in the place of embed 12
    "fan-in": FAN_IN,
    "fan-in, encoder alone": FAN_IN | {"custom.fan_in": "encoder"},
    "three, fan-in of the predictor": THREE | {"custom.fan_in": "predictor"},
    "fan-in, lr 0.001": FAN_IN | {"optim.peak_lr": 1e-3},
    "fan-in, patch 8": FAN_IN | PATCH_8,
    "fan-in, patch 8, whiten": FAN_IN | PATCH_8 | {"target.norm": "whiten"},
    "fan-in, patch 8, width 144, longer": FAN_IN | PATCH_8 | {"model.width": 144, "model.heads": 3, "optim.steps": 30_000},
    "fan-in, patch 8, width 144, lr 0.001, longer": FAN_IN
    | PATCH_8
    | {"model.width": 144, "model.heads": 3, "optim.steps": 30_000, "optim.peak_lr": 1e-3},
    "fan-in, 28 pixels": FAN_IN | {"data.image_size": (28, 28), "masks.context_patches": 18, "optim.steps": 4040},
    "fan-in, 28 pixels, patch 7, width 192": FAN_IN
    | {"data.image_size": (28, 28), "model.patch": 7, "model.width": 192, "masks.context_patches": 6, "optim.steps": 3650},
}
