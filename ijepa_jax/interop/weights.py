"""Weights as they come from other projects or go there: trees in our layout, with the settings of what they are for."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax import build
from ijepa_jax.methods import config as config_lib
from ijepa_jax.model.vit import ViT
from ijepa_jax.settings.architectures import SIZES
from ijepa_jax.settings.axes import each_axis

Tensors = Mapping[str, np.ndarray]


class WeightsError(ValueError):
    """Weights that cannot be used: one line that says which and why."""


def check_pointer(head: bytes, source: str) -> None:
    """Raises WeightsError for a file that git left in the place of one that git-lfs has still to fetch."""
    if head.startswith(b"version https://git-lfs.github.com/spec/v1"):
        raise WeightsError(f"{source} is a git-lfs pointer, not the file that it stands for: fetch that with git lfs pull")


def can_be(shape: Sequence[int]) -> bool:
    """Whether NumPy can have an array of this shape, which may be empty, of numbers of up to eight bytes."""
    return len(shape) <= 64 and math.prod(max(side, 1) for side in shape) < 2**60


def shown(value: Any) -> str:
    """What a file says, as a message can show it: on one line, and not all of it where that is long or without end."""
    return ascii(value[:100])[1:-1] if isinstance(value, str) else " ".join(reprlib.repr(value).split())[:200]


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run needs to go on: all parameters and AdamW's moments, as trees of NumPy arrays, and the steps done."""

    params: dict[str, dict]  # {"encoder": tree, "predictor": tree}
    moments: tuple[dict, dict]  # first and second, trees like params
    step: int
    batch_size: int
    examples: int = 0  # in the training set, 0 where unknown


@dataclasses.dataclass(frozen=True)
class Weights:
    """An encoder (a tree of float32 NumPy arrays) and what is known of it.

    `settings` are those of a run that would make it; `head` is a linear classifier of the pooled patches, {"kernel": [D, K],
    "bias": [K]}, with the names of its classes in `labels`; `origin` tells where the weights came from.
    """

    encoder: dict
    settings: ml_collections.ConfigDict
    origin: dict[str, Any]
    head: dict | None = None
    labels: tuple[str, ...] = ()
    training: Training | None = None
    step: int = 0
    left_out: tuple[str, ...] = ()  # what came with them and cannot be kept
    decoder: dict | None = None  # MAE's, a tree


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What makes an encoder's outputs, besides its weights."""

    width: int
    depth: int
    heads: int
    hidden: int  # width of the MLP
    patch: int | tuple[int, ...]  # where it differs along axes, one for each
    channels: int
    image_size: tuple[int, ...]
    epsilon: float = 1e-6
    class_token: bool = False


def settings_for(
    architecture: Architecture, interpolation: str, base: ml_collections.ConfigDict | None = None, **data: Any
) -> ml_collections.ConfigDict:
    """Settings of a run whose encoder is of this architecture and carries its position table; `data` are settings of that part.

    `base`: settings that the run shall have, which must be of this architecture (WeightsError, naming what differs).
    """
    if base is not None:
        return _checked_base(base, architecture, interpolation, data)
    made = config_lib.default("mae" if architecture.class_token else "ijepa")
    named = [name for name, size in SIZES.items() if (size.width, size.depth) == (architecture.width, architecture.depth)]
    made.model.size = named[0] if named else "vit_base"
    size = SIZES[made.model.size]
    for key in ("width", "depth", "heads"):
        if getattr(architecture, key) != getattr(size, key):
            made.model[key] = getattr(architecture, key)
    if int(architecture.width * size.mlp_ratio) != architecture.hidden:
        made.model.mlp_ratio = mlp_ratio(architecture)
    made.model.patch, made.model.epsilon = architecture.patch, architecture.epsilon
    made.model.positions, made.model.interpolation = "table", interpolation
    made.model.dtype = "float32"
    made.data.image_size, made.data.channels = architecture.image_size, architecture.channels
    if architecture.channels != 3 and "mean" not in data:
        data |= {"mean": (0.5,) * architecture.channels, "std": (0.5,) * architecture.channels}
    for key in ("mean", "std"):
        if key in data:
            data[key] = _per_channel(key, data[key], architecture.channels)
    made.data.update(data)
    return made


def _per_channel(key: str, values: Any, channels: int) -> tuple[float, ...]:
    """A number for each channel, the same for all where there is one only; that of a standard deviation is positive."""
    given = [values] * channels if isinstance(values, (int, float)) else values
    least = 0 if key == "std" else -math.inf
    if not (
        isinstance(given, (list, tuple))
        and len(given) == channels
        and all(isinstance(x, (int, float)) and least < x and abs(x) < 1e6 for x in given)
    ):
        kind = "positive number" if key == "std" else "number"
        raise WeightsError(
            f"the weights' configuration has a {key} of pixels {shown(values)}: not a {kind} for each of {channels} channels"
        )
    return tuple(map(float, given))


