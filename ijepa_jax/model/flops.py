"""Model FLOPs of a training step: what its images a second and a chip's peak are compared by.

Methods here are I-JEPA and what is made of its networks and masks (see methods/ijepa.py).
"""

import math
from typing import Any

import numpy as np

from ijepa_jax.model.predictor import Predictor
from ijepa_jax.model.vit import ViT
from ijepa_jax.settings.axes import each_axis

PEAK_TFLOPS = {"v5e": 197.0, "v5p": 459.0, "v6e": 918.0, "h200": 989.0, "h100": 989.0, "a100": 312.0}  # dense bfloat16
_KINDS = {  # what JAX calls these chips
    "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e",
}  # fmt: skip
_LANES = 128  # of a TPU's registers and, on either side, of its matrix unit


def peak_tflops(device_kind: str) -> float | None:
    """The dense bfloat16 peak of a chip by JAX's name for it, in TFLOP/s; None where it is not known."""
    named = _KINDS.get(device_kind) or next((chip for chip in ("h200", "h100", "a100") if chip in device_kind.lower()), "")
    return PEAK_TFLOPS.get(named)


def step_flops(method: Any) -> dict[str, int]:
    """Floating-point operations that the method needs for an image and step: {"context": ..., "target": ..., "predictor": ...}.

    There is no "target" where nothing encodes targets.

    The matrix products alone (a multiplication and an addition count as 2), on contexts and targets of the static length that
    the compiled step works on. Those that are trained count three times: forward, gradient of the input, gradient of the
    weights; but pixels need no gradient, and the target encoder only runs forward. Recomputation (`model.remat`) is not
    counted: it is the price of memory and not part of the method. The last block's outputs at context tokens are counted in the
    predictor, though they are never computed: nobody reads them, and implementations that compute them are compared with.
    So is all of the target encoder's last block, whatever `target.last_block`. Where the predictor's contexts are `alone`,
    which is another method, what its mask tokens must not see is not counted.
    """
    return _flops(method, *_static_lengths(method, 1))


def index_padding(method: Any, images: int = 2000) -> float:
    """Share of all model FLOPs (see `step_flops`) that padded tokens cost: 0.02 is 2%.

    Index arrays have one static length: targets that are shorter, and contexts in mask mode `pad`, are padded at the tail. This
    is 1 - (FLOPs that the valid lengths need) / (FLOPs of the static lengths), summed over the masks that the method's own
    sampler draws for so many images; in attention, padding costs with the square of a sequence's length. The images are of
    different batches, since mask mode `reference` draws a batch's sizes together. The same method always gives the same number.
    """
    masks = method.prepare()(np.arange(images) * method.masks.batch_size)
    target = masks["target_length"].astype(np.int64)
    context = masks["context_length"].astype(np.int64) if "context_length" in masks else _static_lengths(method, images)[0]
    needed = sum(_flops(method, context, target).values())
    return 1 - needed / (images * sum(step_flops(method).values()))


