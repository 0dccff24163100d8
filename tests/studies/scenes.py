"""Generated scenes, the quickstart's run: one change at a time (docs/experiments.md, "Why does it learn so little?").

python tests/study.py tests/studies/scenes.py --parallel 2
"""

from tests.trials import METRICS  # noqa: F401 - the study's

CONFIG = "configs/quickstart.py"
BEFORE = {"target.norm": "layer", "optim.momentum": 0.998}  # the quickstart until this study
SETTINGS = {"method": "tests/trials.py:Trial", "checkpoint.every": 2400} | BEFORE

EMBED, RANDOM = {"custom.embed_scale": 3.5}, {"masks.strategy": "random"}

VARIANTS = {
    "committed": {},
    "supervised": {"method": "tests/trials.py:Supervised"},
    "supervised, fan-in": {"method": "tests/trials.py:Supervised", "custom.fan_in": "encoder"},
    "embed 3.5": EMBED,
    "random masks": RANDOM,
    "embed 3.5, random masks": EMBED | RANDOM,
    "sigreg": {"custom.sigreg": 0.02},
    "whiten": {"target.norm": "whiten"},
    "whiten, sigreg": {"target.norm": "whiten", "custom.sigreg": 0.02},
    "pixels": {"custom.pixels": True},
    "fan-in": {"custom.fan_in": "encoder,predictor"},
    "fan-in, whiten": {"custom.fan_in": "encoder,predictor", "target.norm": "whiten"},
    "fan-in, sigreg": {"custom.fan_in": "encoder,predictor", "custom.sigreg": 0.02},
    "stem": {"custom.stem": True, "custom.embed_scale": 2.0},
    "patch 16": {"model.patch": 16, "masks.context_patches": 4, "optim.steps": 9600},  # for about as many FLOPs
    "embed 3.5, random masks, sigreg": EMBED | RANDOM | {"custom.sigreg": 0.02},
}
