"""Model FLOPs of a training step: what its images a second and a chip's peak are compared by."""

from ijepa_jax.methods import IJepa
from ijepa_jax.predictor import Predictor
from ijepa_jax.vit import ViT

PEAK_TFLOPS = {"v5e": 197.0, "v5p": 459.0, "v6e": 918.0, "h200": 989.0, "h100": 989.0, "a100": 312.0}  # dense bfloat16
_KINDS = {  # what JAX calls these chips
    "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e",
}  # fmt: skip


def peak_tflops(device_kind: str) -> float | None:
    """The dense bfloat16 peak of a chip by JAX's name for it, in TFLOP/s; None where it is not known."""
    named = _KINDS.get(device_kind) or next((chip for chip in ("h200", "h100", "a100") if chip in device_kind.lower()), "")
    return PEAK_TFLOPS.get(named)


def step_flops(method: IJepa) -> dict[str, int]:
    """Floating-point operations that the method needs for an image and step: {"context": ..., "target": ..., "predictor": ...}.

    The matrix products alone (a multiplication and an addition count as 2), on contexts and targets of the static length that
    the compiled step works on. Those that are trained count three times: forward, gradient of the input, gradient of the
    weights; but pixels need no gradient, and the target encoder only runs forward. Recomputation (`model.remat`) is not
    counted: it is the price of memory and not part of the method. The last block's outputs at context tokens are counted in the
    predictor, though they are never computed: nobody reads them, and implementations that compute them are compared with.
    """
    encoder, predictor, masks = method.encoder, method.predictor, method.masks
    patches = method.grid[0] * method.grid[1]
    contexts, context, target = masks.num_context_blocks, masks.context_length, masks.target_length
    pairs = masks.num_targets * contexts
    embed = 2 * encoder.patch**2 * method.channels * encoder.width  # of a patch
    join = 2 * encoder.width * predictor.width  # of a token, into the predictor or out of it
    return {
        "context": contexts * (2 * context * embed + 3 * _blocks(encoder, context)),
        "target": patches * embed + _blocks(encoder, patches),
        "predictor": 3 * ((contexts * context + pairs * target) * join + pairs * _blocks(predictor, context + target)),
    }


def _blocks(network: ViT | Predictor, tokens: int) -> int:
    """Forward operations of a stack of transformer blocks on one sequence."""
    width = network.width
    hidden = int(width * network.mlp_ratio)
    linear = 2 * tokens * (4 * width**2 + 2 * width * hidden)  # queries, keys, values and their projection; the MLP
    attention = 2 * 2 * tokens**2 * width  # logits; their weighted sum of values
    return network.depth * (linear + attention)