def lane_padding(method: Any) -> dict[str, float | dict[str, int]]:
    """What a TPU's matrix unit computes in vain in attention's products, by arithmetic; padded tokens count as tokens here.

    Assumed of a product of [rows, contracted] and [contracted, lanes], one for each head of each sequence: `contracted` and
    `lanes` are rounded up to 128, the width of a register and of the matrix unit (v6e's is of 256), and `rows` to a tile's
    sublanes, 8 in float32 and 16 in bfloat16. In all six products of attention, forward and backward, one of the first two is
    the head dim, the other the sequence's tokens (of static length), and `rows` are tokens too. A compiler that lays
    heads or images side by side pads less. Products are those of `step_flops`.

    Returns:
        `head_dims`: {"encoder": ..., "predictor": ...};
        `of_attention`: padding as a share of attention's FLOPs with padding, 0 to 1;
        `of_model`: the same padding relative to all model FLOPs, none of which is padding: it can exceed 1;
        `head_dims_of_model`: what `of_model` would be if head dims alone were rounded up, and tokens not.
    """
    sublanes = 32 // np.dtype(method.network.dtype).itemsize
    real = heads_alone = padded = 0
    for network, tokens, times in _sequences(method):
        dim = network.width // network.heads
        product = 2 * 2 * times * network.depth * network.heads  # logits; their weighted sum of values
        real += product * tokens**2 * dim
        heads_alone += product * tokens**2 * _up(dim, _LANES)
        padded += product * _up(tokens, sublanes) * _up(tokens, _LANES) * _up(dim, _LANES)
    model = sum(step_flops(method).values())
    return {
        "head_dims": {name: network.width // network.heads for name, network in _networks(method).items()},
        "of_attention": 1 - real / padded,
        "of_model": (padded - real) / model,
        "head_dims_of_model": (heads_alone - real) / model,
    }


def unfriendly_sizes(method: Any) -> list[str]:
    """Widths, hidden sizes of MLPs and values of a patch that are no multiple of a TPU's 128 lanes: "encoder width 192"."""
    sizes = {"patch": method.backbone().patch_values}
    for name, network in _networks(method).items():
        sizes |= {f"{name} width": network.width, f"{name} mlp": int(network.width * network.mlp_ratio)}
    return [f"{name} {size}" for name, size in sizes.items() if size % _LANES]


def _flops(method: Any, context: np.ndarray, target: np.ndarray) -> dict[str, int]:
    """FLOPs of some images, by part of the method, from their lengths: int64 [images, C] and [images, M]."""
    encoder, predictor, patches = method.network, method.predictor, math.prod(method.grid)
    embed = 2 * method.backbone().patch_values * encoder.width  # of a patch
    join = 2 * encoder.width * predictor.width  # of a token, into the predictor
    leave = 2 * (predictor.outputs or encoder.width) * predictor.width  # and out of it
    context_bc1, target_b1m = context[:, :, None], target[:, None, :]
    if predictor.context_mode == "alone":
        predicting = of_blocks(predictor, context).sum() + of_blocks(predictor, target_b1m, context_bc1).sum()
    else:
        predicting = of_blocks(predictor, context_bc1 + target_b1m).sum()
    moved = context.sum() * join + target.sum() * context.shape[1] * leave
    found = {
        "context": int((2 * context * embed + 3 * of_blocks(encoder, context)).sum()),
        "predictor": int(3 * (moved + predicting)),
    }
    if (of := method.target_network) is not None:
        embed = 2 * math.prod(each_axis(of.patch, len(method.grid))) * method.channels * of.width
        found["target"] = len(context) * (patches * embed + of_blocks(of, patches))
    return found


def _static_lengths(method: Any, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths that the compiled step works on, of contexts [images, C] and targets [images, M]."""
    masks = method.masks
    context = np.full((images, masks.num_context_blocks), masks.context_length)
    return context, np.full((images, masks.num_targets), masks.target_length)


def _sequences(method: Any) -> list[tuple[ViT | Predictor, int, int]]:
    """What attention runs on for an image and step: (network, tokens, sequences); trained sequences count three times."""
    masks, contexts = method.masks, method.masks.num_context_blocks
    context, targets, each = masks.context_length, masks.num_targets, masks.target_length
    alone = method.predictor.context_mode == "alone"  # then all targets share the context's sequence
    predicting = (context + targets * each, 3 * contexts) if alone else (context + each, 3 * contexts * targets)
    return [
        (method.network, context, 3 * contexts),
        *([(method.target_network, math.prod(method.grid), 1)] if method.target_network else []),
        (method.predictor, *predicting),
    ]


def _networks(method: Any) -> dict[str, ViT | Predictor]:
    return {"encoder": method.network, "predictor": method.predictor}


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def of_blocks(network: Any, tokens: int | np.ndarray, others: int | np.ndarray = 0) -> int | np.ndarray:
    """Forward operations of a stack of transformer blocks on one sequence, or each of several, that sees `others` besides."""
    width = network.width
    hidden = int(width * network.mlp_ratio)
    linear = 2 * tokens * (4 * width**2 + 2 * width * hidden)  # queries, keys, values and their projection; the MLP
    attention = 2 * 2 * tokens * (tokens + others) * width  # logits; their weighted sum of values
    return network.depth * (linear + attention)
