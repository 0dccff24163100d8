"""transformers' `IJepaModel` and `IJepaForImageClassification`: folders with config.json and safetensors.

theirs, as files have them                                 the authors' (see layout.py)
embeddings.patch_embeddings.projection.weight              patch_embed.proj.weight
embeddings.position_embeddings                             pos_embed
encoder.layer.I.attention.attention.{query,key,value}.*    blocks.I.attn.qkv.*, in this order
encoder.layer.I.attention.output.dense.*                   blocks.I.attn.proj.*
encoder.layer.I.layernorm_before.*, layernorm_after.*      blocks.I.norm1.*, norm2.*
encoder.layer.I.intermediate.dense.*, output.dense.*       blocks.I.mlp.fc1.*, mlp.fc2.*
layernorm.*                                                norm.*
classifier.*                                               (head; everything else then starts with `ijepa.`)

A model's `state_dict()` in transformers 5 has other names (`layers.I.attention.q_proj`, ...); both are read.
"""

import json
import re
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax.interop import layout, tensor_files
from ijepa_jax.interop.weights import Weights, WeightsError, architecture_of, check_finite, settings_for

_RENAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.([qkv])_proj\.", lambda found: f".attention.attention.{_PARTS['qkv'.index(found[1])]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_PARTS = ("query", "key", "value")
_LAYERS = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_TOP = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_POSITIONS = "embeddings.position_embeddings"


def read_huggingface(path: str, base: ml_collections.ConfigDict | None = None) -> Weights:
    """An encoder, with its classifier if there is one, from a folder that `save_pretrained` wrote.

    Raises WeightsError for a model of another kind, and where tensors are missing, unexpected or of wrong shapes.
    """
    folder = Path(path)
    config = tensor_files.read_json(folder / "config.json")
    _check_config(config, path)
    tensors = tensor_files.read_folder(folder)
    check_finite(tensors, path)
    head = None
    if "classifier.weight" in tensors and "classifier.bias" in tensors:
        head = {"kernel": tensors.pop("classifier.weight").T, "bias": tensors.pop("classifier.bias")}
    named = _reference_names({name.removeprefix("ijepa."): tensor for name, tensor in tensors.items()}, path)
    size = config.get("image_size", 224)
    image_size = tuple(size) if isinstance(size, list) else (size, size)
    heads, epsilon = config.get("num_attention_heads", 12), config.get("layer_norm_eps", 1e-12)
    shown = layout.architecture(named, path, heads, image_size, told=True, epsilon=epsilon)
    _check_sizes(config, shown, path)
    labels = config.get("id2label") or {}
    names = tuple(labels[key] for key in sorted(labels, key=int)) if head else ()
    settings = settings_for(shown, "bicubic", base, **_preprocessing(folder))
    return Weights(layout.from_reference(named), settings, {"format": "huggingface", "file": path}, head, names)


def _check_config(config: dict[str, Any], source: str) -> None:
    """Refuses models of other kinds, and options that our encoder does not have."""
    if config.get("model_type") != "ijepa":
        raise WeightsError(f"{source}/config.json is of model_type {config.get('model_type')!r}, not 'ijepa'")
    for key, ours in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(key, ours) != ours:
            raise WeightsError(f"{source}/config.json has {key} {config[key]!r}: I-JEPA's encoders have {ours!r}")


def _check_sizes(config: dict[str, Any], shown, source: str) -> None:
    """Refuses tensors that are not of the configuration's sizes; where it is silent, these are transformers' defaults."""
    for key, default, found in (
        ("hidden_size", 768, shown.width),
        ("num_hidden_layers", 12, shown.depth),
        ("intermediate_size", 3072, shown.hidden),
        ("patch_size", 16, shown.patch),
        ("num_channels", 3, shown.channels),
    ):
        if config.get(key, default) != found:
            raise WeightsError(f"{source}/config.json has {key} {config.get(key, default)}, its tensors {found}")


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Mean and std from preprocessor_config.json; without one, ours."""
    file = folder / "preprocessor_config.json"
    found = tensor_files.read_json(file) if file.is_file() else {}
    return {ours: tuple(found[theirs]) for theirs, ours in (("image_mean", "mean"), ("image_std", "std")) if theirs in found}


def _reference_names(tensors: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The same tensors under the authors' names; those without one keep theirs."""
    named: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        layer, _, kind = name.rpartition(".")
        if found := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)", layer):
            parts.setdefault(f"blocks.{found[1]}.attn.qkv.{kind}", {})[found[2]] = tensor
        elif (found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", layer)) and found[2] in _LAYERS:
            named[f"blocks.{found[1]}.{_LAYERS[found[2]]}.{kind}"] = tensor
        elif name == _POSITIONS:
            named["pos_embed"] = tensor
        else:
            named[f"{_TOP.get(layer, layer)}.{kind}" if layer else name] = tensor
    for name, found in parts.items():
        missing = [part for part in _PARTS if part not in found]
        if missing or len({part.shape for part in found.values()}) > 1:
            raise WeightsError(f"{source}: {name} is not whole: {', '.join(missing) or 'parts of different shapes'}")
        named[name] = np.concatenate([found[part] for part in _PARTS])
    return named


def write_huggingface(weights: Weights, folder: Path) -> str:
    """Writes a folder that `from_pretrained` loads; returns the call that does it."""
    shape, data = architecture_of(weights.settings), weights.settings.data
    names = layout.encoder_names(shape.depth)
    tensors = _their_names(layout.to_reference(weights.encoder, names, shape.patch))
    model = "IJepaModel"
    config: dict[str, Any] = {}
    if weights.head:
        model = "IJepaForImageClassification"
        tensors = {f"ijepa.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {"classifier.weight": weights.head["kernel"].T, "classifier.bias": weights.head["bias"]}
        labels = weights.labels or [f"LABEL_{index}" for index in range(len(weights.head["bias"]))]
        config = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    height, width = shape.image_size
    config |= {
        "architectures": [model], "model_type": "ijepa", "hidden_size": shape.width, "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads, "intermediate_size": shape.hidden, "hidden_act": "gelu", "qkv_bias": True,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
        "layer_norm_eps": shape.epsilon, "image_size": height if height == width else [height, width],
        "patch_size": shape.patch, "num_channels": shape.channels, "dtype": "float32",
    }  # fmt: skip
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(data.mean),
        "image_std": list(data.std),
    }  # fmt: skip
    tensor_files.write(folder / "model.safetensors", tensors)
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return f"transformers.{model}.from_pretrained({str(folder)!r})"


def _their_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The authors' tensors under the names of transformers' files."""
    layers, top = ({ours: theirs for theirs, ours in table.items()} for table in (_LAYERS, _TOP))
    named: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if found := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv", layer):
            for part, value in zip(_PARTS, np.split(tensor, 3), strict=True):
                named[f"encoder.layer.{found[1]}.attention.attention.{part}.{kind}"] = value
        elif found := re.fullmatch(r"blocks\.(\d+)\.(.+)", layer):
            named[f"encoder.layer.{found[1]}.{layers[found[2]]}.{kind}"] = tensor
        else:
            named[f"{top[layer]}.{kind}" if layer else _POSITIONS] = tensor
    return named
