"""Files of tensors by name: safetensors, in one file or several, and configurations beside them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ijepa_jax.interop import torch_files
from ijepa_jax.interop.weights import WeightsError

_FLOATS = ("F64", "F32", "F16", "BF16")  # of safetensors


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, or of a state dict that torch.save wrote, float32. Raises WeightsError, OSError."""
    if path.suffix != ".safetensors":
        tensors = torch_files.read(path)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
            raise WeightsError(f"{path} is not a module's tensors by name")
        return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        # by way of jax, as safetensors' NumPy arrays know no bfloat16
        with jax.default_device(jax.devices("cpu")[0]), safe_open(path, framework="flax") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
            for name, kind in kinds.items():
                if kind not in _FLOATS:
                    raise WeightsError(f"{path}: tensor {name} is of type {kind}, not of one of {', '.join(_FLOATS)}")
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in kinds}
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged, or no safetensors file: {error}") from None


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
    for name in ("model.safetensors", "pytorch_model.bin"):
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
