"""The names that settings give to sizes and variants of networks, which model/ builds."""

import dataclasses

ATTENTION = ("auto", "xla", "cudnn")  # auto: cuDNN's kernel where it applies
GRADIENTS = ("written", "automatic")  # of linear layers, norms and attention; jax.jvp and jax.hessian need automatic ones
INTERPOLATIONS = ("bicubic", "bicubic_antialias")  # of position tables
# What the backward pass recomputes. none: nothing; dots: all but the outputs of linear layers; full: everything.
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Size:
    """Architecture of one named size; `predictor_depth` is the depth of the predictor trained with it."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    predictor_depth: int


# METHOD: Zhai et al. 2022 (Scaling Vision Transformers) for giant, Dosovitskiy et al. 2021 for the others; predictor
# depths from the I-JEPA paper, appendix A. `nano` and `pico` are for CPUs and trials.
SIZES = {
    "vit_pico": Size(96, 4, 3, 4.0, 2),
    "vit_nano": Size(128, 4, 4, 4.0, 2),
    "vit_tiny": Size(192, 12, 3, 4.0, 6),
    "vit_small": Size(384, 12, 6, 4.0, 6),
    "vit_base": Size(768, 12, 12, 4.0, 6),
    "vit_large": Size(1024, 24, 16, 4.0, 12),
    "vit_huge": Size(1280, 32, 16, 4.0, 12),
    "vit_giant": Size(1408, 40, 16, 48 / 11, 16),
}
