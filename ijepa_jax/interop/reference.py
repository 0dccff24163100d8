"""The names and tensor layouts of the authors' released code, and ours.

theirs (encoder)             theirs (predictor)            ours
patch_embed.proj.weight                                    patch_embed/kernel   [D, C, p, p] -> [p * p * C, D]
blocks.I.attn.qkv.weight     predictor_blocks.I.attn...    blocks/I/qkv/kernel  [out, in] -> [in, out]
blocks.I.mlp.fc1.bias        predictor_blocks.I.mlp...     blocks/I/fc1/bias
norm.weight                  predictor_norm.weight         norm/scale
                             predictor_embed.weight        embed/kernel
                             mask_token                    mask_token           [1, 1, W] -> [W]
pos_embed                    predictor_pos_embed           (computed)
"""

import re

import numpy as np

_RENAMES = (
    (r"^predictor_", ""),
    (r"\b(attn|mlp)\.", ""),
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"(norm\d?)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
)


def from_reference(tensors: dict[str, np.ndarray]) -> dict:
    """A parameter tree from the tensors of one reference module (encoder or predictor); position tables are left out."""
    tree: dict = {}
    for name, tensor in tensors.items():
        if name.endswith("pos_embed"):
            continue
        path = parameter_path(name)
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = _to_our_layout(path, np.asarray(tensor))
    return tree


def parameter_path(name: str) -> tuple[str, ...]:
    """Where a reference tensor lies in our tree: 'blocks.0.attn.qkv.weight' -> ('blocks', '0', 'qkv', 'kernel')."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return tuple(name.split("."))


def _to_our_layout(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    if path == ("mask_token",):
        return tensor.reshape(-1)
    if path[-1] != "kernel":
        return tensor
    if tensor.ndim == 4:  # a convolution with stride = kernel is a linear map of each patch's pixels
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.T
