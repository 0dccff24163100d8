"""The names and layouts of tensors in the authors' released code, and ours.

theirs (encoder)             theirs (predictor)            ours
patch_embed.proj.weight                                    patch_embed/kernel   [D, C, p, p] -> [p * p * C, D]
blocks.I.attn.qkv.weight     predictor_blocks.I.attn...    blocks/I/qkv/kernel  [out, in] -> [in, out]
blocks.I.mlp.fc1.bias        predictor_blocks.I.mlp...     blocks/I/fc1/bias
norm.weight                  predictor_norm.weight         norm/scale
                             predictor_embed.weight        embed/kernel
                             mask_token                    mask_token           [1, 1, W] -> [W]
pos_embed                    predictor_pos_embed           positions            [1, N, D] -> [N, D]

timm names an encoder's tensors the same way, and so do MAE's authors, whose class token has a row of the position table, the
first, and whose decoder is

decoder_embed.weight, decoder_blocks.I..., decoder_norm.weight, decoder_pred.weight, decoder_pos_embed, mask_token
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ijepa_jax.interop.weights import Architecture, Tensors, WeightsError, check_names, checked_heads, heads_of, square_grid

_RENAMES = (
    (r"^(predictor_|decoder_)?pos_embed$", "positions"),
    (r"^cls_token$", "class_token"),
    (r"^decoder_pred\.", "proj."),
    (r"^(predictor|decoder)_", ""),
    (r"\b(attn|mlp)\.", ""),
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"(norm\d?)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
)
_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def encoder_names(depth: int, class_token: bool = False) -> list[str]:
    """All tensors of an encoder, in the order in which its modules hold them."""
    return [*["cls_token"] * class_token, "pos_embed", *_pairs("patch_embed.proj"), *_blocks("blocks", depth), *_pairs("norm")]


def predictor_names(depth: int) -> list[str]:
    """Likewise of a predictor."""
    start = ["mask_token", "predictor_pos_embed", *_pairs("predictor_embed")]
    return [*start, *_blocks("predictor_blocks", depth), *_pairs("predictor_norm"), *_pairs("predictor_proj")]


def decoder_names(depth: int) -> list[str]:
    """Likewise of MAE's decoder."""
    start = ["mask_token", "decoder_pos_embed", *_pairs("decoder_embed")]
    return [*start, *_blocks("decoder_blocks", depth), *_pairs("decoder_norm"), *_pairs("decoder_pred")]


def _blocks(name: str, depth: int) -> Iterator[str]:
    for index in range(depth):
        for layer in _BLOCK:
            yield from _pairs(f"{name}.{index}.{layer}")


def _pairs(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def depth_of(names: Iterable[str], blocks: str = r"(?:predictor_|decoder_)?blocks") -> int:
    """How many blocks there are among names of tensors that start as `blocks`, of which there are never thousands."""
    indices = [int(found[1]) for name in names if (found := re.match(rf"{blocks}\.(\d{{1,3}})\.", name))]
    return max(indices, default=-1) + 1


def from_reference(tensors: Tensors) -> dict:
    """A parameter tree, float32, from the tensors of one reference module (encoder, predictor or decoder)."""
    tree: dict = {}
    for name, tensor in tensors.items():
        path = parameter_path(name)
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = _to_our_layout(path, np.asarray(tensor, np.float32))
    if "positions" in tree and ("class_token" in tree or "decoder_pos_embed" in tensors):
        tree["class_position"], tree["positions"] = tree["positions"][0], tree["positions"][1:]
    return tree


def to_reference(tree: dict, names: list[str], patch: int = 0) -> dict[str, np.ndarray]:
    """The tensors of one reference module, in the order of their names; `patch` is the side of an encoder's patches.

    They are views of the leaves, which are taken out of the tree: memory is freed as its last tensor is dropped.
    """
    tensors = {}
    if "class_position" in tree:
        tree["positions"] = np.concatenate([tree.pop("class_position")[None], tree["positions"]])
    for name in names:
        path = parameter_path(name)
        node: Any = tree
        for part in path[:-1]:
            node = node[part]
        tensors[name] = _to_their_layout(path, np.asarray(node.pop(path[-1])), patch)
    return tensors


def parameter_path(name: str) -> tuple[str, ...]:
    """Where a reference tensor lies in our tree: 'blocks.0.attn.qkv.weight' -> ('blocks', '0', 'qkv', 'kernel')."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return tuple(name.split("."))


def _to_our_layout(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    if path in (("mask_token",), ("class_token",)):
        return tensor.reshape(-1)
    if path == ("positions",):
        return tensor.reshape(tensor.shape[-2:])
    if path[-1] != "kernel":
        return tensor
    if tensor.ndim == 4:  # a convolution with stride = kernel is a linear map of each patch's pixels
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.T


def _to_their_layout(path: tuple[str, ...], leaf: np.ndarray, patch: int) -> np.ndarray:
    if path in (("mask_token",), ("class_token",)):
        return leaf.reshape(1, 1, -1)
    if path == ("positions",):
        return leaf[None]
    if path[-1] != "kernel":
        return leaf
    if path[0] == "patch_embed":
        return leaf.reshape(patch, patch, -1, leaf.shape[-1]).transpose(3, 2, 0, 1)
    return leaf.T


def replace(tree: dict, function) -> dict:
    """The same tree, each leaf replaced in its place, so that one leaf is there twice and not the tree."""
    for key, part in tree.items():
        if isinstance(part, dict):
            replace(part, function)
        else:
            tree[key] = function(part)
            del part
    return tree


def architecture(
    tensors: Tensors,
    source: str,
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    *,
    told: bool = False,
    epsilon: float = 1e-6,
) -> Architecture:
    """The architecture that an encoder's tensors, by their reference names, show: all must be there, in the right shapes.

    Tensors do not show the number of heads: where the weights' own configuration has `told` it, it is taken as it is.
    """
    depth = depth_of(tensors)
    patches = tensors.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 5:
        raise WeightsError(f"{source}: patches of {patches.shape[2]} frames: these are weights of a video model, V-JEPA's")
    class_token = "cls_token" in tensors
    check_names([*tensors], encoder_names(max(depth, 1), class_token), source)
    for name, rank in (("pos_embed", 3), ("patch_embed.proj.weight", 4), ("blocks.0.mlp.fc1.weight", 2)):
        if tensors[name].ndim != rank or not tensors[name].size:
            raise WeightsError(f"{source}: tensor {name} has shape {list(tensors[name].shape)}, not {rank} positive dimensions")
    width, channels, patch = patches.shape[:3]
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    count = tensors["pos_embed"].shape[-2] - class_token
    grid = (image_size[0] // patch, image_size[1] // patch) if image_size else square_grid(count, source)
    heads = checked_heads(width, heads, source) if told else heads_of(width, depth, heads, source)
    shapes = {
        "pos_embed": (1, class_token + grid[0] * grid[1], width), "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden),
    }  # fmt: skip
    check_shapes(tensors, shapes, width, source)
    return Architecture(width, depth, heads, hidden, patch, channels, (grid[0] * patch, grid[1] * patch), epsilon, class_token)


def check_shapes(tensors: Tensors, shapes: dict[str, tuple[int, ...]], width: int, source: str) -> None:
    """Raises WeightsError where a tensor is not of the shape given for its name or its layer; others are [width]."""
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        known = shapes.get(name) or shapes.get(re.sub(r"^\w+\.\d+\.", "", layer), (width,))
        wanted = known if kind != "bias" else known[:1]
        if tensor.shape != wanted:
            raise WeightsError(f"{source}: tensor {name} has shape {list(tensor.shape)}, not {list(wanted)}")
