"""Data sets as random-access sources: generated scenes, folders, arrays, MNIST-format files and prepared TFDS data.

A source gives example `i` as pixels or as the bytes of an image file, undecoded, so that only the examples that are asked
for cost anything, in the worker that asks. `open_source` maps the names that configurations use to sources.
"""

import functools
import gzip
import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from etils import epath

from ijepa_jax import counter

Progress = Callable[[int, int], None]  # (examples done, examples in all)

_SPLITS = ("train", "test")
_HELD_OUT = ("val", "validation", "test")  # in this order: a `test` beside a `val` often has no labels
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_TEST_SCENES = 1 << 40  # where the indices of the test split start
_REFERENCE_SCENES = 1 << 41  # scenes of no split, whose distances set the bins
_DISTANCE_BINS = 8
_SCENES_AT_ONCE = 256  # rendered between two reports of progress


class DataError(ValueError):
    """Data that are not there, not readable, or not as they should be: one line with the name and what would be right."""


class Source(Protocol):
    """Random access to the examples of one split.

    `classes` maps a task to its number of classes, and is empty without labels; `labels_at` gives the labels, int64 [n] from 0
    up, of the examples at rows [n]. Sources can be pickled for
    worker processes; one that holds its pixels in memory is then copied into each of them.
    """

    @property
    def classes(self) -> Mapping[str, int]: ...

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray | bytes:
        """Pixels, uint8 [H, W] or [H, W, C], or an encoded image. Raises OSError where the file cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the example in messages: a path, or the data's name with an index."""
        ...


def open_source(
    name: str,
    split: str,
    *,
    size: int,
    seed: int,
    directory: str | None = None,
    image_size: int = 64,
    progress: Progress | None = None,
) -> Source:
    """Opens the split `train` or `test` of a data set.

    - `scenes`: `size` generated scenes, a function of `seed`, `image_size` pixels square, rendered here (`progress` is
      called as that goes on). Tasks count, distance (8 quantile bins, the same for all splits, seeds and sizes), shape, colour.
    - `folder:PATH`: JPEG, PNG and WebP files at any depth, in the order of their paths. Where PATH holds `train` and one of
      `val`, `validation` or `test`, these are the splits; otherwise a hash of its path below PATH puts every tenth file into
      the test split. The first sub-folder on a file's way is its label (task `label`, classes in sorted order).
    - `arrays:FILE.npz`: `images` (uint8 [N, H, W] or [N, H, W, C]) and optionally `labels`, of which a hash of the
      index puts every tenth into the test split; or `train_images`, `test_images` and optionally `train_labels`, `test_labels`.
    - `idx:DIR`: MNIST-format files `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not.
    - `tfds:NAME[/CONFIG][/VERSION][:SPLIT]`: a data set that TFDS has prepared as ArrayRecord files in `directory` (by default
      ~/tensorflow_datasets). SPLIT replaces `train` and may be a part of it (`train[:1%]`); the test split is `validation` or
      else `test`, or the last tenth of `train` where that is the only split and no SPLIT is given.

    `size`, `seed` and `image_size` are for scenes only. Paths may be local, gs:// or s3://. Raises `DataError`.
    """
    if split not in _SPLITS:
        raise DataError(f"no split {split!r}: the splits are 'train' and 'test'")
    kind, _, place = name.partition(":")
    if kind == "scenes" and not place:
        return _open_scenes(split, size, seed, image_size, progress)
    openers = {"folder": _open_folder, "arrays": _open_arrays, "idx": _open_idx}
    if place and kind in openers:
        return openers[kind](place, split)
    if place and kind == "tfds":
        return _open_tfds(place, split, directory or "~/tensorflow_datasets")
    known = "scenes, folder:PATH, arrays:FILE.npz, idx:DIR, tfds:NAME[/CONFIG][:SPLIT]"
    raise DataError(f"no data named {name!r}: use one of {known}")


class _Labels:
    """What a source with all its labels in memory says of them."""

    labels: Mapping[str, np.ndarray]

    @property
    def classes(self) -> dict[str, int]:
        return {task: int(labels.max()) + 1 for task, labels in self.labels.items()}

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {task: labels[rows] for task, labels in self.labels.items()}


class ArraySource(_Labels):
    """Pixels in memory: uint8 [N, H, W] or [N, H, W, C]."""

    def __init__(self, images: np.ndarray, labels: Mapping[str, np.ndarray], title: str):
        self.images = images
        self.labels = dict(labels)
        self._title = title

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"{self._title} image {index}"


class FolderSource(_Labels):
    """Image files below a folder, given as their bytes."""

    def __init__(self, folder: epath.Path, files: Sequence[str], labels: Mapping[str, np.ndarray]):
        self._folder = folder
        self._files = files
        self.labels = dict(labels)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> bytes:
        return (self._folder / self._files[index]).read_bytes()

    def name(self, index: int) -> str:
        return str(self._folder / self._files[index])


