"""timm's I-JEPA encoders: `vit_huge_patch14_gap_224` and its sisters, as files and folders of safetensors.

timm names tensors as the authors do (see layout.py); a classifier is `head.weight`, `head.bias`.
"""

import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax.interop import layout, mae, tensor_files
from ijepa_jax.interop.weights import (
    Weights,
    WeightsError,
    architecture_of,
    check_finite,
    check_head,
    mlp_ratio,
    settings_for,
    take_head,
)

_HEADS = {  # of timm's architectures with exact GELU, layer norms of epsilon 1e-6 and nothing more than I-JEPA's encoders
    "vit_tiny_patch16_224": 3, "vit_tiny_patch16_384": 3,
    "vit_small_patch8_224": 6, "vit_small_patch16_224": 6, "vit_small_patch16_384": 6,
    "vit_small_patch32_224": 6, "vit_small_patch32_384": 6,
    "vit_base_patch8_224": 12, "vit_base_patch16_224": 12, "vit_base_patch16_384": 12,
    "vit_base_patch32_224": 12, "vit_base_patch32_384": 12, "vit_base_patch16_gap_224": 16,
    "vit_large_patch14_224": 16, "vit_large_patch16_224": 16, "vit_large_patch16_384": 16,
    "vit_large_patch32_224": 16, "vit_large_patch32_384": 16,
    "vit_huge_patch14_224": 16, "vit_huge_patch14_gap_224": 16, "vit_huge_patch16_gap_448": 16,
    "vit_giant_patch14_224": 16, "vit_giant_patch16_gap_224": 16, "vit_gigantic_patch14_224": 16,
}  # fmt: skip
_PUBLISHED = {  # those that were published for I-JEPA, by width, depth, hidden, patch, channels and image size
    (1280, 32, 5120, 14, 3, (224, 224)): "vit_huge_patch14_gap_224",
    (1280, 32, 5120, 16, 3, (448, 448)): "vit_huge_patch16_gap_448",
    (1408, 40, 6144, 16, 3, (224, 224)): "vit_giant_patch16_gap_224",
}
_SIZES = (("model_args", "img_size"), ("pretrained_cfg", "input_size"))  # what it was made for, what it was first trained on
_INTERPOLATION = "bicubic_antialias"
_DESCRIPTIONS = "label_descriptions"  # of classes by name, kept for the way back


def read_timm(path: str, heads: int | None = None, base: ml_collections.ConfigDict | None = None) -> Weights:
    """An encoder, with its classifier if there is one, from a folder as timm pushes it to the hub: config.json and the tensors.

    Raises WeightsError for another architecture, and where tensors are missing, unexpected or of wrong shapes.
    """
    folder = Path(path)
    config = tensor_files.read_json(folder / "config.json")
    return from_tensors(tensor_files.read_folder(folder), config, path, heads, base)


def from_tensors(
    tensors: dict[str, np.ndarray],
    config: dict[str, Any],
    source: str,
    heads: int | None,
    base: ml_collections.ConfigDict | None = None,
) -> Weights:
    """The same from tensors and what a hub's config.json says, which is empty for a file alone."""
    check_finite(tensors, source)
    encoder, decoder = mae.split(tensors)
    head, class_token = take_head(encoder, "head"), "cls_token" in encoder
    pretrained, arguments = (_part(config, key, source) for key in ("pretrained_cfg", "model_args"))
    by_token = _check_kind(config, arguments, class_token, source)
    left_out = ["the classifier, which reads the class token and not pooled patches"] * (by_token and head is not None)
    head = None if by_token else head
    told = _heads(config, arguments, source)
    if heads and told not in (None, heads):
        raise WeightsError(f"{source}: its configuration has {told} heads, not {heads}")
    if class_token and arguments.get("no_embed_class") and np.ndim(encoder.get("pos_embed")) == 3:
        encoder["pos_embed"] = np.pad(encoder["pos_embed"], ((0, 0), (1, 0), (0, 0)))  # where the class token has none
    size = _image_size(config, encoder, source)
    if told is None and heads is None and base is not None:
        heads = architecture_of(base).heads
    shown = layout.architecture(encoder, source, heads if told is None else told, size, told=told is not None)
    data = {key: pretrained[key] for key in ("mean", "std") if key in pretrained}
    if isinstance(pretrained.get("crop_pct"), (int, float)):
        data["eval_crop"] = float(pretrained["crop_pct"])
    settings = settings_for(shown, _INTERPOLATION, base, **data)
    labels = _labels(config, pretrained) if head else ()
    check_head(head, labels, shown.width, source)
    origin = {"format": "timm", "file": source, "architecture": config.get("architecture") or ""}
    if labels and (descriptions := config.get(_DESCRIPTIONS) or pretrained.get(_DESCRIPTIONS)):
        origin[_DESCRIPTIONS] = descriptions
    tree, why = mae.with_decoder(settings, decoder, shown, None, source, fixed=base is not None)
    return Weights(layout.from_reference(encoder), settings, origin, head, labels, left_out=(*left_out, *why), decoder=tree)


