"""Fashion-MNIST, a third of the committed run: one change at a time (docs/experiments.md, "Why does it learn so little?").

python tests/study.py tests/studies/fashion_mnist.py --parallel 2
"""

CONFIG = "configs/fashion_mnist.py"
TRIAL = "tests/trials.py:Trial"
SETTINGS = {"method": TRIAL, "optim.steps": 3000, "probe.every": 1000, "checkpoint.every": 3000}
METRICS = ("position_share", "token_std", "token_rank", "image_share", "neighbour_cosine")
VARIANTS = {
    "committed": {},
    "supervised": {"method": "tests/trials.py:Supervised"},
    "embed 4": {"custom.embed_scale": 4.0},
    "embed 12": {"custom.embed_scale": 12.0},
    "random masks": {"masks.strategy": "random", "masks.context_patches": 24},
    "sigreg": {"custom.sigreg": 0.02},
    "pixels embed 12": {"custom.pixels": True, "custom.embed_scale": 12.0},
}
