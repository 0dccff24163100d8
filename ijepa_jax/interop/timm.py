"""timm's I-JEPA encoders: `vit_huge_patch14_gap_224` and its sisters, as files and folders of safetensors.

timm names tensors as the authors do (see layout.py); a classifier is `head.weight`, `head.bias`.
"""

import json
import re
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax.interop import layout, tensor_files
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
from ijepa_jax.vit import SIZES

_MODELS = {  # (width, depth, heads, hidden, patch, image side) of the names that timm has
    (1280, 32, 16, 5120, 14, 224): "vit_huge_patch14_gap_224",
    (1280, 32, 16, 5120, 16, 448): "vit_huge_patch16_gap_448",
    (1408, 40, 16, 6144, 16, 224): "vit_giant_patch16_gap_224",
}
_SIZES = (("model_args", "img_size"), ("pretrained_cfg", "input_size"))  # what it was made for, what it was first trained on
_INTERPOLATION = "bicubic_antialias"


def read_timm(path: str, heads: int | None = None, base: ml_collections.ConfigDict | None = None) -> Weights:
    """An encoder from a timm file, or from a folder that timm pushes to the hub (config.json and model.safetensors).

    Raises WeightsError where tensors are missing, unexpected or of wrong shapes.
    """
    source, config = Path(path), {}
    if source.is_dir():
        config = tensor_files.read_json(source / "config.json")
        source = source / "model.safetensors"
    tensors = tensor_files.read(source)
    return from_tensors(tensors, config, str(path), heads, base)


def from_tensors(tensors: dict[str, np.ndarray], config: dict[str, Any], source: str, heads: int | None, base=None) -> Weights:
    """The same from tensors and what a hub's config.json says."""
    check_finite(tensors, source)
    encoder = dict(tensors)
    head = take_head(encoder, "head")
    pretrained, arguments = (_part(config, key, source) for key in ("pretrained_cfg", "model_args"))
    if arguments.get("class_token"):
        raise WeightsError(f"{source} has a class token: I-JEPA's encoders have none")
    if config.get("global_pool", "avg") != "avg":
        raise WeightsError(f"{source} pools by {config.get('global_pool')!r}: I-JEPA's encoders average patches ('avg')")
    if arguments.get("act_layer") not in (None, "gelu"):
        raise WeightsError(f"{source} has act_layer {arguments['act_layer']!r}: I-JEPA's encoders have 'gelu'")
    told = _heads(config.get("architecture"), arguments, source)
    if heads and told not in (None, heads):
        raise WeightsError(f"{source}: its configuration has {told} heads, not {heads}")
    size = _image_size(config, encoder, source)
    if told is None and heads is None and base is not None:
        heads = architecture_of(base).heads
    shown = layout.architecture(encoder, source, told or heads, size, told=told is not None)
    data = {key: pretrained[key] for key in ("mean", "std") if key in pretrained}
    if isinstance(pretrained.get("crop_pct"), (int, float)):
        data["eval_crop"] = float(pretrained["crop_pct"])
    settings = settings_for(shown, _INTERPOLATION, base, **data)
    labels = pretrained.get("label_names")
    labels = tuple(labels) if isinstance(labels, list) else ()
    check_head(head, labels, shown.width, source)
    origin = {"format": "timm", "file": source, "architecture": config.get("architecture", "")}
    return Weights(layout.from_reference(encoder), settings, origin, head, labels)


def _part(config: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise WeightsError(f"{source}: its configuration's {key} is not a JSON object")
    return found


def _heads(name: Any, arguments: dict[str, Any], source: str) -> int | None:
    """The number of heads that a hub's config.json tells: in what the model was made with, or else by the name of its size."""
    size = re.match(r"(vit_[a-z]+)_patch", str(name))
    named = SIZES[size[1]].heads if size and size[1] in SIZES else None
    heads = arguments.get("num_heads", named)
    if not isinstance(heads, int | None):
        raise WeightsError(f"{source}: the configuration's num_heads {heads!r} is not a whole number")
    return heads


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
    fits = size[0] // patches.shape[-1] * (size[1] // patches.shape[-1]) == table.shape[1]
    return size if made or fits else None  # a model made for another size than `trained` may not tell


def write_timm(weights: Weights, folder: Path) -> str:
    """Writes model.safetensors and the config.json of timm's hub layout; returns the call that loads them."""
    name, arguments = model_call(weights)
    shape, names = architecture_of(weights.settings), layout.encoder_names(architecture_of(weights.settings).depth)
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
    if weights.labels:
        pretrained["label_names"] = list(weights.labels)
    config = {
        "architecture": name, "num_classes": classes, "num_features": shape.width, "global_pool": "avg",
        "model_args": arguments, "pretrained_cfg": pretrained,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shown = "".join(f", {key}={value!r}" for key, value in {**arguments, "num_classes": classes}.items())
    return f"timm.create_model({name!r}, checkpoint_path={str(folder / 'model.safetensors')!r}{shown})"


def model_call(weights: Weights) -> tuple[str, dict[str, Any]]:
    """The name and the arguments by which timm makes a model of this architecture."""
    shape = architecture_of(weights.settings)
    key = (shape.width, shape.depth, shape.heads, shape.hidden, shape.patch, shape.image_size[0])
    if key in _MODELS and shape.image_size[0] == shape.image_size[1] and shape.channels == 3 and shape.epsilon == 1e-6:
        return _MODELS[key], {}
    if shape.epsilon != 1e-6:
        raise WeightsError(f"timm's layer norms have epsilon 1e-6, this encoder's {shape.epsilon:g}: export to huggingface")
    return "vit_base_patch16_224", {
        "img_size": list(shape.image_size), "patch_size": shape.patch, "in_chans": shape.channels, "embed_dim": shape.width,
        "depth": shape.depth, "num_heads": shape.heads, "mlp_ratio": mlp_ratio(shape), "class_token": False,
        "global_pool": "avg", "fc_norm": False,
    }  # fmt: skip
