"""Examples in memory as sources: NumPy archives of images, videos or signals, and MNIST-format files."""

import gzip
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath

from ijepa_jax.data import counter
from ijepa_jax.data.source import DataError, LabelledSource, NoSplit, check_known, hashed
from ijepa_jax.host.errors import one_line
from ijepa_jax.settings.axes import AXES

_MOST_CLASSES = 100_000
_SPARSE = 10  # times as many numbers as classes: a probe has weights for each


class ArraySource(LabelledSource):
    """Examples in memory: images uint8 [N, H, W] or [N, H, W, C], videos with an axis T more, signals float32 [N, L, C]."""

    def __init__(self, images: np.ndarray, labels: Mapping[str, np.ndarray], title: str, modality: str = "image"):
        self.images = images
        self.labels = dict(labels)
        self.modality = modality
        self._title = title

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"{self._title} {self.modality} {index}"

    def file(self, index: int) -> str:
        return f"{self._title.split()[-1]} {self.modality} {index}"

    def _content(self) -> Iterator[bytes | np.ndarray]:
        yield str(self.images.shape).encode()
        yield np.ascontiguousarray(self.images)

    def contents(self) -> dict[str, str]:
        return {"pixels": hashed(self._content())}


def open_arrays(place: str, split: str, modality: str = "image") -> ArraySource:
    """The split of an archive, of its examples of a modality; see `open.open_source`."""
    path = epath.Path(place).expanduser()
    if not path.is_file():
        raise DataError(f"arrays:{place}: no such file: --config.data.name tells where data are")
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"arrays:{place} is not a readable .npz file: it holds a single array")
            return _select_arrays(arrays, place, split, modality)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"arrays:{place} is not a readable .npz file: {one_line(error)}") from error


def _select_arrays(arrays: Mapping[str, np.ndarray], place: str, split: str, modality: str) -> ArraySource:
    name = f"{modality}s"
    if f"{split}_{name}" in arrays:
        images = arrays[f"{split}_{name}"]
        labels = arrays.get(f"{split}_labels")
        chosen = slice(None)
    elif name in arrays:
        images = arrays[name]
        labels = arrays.get("labels")
        in_test = counter.bits(0, np.arange(len(images))) % np.uint64(10) == 0
        if labels is not None and labels.ndim and len(labels) == len(images):  # no class is for the test split alone
            known = in_test & np.isin(labels, labels[~in_test]).reshape(len(images), -1).all(axis=1)
            if not known.any():
                logging.warning("arrays:%s: no class has %s in both splits, so its labels are left out", place, name)
                labels = None
            in_test = known if known.any() else in_test
        chosen = in_test if split == "test" else ~in_test
    else:
        found = f"arrays:{place} holds {', '.join(arrays) or 'nothing'}"
        others = [kind for kind in AXES if kind != modality and {f"{kind}s", f"train_{kind}s", f"test_{kind}s"} & {*arrays}]
        if others:
            sizes = f"({', '.join(AXES[others[0]])}{',' * (len(AXES[others[0]]) == 1)})"
            raise DataError(f"{found}, no {name}: {others[0]}s are what is read where data.image_size is {sizes}")
        both = f"{name} (and labels) for all splits"
        raise NoSplit(f"{found}: for the {split} split expected {split}_{name} (and {split}_labels), or {both}")
    images = _checked(images, modality, f"arrays:{place}")
    checked = {} if labels is None else {"label": _check_labels(labels, len(images), f"arrays:{place}")[chosen]}
    if split == "test" and checked and "train_labels" in arrays and f"test_{name}" in arrays:
        check_known(map(str, np.unique(labels)), map(str, np.unique(arrays["train_labels"])), f"arrays:{place}: its test split")
    if not len(images[chosen]):
        raise NoSplit(f"arrays:{place}: its {len(images)} {name} leave none for the {split} split")
    return ArraySource(images[chosen], checked, f"arrays:{place} {split}", modality)


def _checked(examples: np.ndarray, modality: str, title: str) -> np.ndarray:
    """Examples as an `ArraySource` has them. Raises DataError for others."""
    shapes = {"signal": "[N, L] or [N, L, C]", "image": "[N, H, W] or [N, H, W, C]", "video": "[N, T, H, W] or [N, T, H, W, C]"}
    kind, axes = "float32" if modality == "signal" else "uint8", len(AXES[modality])
    fits = np.issubdtype(examples.dtype, np.floating) if modality == "signal" else examples.dtype == np.uint8
    if not fits or examples.ndim - 1 not in (axes, axes + 1) or 0 in examples.shape[1:]:
        given = f"{examples.dtype} {list(examples.shape)}"
        raise DataError(f"{title}: {modality}s must be {kind} {shapes[modality]}, these are {given}")
    if modality != "signal":
        return examples
    with np.errstate(over="ignore"):
        examples = examples.astype(np.float32, copy=False)
    if odd := int((~np.isfinite(examples)).reshape(len(examples), -1).any(axis=1).sum()):
        raise DataError(f"{title}: {odd} of {len(examples)} signals are not finite as float32: mend them, or leave them out")
    return examples


def _check_labels(labels: np.ndarray, count: int, title: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.size != count or (count and len(labels) != count):
        raise DataError(f"{title}: labels must be {count} integers, these are {labels.dtype} {list(labels.shape)}")
    if count and not (labels.min() >= 0 and labels.max() < _MOST_CLASSES):
        raise DataError(
            f"{title}: labels must be classes from 0 up to {_MOST_CLASSES - 1}, these are {labels.min()} to {labels.max()}"
        )
    there = len(np.unique(labels))
    if count and labels.max() >= max(_SPARSE * there, 1000):
        raise DataError(
            f"{title}: labels of {there} classes run up to {labels.max()}: number the classes from 0 up, without gaps"
        )
    return labels.reshape(count).astype(np.int64)


def open_idx(place: str, split: str) -> ArraySource:
    folder = epath.Path(place).expanduser()
    if not folder.is_dir():
        raise DataError(f"idx:{place}: no such folder: --config.data.name tells where data are")
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder, f"{prefix}-images", 3)
    if images is None:
        raise NoSplit(f"idx:{place}: no {prefix}-images-idx3-ubyte or {prefix}-images-idx3-ubyte.gz there")
    labels = _read_idx(folder, f"{prefix}-labels", 1)
    title = f"idx:{place} {split}"
    if split == "test" and labels is not None and (trained := _read_idx(folder, "train-labels", 1)) is not None:
        check_known(map(str, np.unique(labels)), map(str, np.unique(trained)), title)
    return ArraySource(images, {} if labels is None else {"label": _check_labels(labels, len(images), title)}, title)


def _read_idx(folder: epath.Path, stem: str, dimensions: int) -> np.ndarray | None:
    """Reads `STEM-idxD-ubyte`, gzipped or not; None if there is no such file."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path} is no idx file of {dimensions}-dimensional bytes: it starts with {data[:4].hex()}")
    shape = np.frombuffer(data, ">u4", dimensions, 4).astype(np.int64)
    if len(data) - header != shape.prod():
        raise DataError(f"{path} is damaged: {shape.tolist()} announced, but {len(data) - header} bytes of data")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
