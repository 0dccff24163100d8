"""Files of tensors by name: safetensors, in one file or several, and configurations beside them."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from ijepa_jax.interop import torch_files
from ijepa_jax.interop.weights import WeightsError

NAMES = ("model.safetensors", "pytorch_model.bin")  # of a model's file beside its config.json
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}  # of safetensors
_STATE_DICTS = ("state_dict_ema", "state_dict")  # of timm's training checkpoints, which timm looks for in this order


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, or of a state dict that torch.save wrote, float32. Raises WeightsError, OSError."""
    if path.suffix != ".safetensors":
        return by_name(torch_files.read(path), str(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        found = dict(deserialize(path.read_bytes()))  # safetensors' own NumPy arrays know no bfloat16
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged, or no safetensors file: {error}") from None
    for name in found:
        if (kind := found[name]["dtype"]) not in _FLOATS:
            raise WeightsError(f"{path}: tensor {name} is of type {kind}, not of one of {', '.join(_FLOATS)}")
    views = {
        name: np.frombuffer(found[name]["data"], _FLOATS[found[name]["dtype"]]).reshape(found[name]["shape"])
        for name in sorted(found)
    }
    return by_name(views, str(path))


def is_by_name(saved: Any) -> bool:
    """Whether objects of a file are one module's tensors by name, as `by_name` takes them."""
    tensors = _state_dict(saved)
    return isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in tensors.items()
    )


def by_name(saved: Any, source: str) -> dict[str, np.ndarray]:
    """One module's tensors, float32, without the `module.` before names that data-parallel training gives them.

    `saved` is a state dict, or a training checkpoint of timm's that holds one. Raises WeightsError where it is neither,
    and where two names differ in that prefix only.
    """
    if not is_by_name(saved):
        raise WeightsError(f"{source} is not a module's tensors by name")
    tensors = _state_dict(saved)
    named = {name.removeprefix("module."): np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        twice = sorted(name for name in named if name in tensors and f"module.{name}" in tensors)
        raise WeightsError(f"{source} has tensors twice, with and without 'module.': {', '.join(twice[:8])}")
    return named


def _state_dict(saved: Any) -> Any:
    """What a training checkpoint of timm's holds as its state dict; anything else as it is."""
    held = [saved[key] for key in _STATE_DICTS if key in saved] if isinstance(saved, dict) else []
    return held[0] if held else saved


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder as transformers saves it: one safetensors file, several with an index, or pytorch_model.bin."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise WeightsError(f"{index} has no weight_map")
        tensors: dict[str, np.ndarray] = {}
        for file in sorted({*places.values()}):
            found = read(folder / Path(file).name)  # a name that leads elsewhere is not followed
            if differs := {*found} ^ {name for name in places if places[name] == file}:
                raise WeightsError(f"{index} and {file} do not hold the same tensors: {', '.join(sorted(differs)[:8])}")
            tensors |= found
        return tensors
    for name in NAMES:
        if (folder / name).is_file():
            return read(folder / name)
    raise WeightsError(f"{folder} holds neither model.safetensors, nor its index, nor pytorch_model.bin")


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, which is there as a whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, unfinished, metadata={"format": "pt"})
    unfinished.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises WeightsError where it is not one."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} is not a JSON object")
    return found
