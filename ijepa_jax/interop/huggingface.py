"""transformers' `IJepaModel`, `IJepaForImageClassification`, `ViTMAEModel` and `ViTMAEForPreTraining`: folders with config.json
and safetensors.

theirs, as files have them                                 the authors' (see layout.py)
embeddings.patch_embeddings.projection.weight              patch_embed.proj.weight
embeddings.position_embeddings                             pos_embed
encoder.layer.I.attention.attention.{query,key,value}.*    blocks.I.attn.qkv.*, in this order
encoder.layer.I.attention.output.dense.*                   blocks.I.attn.proj.*
encoder.layer.I.layernorm_before.*, layernorm_after.*      blocks.I.norm1.*, norm2.*
encoder.layer.I.intermediate.dense.*, output.dense.*       blocks.I.mlp.fc1.*, mlp.fc2.*
layernorm.*                                                norm.*
classifier.*                                               (head; everything else then starts with `ijepa.`)
embeddings.cls_token                                       cls_token (of MAE; with a decoder everything else starts with `vit.`)
decoder.decoder_layers.I.attention..., mask_token, ...     decoder_blocks.I.attn..., mask_token, ...

A model's `state_dict()` in transformers 5 has other names (`layers.I.attention.q_proj`, ...); both are read.
"""

import json
import math
import re
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
    check_names,
    settings_for,
    take_head,
)