def _checked_base(
    base: ml_collections.ConfigDict, architecture: Architecture, interpolation: str, data: dict[str, Any]
) -> ml_collections.ConfigDict:
    made = base.copy_and_resolve_references()
    found = architecture_of(made)
    if architecture.class_token and not found.class_token:
        raise WeightsError(
            f"the weights have a class token, as MAE's: the configuration's encoder, of {made.method!r}, has none"
        )
    differs = [
        f"{field.name} {getattr(found, field.name)} is {getattr(architecture, field.name)} in the weights"
        for field in dataclasses.fields(Architecture)
        if getattr(found, field.name) != getattr(architecture, field.name)
    ]
    differs += [
        f"data.{key} {tuple(made.data[key])} is {data[key]} in the weights"
        for key in ("mean", "std")
        if key in data and tuple(data[key]) != tuple(made.data[key])
    ]
    if differs:
        raise WeightsError(f"the configuration is of another encoder: its {'; its '.join(differs)}")
    made.model.positions, made.model.interpolation = "table", interpolation
    return made


def architecture_of(settings: ml_collections.ConfigDict) -> Architecture:
    """The architecture that settings name. Raises WeightsError where the method has an encoder of its own kind."""
    method = build.trained_method(settings)
    if (encoder := method.backbone()) is None:
        raise WeightsError(f"{method.title} trains no encoder")
    network, axes = encoder.network, len(encoder.image_size)
    if not isinstance(network, ViT):
        raise WeightsError(f"the encoder of {method.title} is a {type(network).__name__}: only our ViT has a form elsewhere")
    sides = each_axis(network.patch, axes)
    patch = sides[0] if len({*sides}) == 1 else sides
    return Architecture(
        network.width, network.depth, network.heads, int(network.width * network.mlp_ratio), patch, encoder.channels,
        encoder.image_size, network.epsilon, network.class_token,
    )  # fmt: skip


def mlp_ratio(architecture: Architecture) -> float:
    """The ratio of the MLP's width to the encoder's, by which int(width * ratio) is exact."""
    ratio = architecture.hidden / architecture.width
    while int(architecture.width * ratio) < architecture.hidden:  # the quotient may be rounded down
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def heads_of(width: int, depth: int, given: int | None, source: str) -> int:
    """The number of heads, which tensors do not show: the named size's of this width and depth, or the one given."""
    named = {name: size.heads for name, size in SIZES.items() if (size.width, size.depth) == (width, depth)}
    for name, heads in named.items():
        if given not in (None, heads):
            raise WeightsError(f"{source}: width {width} and depth {depth} are {name}'s, which has {heads} heads, not {given}")
        return heads
    if given is None:
        raise WeightsError(f"{source} does not tell how many heads its {depth} blocks of width {width} have: give --heads")
    return checked_heads(width, given, source)


def checked_heads(width: int, heads: int, source: str) -> int:
    """The number of heads, if the width divides into them."""
    if heads < 1 or width % heads:
        raise WeightsError(f"{source}: width {width} does not divide into {heads} heads")
    return heads


def square_grid(patches: int, source: str) -> tuple[int, int]:
    """The grid of a position table that does not tell its sides."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise WeightsError(f"{source}: a position table of {patches} patches is not square, and nothing tells its sides")
    return side, side


def check_names(found: Sequence[str], wanted: Sequence[str], source: str) -> None:
    """Raises WeightsError, listing them, where tensors are missing or unexpected."""
    found, wanted = {*found}, {*wanted}
    for kind, names in (("lacks", wanted - found), ("has tensors that this network has not:", found - wanted)):
        if names:
            listed = ", ".join(map(shown, sorted(names)[:8]))
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise WeightsError(f"{source} {kind} {listed}{more}{_what_it_is(found)}")


def _what_it_is(names: set[str]) -> str:
    """A guess at whose weights these are, for the message that refuses them."""
    if any("decoder_embed" in name or "decoder_pos_embed" in name for name in names):
        return " (these are weights of a masked autoencoder, MAE)"
    if any("backbone." in name for name in names):
        return " (these are weights of V-JEPA)"
    if any(name.endswith(("cls_token", "class_token")) for name in names):
        return " (these are weights of a ViT with a class token)"
    return ""


def take_head(tensors: dict[str, np.ndarray], layer: str) -> dict[str, np.ndarray] | None:
    """Takes the classifier, a linear layer with bias, out of the tensors; None where there is none."""
    if f"{layer}.weight" not in tensors or f"{layer}.bias" not in tensors:
        return None
    return {"kernel": tensors.pop(f"{layer}.weight").T, "bias": tensors.pop(f"{layer}.bias")}


def check_head(head: dict[str, np.ndarray] | None, labels: Sequence[str], width: int, source: str) -> None:
    """Raises WeightsError where a classifier is not of the encoder's width, or its classes are not as many as their names."""
    if head is None:
        return
    kernel, bias = head["kernel"].shape, head["bias"].shape
    if len(bias) != 1 or kernel != (width, *bias):
        raise WeightsError(f"{source}: a classifier of shapes {list(kernel[::-1])} and {list(bias)} does not fit width {width}")
    if labels and len(labels) != bias[0]:
        raise WeightsError(f"{source}: the configuration names {len(labels)} classes, the classifier has {bias[0]}")


def check_finite(tensors: Tensors, source: str) -> None:
    """Raises WeightsError where a tensor holds NaN or infinite values."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
            raise WeightsError(f"{source}: tensor {shown(name)} holds NaN or infinite values")
