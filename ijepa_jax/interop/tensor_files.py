"""Files of tensors by name: safetensors, in one file or several, and configurations beside them."""

import json
import math
import operator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import unfinished
from ijepa_jax.interop import torch_files
from ijepa_jax.interop.weights import WeightsError, can_be, check_pointer, shown

NAMES = ("model.safetensors", "pytorch_model.bin")  # of a model's file beside its config.json
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}  # of safetensors
_MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
_STATE_DICTS = ("state_dict_ema", "state_dict")  # of timm's training checkpoints, which timm looks for in this order


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, or of a state dict that torch.save wrote, float32. Raises WeightsError, OSError.

    Tensors are read one after the other: beside what is returned, no more than one is held.
    """
    if path.suffix != ".safetensors":
        return by_name(torch_files.read(path, needed, as_float32=True), str(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        header = _header(file, path)
        try:
            return by_name({name: _tensor(file, *header[name]) for name in sorted(header)}, str(path))
        except MemoryError as error:
            raise MemoryError(f"{path}: {error}") from error


def _header(file: BinaryIO, path: Path) -> dict[str, tuple[int, type, list[int]]]:
    """Where each tensor of a safetensors file begins, its dtype and shape: one after the other they fill the file."""
    size, length = path.stat().st_size, file.read(8)
    check_pointer(length + file.read(100), str(path))
    start = 8 + int.from_bytes(length, "little")
    if len(length) < 8 or start > min(size, _MAX_HEADER):
        raise WeightsError(f"{path} is damaged, or no safetensors file: it does not start with the length of its header")
    file.seek(8)
    try:
        found = json.loads(file.read(start - 8).decode())
        found.pop("__metadata__", None)
        entries = []
        for name, told in found.items():
            first, last = map(operator.index, told["data_offsets"])
            entries.append((first, last, name, told["dtype"], told["shape"]))
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
        reason = " ".join(repr(error).split())[:200]
        raise WeightsError(f"{path} is damaged, or no safetensors file: its header cannot be read: {reason}") from None
    header, end = {}, 0
    for first, last, name, kind, shape in sorted(entries, key=lambda entry: entry[:3]):
        tensor = f"{path}: tensor {shown(name)}"
        if kind not in [*_FLOATS]:
            raise WeightsError(f"{tensor} is of type {shown(kind)}, not of one of {', '.join(_FLOATS)}")
        if not (isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape) and can_be(shape)):
            raise WeightsError(f"{tensor} has shape {shown(shape)}, which no array can have")
        if (asked := math.prod(shape) * np.dtype(_FLOATS[kind]).itemsize) != last - first:
            raise WeightsError(f"{tensor} has {last - first} bytes in the file; its shape {shown(shape)} asks for {asked}")
        if first != end:
            raise WeightsError(f"{path} is damaged: tensor {shown(name)} begins at byte {first} and not at {end}")
        header[name], end = (start + first, _FLOATS[kind], shape), last
    if start + end != size:
        raise WeightsError(f"{path} is damaged, or no safetensors file: it has {size} bytes, and {start + end} by its header")
    return header


def _tensor(file: BinaryIO, start: int, dtype: type, shape: list[int]) -> np.ndarray:
    """A tensor of a safetensors file, float32."""
    found = np.empty(shape, dtype)
    file.seek(start)
    if file.readinto(_bytes(found)) != found.nbytes:
        raise OSError(f"{file.name} became shorter while it was read")
    with np.errstate(over="ignore"):  # what becomes infinite is refused as that
        return found.astype(np.float32, copy=False)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, in its memory."""
    return array.reshape(-1).view(np.uint8)


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
    held = needed(saved)
    return held[next(iter(held))] if held is not saved else saved


def needed(saved: Any) -> Any:
    """A training checkpoint of timm's with nothing but its state dict; anything else as it is."""
    held = [key for key in _STATE_DICTS if key in saved] if isinstance(saved, dict) else []
    return {held[0]: saved[held[0]]} if held else saved


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
    """Writes a safetensors file, which is there as a whole or not at all; no more than one tensor is copied at a time."""
    kinds, end = {np.dtype(dtype): kind for kind, dtype in _FLOATS.items()}, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, tensor in tensors.items():
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": kinds[tensor.dtype], "shape": [*tensor.shape], "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with unfinished(path) as place, place.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(_bytes(np.ascontiguousarray(tensor)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises WeightsError where it is not one."""
    check_pointer(path.read_bytes()[:100], str(path))
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} is not a JSON object")
    return found
