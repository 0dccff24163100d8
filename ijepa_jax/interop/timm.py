"""timm's I-JEPA encoders: `vit_huge_patch14_gap_224` and its sisters, as files and folders of safetensors.

timm names tensors as the authors do (see layout.py); a classifier is `head.weight`, `head.bias`.
"""

import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax.interop import layout, tensor_files
from ijepa_jax.interop.weights import Weights, WeightsError, architecture_of, check_finite, mlp_ratio, settings_for

_MODELS = {  # (width, depth, heads, hidden, patch, image side) of the names that timm has
    (1280, 32, 16, 5120, 14, 224): "vit_huge_patch14_gap_224",
    (1280, 32, 16, 5120, 16, 448): "vit_huge_patch16_gap_448",
    (1408, 40, 16, 6144, 16, 224): "vit_giant_patch16_gap_224",
}
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
    head = None
    if "head.weight" in tensors and "head.bias" in tensors:
        head = {"kernel": tensors["head.weight"].T, "bias": tensors["head.bias"]}
    encoder = {name: tensor for name, tensor in tensors.items() if not (head and name.startswith("head."))}
    pretrained = config.get("pretrained_cfg", {})
    arguments = config.get("model_args") or {}
    if arguments.get("class_token") or config.get("global_pool", "avg") != "avg":
        raise WeightsError(f"{source} pools by {config.get('global_pool')!r}: I-JEPA's encoders average patches ('avg')")
    size = pretrained.get("input_size", [])[1:] if "pos_embed" in encoder else []
    patch = encoder["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in encoder else 1
    fits = size and size[0] // patch * (size[1] // patch) == encoder["pos_embed"].shape[-2]
    told = arguments.get("num_heads")
    if heads and told not in (None, heads):
        raise WeightsError(f"{source}: its configuration has {told} heads, not {heads}")
    shown = layout.architecture(encoder, source, told or heads, tuple(size) if fits else None, told=told is not None)
    data = {key: tuple(pretrained[key]) for key in ("mean", "std") if key in pretrained}
    if "crop_pct" in pretrained:
        data["eval_crop"] = float(pretrained["crop_pct"])
    settings = settings_for(shown, _INTERPOLATION, base, **data)
    origin = {"format": "timm", "file": source, "architecture": config.get("architecture", "")}
    return Weights(layout.from_reference(encoder), settings, origin, head, tuple(pretrained.get("label_names") or ()))


def write_timm(weights: Weights, folder: Path) -> str:
    """Writes model.safetensors and the config.json of timm's hub layout; returns the call that loads them."""
    shape, names = architecture_of(weights.settings), layout.encoder_names(architecture_of(weights.settings).depth)
    tensors = layout.to_reference(weights.encoder, names, shape.patch)
    classes = 0
    if weights.head:
        tensors |= {"head.weight": weights.head["kernel"].T, "head.bias": weights.head["bias"]}
        classes = len(weights.head["bias"])
    tensor_files.write(folder / "model.safetensors", tensors)
    name, arguments = model_call(weights)
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