def _part(config: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise WeightsError(f"{source}: its configuration's {key} is not a JSON object")
    return found


def _check_kind(config: dict[str, Any], arguments: dict[str, Any], class_token: bool, source: str) -> bool:
    """Refuses models that compute otherwise than our encoders, which tensors do not show; whether it pools by a class token."""
    name = config.get("architecture")
    if name and name not in [*_HEADS]:
        raise WeightsError(f"{source}: architecture {name!r} is not one that I-JEPA encoders have: {', '.join(_HEADS)}")
    if arguments.get("class_token", class_token) != class_token:
        raise WeightsError(f"{source}: its configuration has class_token {not class_token}, its tensors {class_token}")
    told = [found["global_pool"] for found in (arguments, config) if found.get("global_pool")]
    if unknown := [pooling for pooling in told if pooling not in ("avg", *["token"] * class_token)]:
        raise WeightsError(f"{source} pools by {unknown[0]!r}: our encoders average patches ('avg'), or have a class token")
    if arguments.get("act_layer") not in (None, "gelu"):
        raise WeightsError(f"{source} has act_layer {arguments['act_layer']!r}: I-JEPA's encoders have 'gelu'")
    return class_token and [*told, "token"][0] == "token"


def _heads(config: dict[str, Any], arguments: dict[str, Any], source: str) -> int | None:
    """The number of heads that a hub's config.json tells: in what the model was made with, or else by its architecture."""
    heads = arguments.get("num_heads")
    if heads is None:
        return _HEADS.get(config.get("architecture") or "")
    if type(heads) is not int:
        raise WeightsError(f"{source}: the configuration's num_heads {heads!r} is not a whole number")
    return heads


def _labels(config: dict[str, Any], pretrained: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes in their order, a list or by number in either place; none where one of them has no name."""
    names = config.get("label_names") or pretrained.get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _image_size(config: dict[str, Any], tensors: dict[str, np.ndarray], source: str) -> tuple[int, int] | None:
    """The image size of the position table as a hub's config.json tells it; None where it does not."""
    made, trained = (_part(config, part, source).get(key) for part, key in _SIZES)
    size = made or (trained[1:] if isinstance(trained, list) else None)
    size = (size, size) if isinstance(size, int) else tuple(size or ())
    patches, table = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if not size or patches is None or table is None or patches.ndim != 4 or not patches.size or table.ndim != 3:
        return None
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise WeightsError(f"{source}: the configuration's image size {list(size)} is not (height, width)")
    count = table.shape[1] - ("cls_token" in tensors)
    fits = size[0] // patches.shape[-1] * (size[1] // patches.shape[-1]) == count
    return size if made or fits else None  # a model made for another size than `trained` may not tell


def write_timm(weights: Weights, folder: Path) -> str:
    """Writes model.safetensors and the config.json of timm's hub layout; returns the call that loads them."""
    name, arguments = model_call(weights)
    shape = architecture_of(weights.settings)
    names = layout.encoder_names(shape.depth, shape.class_token)
    tensors = layout.to_reference(weights.encoder, names, shape.patch)
    classes = 0
    if weights.head:
        tensors |= {"head.weight": weights.head["kernel"].T, "head.bias": weights.head["bias"]}
        classes = len(weights.head["bias"])
    tensor_files.write(folder / "model.safetensors", tensors)
    data = weights.settings.data
    pretrained = {
        "input_size": [shape.channels, *shape.image_size], "fixed_input_size": True, "interpolation": "bicubic",
        "crop_pct": data.eval_crop, "crop_mode": "center", "mean": list(data.mean), "std": list(data.std),
        "num_classes": classes, "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    config = {
        "architecture": name, "num_classes": classes, "num_features": shape.width, "global_pool": "avg",
        "model_args": arguments, "pretrained_cfg": pretrained, **_named(weights),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shown = "".join(f", {key}={value!r}" for key, value in {**arguments, "num_classes": classes}.items())
    return f"timm.create_model({name!r}, checkpoint_path={str(folder / 'model.safetensors')!r}{shown})"


def _named(weights: Weights) -> dict[str, Any]:
    """The names of the classes and the descriptions of these that came with them, as config.json has them."""
    if not weights.labels:
        return {}
    descriptions = weights.origin.get(_DESCRIPTIONS)
    return {"label_names": list(weights.labels), **({_DESCRIPTIONS: descriptions} if descriptions else {})}


def model_call(weights: Weights) -> tuple[str, dict[str, Any]]:
    """The name and the arguments by which timm makes a model of this architecture."""
    shape = architecture_of(weights.settings)
    if shape.epsilon != 1e-6:
        raise WeightsError(f"timm's layer norms have epsilon 1e-6, this encoder's {shape.epsilon:g}: export to huggingface")
    name = not shape.class_token and _PUBLISHED.get(
        (shape.width, shape.depth, shape.hidden, shape.patch, shape.channels, shape.image_size)
    )
    if name and _HEADS[name] == shape.heads:
        return name, {}
    return "vit_base_patch16_224", {
        "img_size": list(shape.image_size), "patch_size": shape.patch, "in_chans": shape.channels, "embed_dim": shape.width,
        "depth": shape.depth, "num_heads": shape.heads, "mlp_ratio": mlp_ratio(shape), "class_token": shape.class_token,
        "global_pool": "avg", "fc_norm": False,
    }  # fmt: skip
