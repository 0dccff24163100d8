"""Generated scenes, the quickstart's run: one change at a time (docs/experiments.md, "Why does it learn so little?").

python tests/study.py tests/studies/scenes.py --parallel 2
"""

from tests.trials import METRICS  # noqa: F401 - the study's

CONFIG = "configs/quickstart.py"
SETTINGS = {"method": "tests/trials.py:Trial", "checkpoint.every": 2400}

EMBED, RANDOM = {"custom.embed_scale": 3.5}, {"masks.strategy": "random"}

VARIANTS = {
    "committed": {},
    "supervised": {"method": "tests/trials.py:Supervised"},
    "embed 3.5": EMBED,
    "random masks": RANDOM,
    "embed 3.5, random masks": EMBED | RANDOM,
    "sigreg": {"custom.sigreg": 0.02},
    "whiten": {"custom.norm": "whiten"},
    "pixels": {"custom.pixels": True},
    "embed 3.5, random masks, sigreg": EMBED | RANDOM | {"custom.sigreg": 0.02},
}