class TfdsSource:
    """The images of a prepared TFDS split as they were encoded, straight from its ArrayRecord files."""

    def __init__(self, folder: epath.Path, split: str, title: str):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        kinds = {key: type(feature).__name__ for key, feature in builder.info.features.items()}
        images = [key for key, kind in kinds.items() if kind == "Image"]
        if not images:
            raise DataError(f"{title} has no image feature among {', '.join(kinds)}")
        self._title = f"{title} {split}"
        self._image = "image" if "image" in images else images[0]
        self.classes = {key: builder.info.features[key].num_classes for key, kind in kinds.items() if kind == "ClassLabel"}
        try:
            self._records = builder.as_data_source(split, decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()))
        except (NotImplementedError, ValueError) as error:
            raise DataError(f"{self._title} cannot be read: {' '.join(str(error).split())}") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        return self._records[index][self._image]

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the records of these rows alone: those of a whole split can be hundreds of gigabytes."""
        records = [self._records[int(row)] for row in rows]
        return {task: np.array([record[task] for record in records], np.int64) for task in self.classes}

    def name(self, index: int) -> str:
        return f"{self._title} image {index}"


def _open_scenes(split: str, size: int, seed: int, image_size: int, progress: Progress | None) -> ArraySource:
    from ijepa_jax.data import scenes

    if size < 1:
        raise DataError(f"scenes: cannot generate {size} scenes: give a size of 1 or more")
    index = np.arange(size, dtype=np.int64) + (_TEST_SCENES if split == "test" else 0)
    images = np.empty((size, image_size, image_size, 3), np.uint8)
    labels = []
    for start in range(0, size, _SCENES_AT_ONCE):  # in one thread: two were no faster on two cores
        part = slice(start, min(start + _SCENES_AT_ONCE, size))
        rendered = scenes.render(seed, index[part], size=image_size)
        images[part] = rendered.images
        labels.append(rendered.labels)
        if progress is not None:
            progress(part.stop, size)
    columns = {task: np.concatenate([chunk[task] for chunk in labels]) for task in labels[0]}
    return ArraySource(images, _scene_classes(columns), f"scenes {split}")


def _scene_classes(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "count": labels["count"].astype(np.int64) - 1,
        "distance": np.searchsorted(_distance_edges(), labels["distance"], side="right").astype(np.int64),
        "shape": labels["shape"].astype(np.int64),
        "colour": labels["colour"].astype(np.int64),
    }


@functools.cache
def _distance_edges() -> np.ndarray:
    """The inner edges of the quantile bins, from 2,048 scenes of their own: the same for every split, seed and size."""
    from ijepa_jax.data import scenes

    reference = scenes.render(0, np.arange(2048, dtype=np.int64) + _REFERENCE_SCENES, size=16)
    return np.quantile(reference.labels["distance"], np.arange(1, _DISTANCE_BINS) / _DISTANCE_BINS)


def _open_folder(place: str, split: str) -> FolderSource:
    root = epath.Path(place).expanduser()
    if not root.is_dir():
        raise DataError(f"folder:{place}: {'this is a file, not a folder' if root.exists() else 'no such folder'}")
    held_out = next((part for part in _HELD_OUT if (root / part).is_dir()), None)
    if held_out and (root / "train").is_dir():
        parts = (root / "train", root / held_out)
        folder = parts[split == "test"]
        files = _list_images(folder)
        classes = {child.name for part in parts for child in part.iterdir() if child.is_dir() and child.name[0] != "."}
    else:
        folder = root
        everything = _list_images(root)
        files = [file for file in everything if _in_test_split(file) == (split == "test")]
        classes = {file.partition("/")[0] for file in everything if "/" in file}
        if everything and not files:
            raise DataError(
                f"folder:{place}: its {len(everything)} images are too few to leave some for the {split} split: "
                "add images, or sort them into train/ and test/"
            )
    if not files:
        raise DataError(f"folder:{place}: no {', '.join(_EXTENSIONS)} files in {folder} or below")
    return FolderSource(folder, files, _folder_labels(folder, files, classes))


def _list_images(folder: epath.Path) -> list[str]:
    """The image files below `folder`, as sorted paths relative to it; hidden files and folders are left out."""
    local = "://" not in str(folder)
    base = str(folder).rpartition("://")[2].rstrip("/")  # object stores may list paths without their scheme
    found = []
    # Data sets are often assembled from symbolic links, which epath's own walk does not follow.
    walk = os.walk(folder, onerror=_unreadable, followlinks=True) if local else folder.walk(on_error=_unreadable)
    for directory, _, names in walk:
        below = str(directory).rpartition("://")[2].rstrip("/").removeprefix(base).strip("/")
        if any(part.startswith(".") for part in below.split("/")):
            continue
        prefix = below + "/" if below else ""
        found += [prefix + name for name in names if name.lower().endswith(_EXTENSIONS) and name[0] != "."]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _in_test_split(relative: str) -> bool:
    """A tenth of all paths, whatever else is in the folder, so that adding images moves none across the splits."""
    digest = hashlib.blake2b(relative.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 10 == 0


def _folder_labels(folder: epath.Path, files: Sequence[str], classes: set[str]) -> dict[str, np.ndarray]:
    """The class of each file; none at all where some or all files lie in no sub-folder."""
    unlabelled = [file for file in files if "/" not in file]
    if unlabelled:
        if len(unlabelled) < len(files):
            example = folder / unlabelled[0]
            logging.warning("%s and %d more lie in no sub-folder: no labels for %s", example, len(unlabelled) - 1, folder)
        return {}
    number = {name: i for i, name in enumerate(sorted(classes))}
    return {"label": np.array([number[file.partition("/")[0]] for file in files], np.int64)}


def _open_arrays(place: str, split: str) -> ArraySource:
    path = epath.Path(place).expanduser()
    if not path.is_file():
        raise DataError(f"arrays:{place}: no such file")
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"arrays:{place} is not a readable .npz file: it holds a single array")
            return _select_arrays(arrays, place, split)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"arrays:{place} is not a readable .npz file: {' '.join(str(error).split())}") from error


def _select_arrays(arrays: Mapping[str, np.ndarray], place: str, split: str) -> ArraySource:
    if f"{split}_images" in arrays:
        images = arrays[f"{split}_images"]
        labels = arrays.get(f"{split}_labels")
        chosen = slice(None)
    elif "images" in arrays:
        images = arrays["images"]
        labels = arrays.get("labels")
        in_test = counter.bits(0, np.arange(len(images))) % np.uint64(10) == 0
        chosen = in_test if split == "test" else ~in_test
    else:
        raise DataError(
            f"arrays:{place} holds {', '.join(arrays) or 'nothing'}: for the {split} split expected {split}_images (and "
            f"{split}_labels), or images (and labels) for all splits"
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"arrays:{place}: images must be uint8 [N, H, W] or [N, H, W, C], these are {images.dtype} {list(images.shape)}"
        )
    checked = {} if labels is None else {"label": _check_labels(labels, len(images), f"arrays:{place}")[chosen]}
    if not len(images[chosen]):
        raise DataError(f"arrays:{place}: its {len(images)} images leave none for the {split} split")
    return ArraySource(images[chosen], checked, f"arrays:{place} {split}")


def _check_labels(labels: np.ndarray, count: int, title: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.size != count or (count and len(labels) != count):
        raise DataError(f"{title}: labels must be {count} integers, these are {labels.dtype} {list(labels.shape)}")
    return labels.reshape(count).astype(np.int64)


def _open_idx(place: str, split: str) -> ArraySource:
    folder = epath.Path(place).expanduser()
    if not folder.is_dir():
        raise DataError(f"idx:{place}: no such folder")
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder, f"{prefix}-images", 3)
    if images is None:
        raise DataError(f"idx:{place}: no {prefix}-images-idx3-ubyte or {prefix}-images-idx3-ubyte.gz there")
    labels = _read_idx(folder, f"{prefix}-labels", 1)
    title = f"idx:{place} {split}"
    return ArraySource(images, {} if labels is None else {"label": _check_labels(labels, len(images), title)}, title)


def _read_idx(folder: epath.Path, stem: str, dimensions: int) -> np.ndarray | None:
    """Reads `STEM-idxD-ubyte`, gzipped or not; None if there is no such file."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).exists()), None)
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


