"""Ways to shorten a context (`masks.mode`), at equal compute (docs/experiments.md, "Which patches a context keeps").

    python tests/study.py tests/studies/context_modes.py --equal compute --seeds 3
    python tests/study.py tests/studies/context_modes.py --equal compute --seeds 3 --config configs/fashion_mnist.py \\
        --config.optim.steps=3000 --runs runs/study/context_modes_fashion_mnist
"""

CONFIG = "configs/quickstart.py"
VARIANTS = {mode: {"masks.mode": mode} for mode in ("subset", "raster", "pad")}