_RENAMES = (  # from names of state_dict() to those of files
    (r"^(ijepa|vit)\.", ""),
    (r"^layers\.", "encoder.layer."),
    (r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder.encoder.layer."),
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
_POSITIONS, _CLASS = "embeddings.position_embeddings", "embeddings.cls_token"
_DECODER = "decoder."  # before the names of a decoder's tensors
_KINDS = ("ijepa", "vit_mae")  # of models
_DEFAULTS = {  # of transformers' configuration
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3, "qkv_bias": True,
    "decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048, "mask_ratio": 0.75, "norm_pix_loss": False,
}  # fmt: skip


def read_huggingface(path: str, base: ml_collections.ConfigDict | None = None) -> Weights:
    """An encoder, with its classifier if there is one, from a folder that `save_pretrained` wrote.

    Raises WeightsError for a model of another kind, and where tensors are missing, unexpected or of wrong shapes.
    """
    folder = Path(path)
    config = _checked_config(tensor_files.read_json(folder / "config.json"), path)
    tensors = _file_names(tensor_files.read_folder(folder), path)
    check_finite(tensors, path)
    head, masked = take_head(tensors, "classifier"), config["model_type"] == "vit_mae"
    decoder = {name.removeprefix(_DECODER): tensors.pop(name) for name in [*tensors] if name.startswith(_DECODER)}
    check_names([*tensors], _names(max(layout.depth_of(tensors, r"encoder\.layer"), 1), masked), path)
    named = _reference_names(tensors, path)
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]
    shown = layout.architecture(named, path, heads, config["image_size"], told=True, epsilon=epsilon)
    sizes = {"hidden_size": shown.width, "num_hidden_layers": shown.depth, "intermediate_size": shown.hidden}
    _check_sizes(config, {**sizes, "patch_size": shown.patch, "num_channels": shown.channels}, path)
    labels = _labels(config, path) if head else ()
    check_head(head, labels, shown.width, path)
    settings = settings_for(shown, "bicubic", base, **_preprocessing(folder))
    told, ratio = config["decoder_num_attention_heads"], config["mask_ratio"]
    if masked and not (told is None or (type(told) is int and told > 0)):
        raise WeightsError(f"{path}/config.json: decoder_num_attention_heads {told!r} must be a whole number, 1 or more")
    if masked and not (isinstance(ratio, (int, float)) and 0 <= ratio < 1):
        raise WeightsError(f"{path}/config.json: mask_ratio {ratio!r} must be a number from 0 to below 1")
    if masked and type(config["norm_pix_loss"]) is not bool:
        raise WeightsError(f"{path}/config.json: norm_pix_loss {config['norm_pix_loss']!r} must be true or false")
    if masked and base is None:
        # an encoder that was exported to see all patches has a share of 0, by which no MAE is trained
        settings.mae.mask_ratio = float(ratio) or settings.mae.mask_ratio
        settings.mae.normalised = config["norm_pix_loss"]
    tree, why = mae.with_decoder(
        settings, _reference_names(decoder, path, "decoder_blocks"), shown, told, path, fixed=base is not None
    )
    if tree:
        blocks, first = len(tree["blocks"]), tree["blocks"]["0"]
        sizes = {"hidden_size": first["norm1"]["scale"], "intermediate_size": first["fc1"]["bias"]}
        found = {f"decoder_{name}": leaf.size for name, leaf in sizes.items()}
        _check_sizes(config, {**found, "decoder_num_hidden_layers": blocks}, path)
    origin = {"format": "huggingface", "file": path}
    return Weights(layout.from_reference(named), settings, origin, head, labels, left_out=why, decoder=tree)


def _checked_config(found: dict[str, Any], source: str) -> dict[str, Any]:
    """The configuration, with defaults where it is silent; refuses models of other kinds and what our encoder does not have."""
    if found.get("model_type") not in _KINDS:
        raise WeightsError(f"{source}/config.json is of model_type {found.get('model_type')!r}, not 'ijepa' or 'vit_mae'")
    config = {**_DEFAULTS, **found}
    patch = config["patch_size"]
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        config["patch_size"] = patch[0]
    size, heads, epsilon = (config[key] for key in ("image_size", "num_attention_heads", "layer_norm_eps"))
    size = [size, size] if isinstance(size, int) else size
    for key, valid, wanted in (
        ("hidden_act", config["hidden_act"] == "gelu", "'gelu'"),
        ("qkv_bias", config["qkv_bias"] is True, "true"),
        ("num_attention_heads", type(heads) is int, "a whole number"),
        ("layer_norm_eps", isinstance(epsilon, float) and 0 < epsilon < 1, "small and positive"),
        ("image_size", isinstance(size, list) and [type(side) for side in size] == [int, int], "a number or a pair"),
        ("patch_size", type(config["patch_size"]) is int, "a number or a pair of equal ones"),
    ):
        if not valid:
            raise WeightsError(f"{source}/config.json has {key} {config[key]!r}: it must be {wanted}")
    return {**config, "image_size": tuple(size)}


def _check_sizes(config: dict[str, Any], shown: dict[str, int], source: str) -> None:
    """Refuses tensors that are not of the configuration's sizes."""
    for key, found in shown.items():
        if config[key] != found:
            raise WeightsError(f"{source}/config.json has {key} {config[key]}, its tensors {found}")


def _labels(config: dict[str, Any], source: str) -> tuple[str, ...]:
    """The names of the classes in their order; none where the configuration leaves them to transformers."""
    named = config.get("id2label") or {}
    if not isinstance(named, dict) or {*named} != {str(index) for index in range(len(named))}:
        raise WeightsError(f"{source}/config.json has an id2label that does not name classes 0, 1, ...")
    return tuple(str(named[str(index)]) for index in range(len(named)))


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Mean and std from preprocessor_config.json, ours where it is silent; refuses other pixels than 0..1, normalised."""
    file = folder / "preprocessor_config.json"
    found = tensor_files.read_json(file) if file.is_file() else {}
    told = {key: value for key, value in found.items() if value is not None}
    factor = told.get("rescale_factor", 1 / 255)
    for key, valid, wanted in (
        ("do_rescale", told.get("do_rescale", True) is True, "true"),
        ("rescale_factor", isinstance(factor, float) and math.isclose(factor, 1 / 255, rel_tol=1e-6), "1/255"),
        ("do_normalize", told.get("do_normalize", True) is True, "true"),
    ):
        if not valid:
            raise WeightsError(f"{file} has {key} {told[key]!r}: it must be {wanted}")
    return {ours: told[theirs] for theirs, ours in (("image_mean", "mean"), ("image_std", "std")) if theirs in told}


def _file_names(tensors: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The same tensors under the names that files of an `IJepaModel` have."""
    named: dict[str, np.ndarray] = {}
    for found, tensor in tensors.items():
        name = found
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if name in named:
            raise WeightsError(f"{source} has {name} twice, under two names")
        named[name] = tensor
    return named


def _names(depth: int, class_token: bool) -> list[str]:
    """All tensors of an encoder, as files name them."""
    parts = [f"attention.attention.{part}" for part in _PARTS]
    layers = [f"encoder.layer.{index}.{layer}" for index in range(depth) for layer in (*parts, *_LAYERS)]
    return [
        _POSITIONS,
        *[_CLASS] * class_token,
        *(f"{layer}.{kind}" for layer in (*_TOP, *layers) for kind in ("weight", "bias")),
    ]


def _reference_names(tensors: dict[str, np.ndarray], source: str, blocks: str = "blocks") -> dict[str, np.ndarray]:
    """All tensors of an encoder or a decoder under the authors' names, taken out of `tensors`, so that few are there twice."""
    known = {_POSITIONS: "pos_embed", _CLASS: "cls_token"}
    named = {theirs: tensors.pop(name) for name, theirs in known.items() if name in tensors}
    for name in [*tensors]:
        if name not in tensors:
            continue
        layer, _, kind = name.rpartition(".")
        if found := re.fullmatch(r"(encoder\.layer\.(\d+)\.attention\.attention)\.(?:query|key|value)", layer):
            parts = [tensors.pop(f"{found[1]}.{part}.{kind}") for part in _PARTS]
            if len({part.shape for part in parts}) > 1 or not parts[0].ndim:
                raise WeightsError(f"{source}: {found[1]}.query, key and value have different shapes, or none")
            named[f"{blocks}.{found[2]}.attn.qkv.{kind}"] = np.concatenate(parts)
        elif (found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", layer)) and found[2] in _LAYERS:
            named[f"{blocks}.{found[1]}.{_LAYERS[found[2]]}.{kind}"] = tensors.pop(name)
        else:  # a decoder's are called as the authors call them
            named[f"{_TOP[layer]}.{kind}" if layer in _TOP else name] = tensors.pop(name)
    return named


def write_huggingface(weights: Weights, folder: Path) -> str:
    """Writes a folder that `from_pretrained` loads; returns the call that does it."""
    shape, data = architecture_of(weights.settings), weights.settings.data
    names = layout.encoder_names(shape.depth, shape.class_token)
    tensors = _their_names(layout.to_reference(weights.encoder, names, shape.patch))
    model = "ViTMAEModel" if shape.class_token else "IJepaModel"
    config: dict[str, Any] = _of_decoder(weights) if shape.class_token else {}
    if weights.decoder:
        model = "ViTMAEForPreTraining"
        tensors = {f"vit.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"{_DECODER}{name}": tensor for name, tensor in _their_names(mae.decoder_tensors(weights.decoder)).items()}
    if weights.head and not shape.class_token:
        model = "IJepaForImageClassification"
        tensors = {f"ijepa.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {"classifier.weight": weights.head["kernel"].T, "classifier.bias": weights.head["bias"]}
        labels = weights.labels or [f"LABEL_{index}" for index in range(len(weights.head["bias"]))]
        config = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    height, width = shape.image_size
    config |= {
        "architectures": [model], "model_type": _KINDS[shape.class_token], "hidden_size": shape.width,
        "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads, "intermediate_size": shape.hidden,
        "hidden_act": "gelu", "qkv_bias": True,
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


def _of_decoder(weights: Weights) -> dict[str, Any]:
    """What a configuration of MAE tells besides."""
    section = mae.section_of(weights)
    return {
        "decoder_hidden_size": section.decoder_width, "decoder_num_hidden_layers": section.decoder_depth,
        "decoder_num_attention_heads": section.decoder_heads, "decoder_intermediate_size": 4 * section.decoder_width,
        "mask_ratio": section.mask_ratio, "norm_pix_loss": section.normalised,
    }  # fmt: skip


def _their_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The authors' tensors under the names that files of transformers' models have, a decoder's without `decoder.`."""
    layers, top = ({ours: theirs for theirs, ours in table.items()} for table in (_LAYERS, _TOP))
    named: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if found := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", layer):
            block = f"{'decoder_layers' if found[1] else 'encoder.layer'}.{found[2]}"
            if found[3] == "attn.qkv":
                parts = zip(_PARTS, np.split(tensor, 3), strict=True)
                named |= {f"{block}.attention.attention.{part}.{kind}": value for part, value in parts}
            else:
                named[f"{block}.{layers[found[3]]}.{kind}"] = tensor
        elif layer in top:
            named[f"{top[layer]}.{kind}"] = tensor
        else:
            named[{"pos_embed": _POSITIONS, "cls_token": _CLASS}.get(name, name)] = tensor
    return named