def _open_tfds(place: str, split: str, directory: str) -> TfdsSource:
    name, _, explicit = place.partition(":")
    folder = _find_prepared(name, epath.Path(directory).expanduser())
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(folder).info.splits
    present = [part for part in ("train", *_HELD_OUT) if part in splits and splits[part].num_examples]
    held_out = next((part for part in present if part != "train"), None)
    if explicit and split == "train":
        chosen = explicit
    elif held_out and (split == "test" or "train" in present):
        chosen = held_out if split == "test" else "train"
    elif present == ["train"] and not explicit:
        chosen = "train[:90%]" if split == "train" else "train[90%:]"
    else:
        raise DataError(f"tfds:{place} has no {split} split: it has {', '.join(splits)}")
    return TfdsSource(folder, chosen, f"tfds:{name}")


def _find_prepared(name: str, directory: epath.Path) -> epath.Path:
    """The folder of the newest prepared version of NAME[/CONFIG][/VERSION]."""
    root = directory / name
    if (root / "dataset_info.json").exists():
        return root
    children = [child for child in root.iterdir() if child.is_dir()] if root.is_dir() else []
    versions = [child for child in children if (child / "dataset_info.json").exists()]
    if versions:
        return max(versions, key=lambda child: [int(part) if part.isdigit() else -1 for part in child.name.split(".")])
    configs = sorted(child.name for child in children if any((part / "dataset_info.json").exists() for part in child.iterdir()))
    if configs:
        raise DataError(f"tfds:{name} has several configurations, name one: {', '.join(f'tfds:{name}/{c}' for c in configs)}")
    raise DataError(
        f"tfds:{name} is not prepared in {directory}: where TensorFlow is installed, run once "
        f"`tfds build {name} --data_dir {directory} --file_format array_record`"
    )
