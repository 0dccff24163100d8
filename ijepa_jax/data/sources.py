"""Data sets as random-access sources: generated scenes, folders, arrays, MNIST-format files and prepared TFDS data.

A source gives example `i` as pixels or as the bytes of an image file, undecoded, so that only the examples that are asked
for cost anything, in the worker that asks. `open_source` maps the names that configurations use to sources.
"""

import contextlib
import functools
import gzip
import hashlib
import logging
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from etils import epath

from ijepa_jax import counter
from ijepa_jax.data import scenes

Progress = Callable[[int, int], None]  # (examples done, examples in all)

_SPLITS = ("train", "test")
_TEST_SCENES = 1 << 40  # where the indices of the test split start
_REFERENCE_SCENES = 1 << 41  # scenes of no split, whose distances set the bins
_DISTANCE_BINS = 8
_MOST_CLASSES = 100_000
_SPARSE = 10  # times as many numbers as classes: a probe has weights for each
_SCENES_AT_ONCE = 256  # rendered between two reports of progress


class DataError(ValueError):
    """Data that are not there, not readable, or not as they should be: one line with the name and what would be right."""


class NoSplit(DataError):
    """The data are there, but not the split that was asked for."""


class Source(Protocol):
    """Random access to the examples of one split.

    `classes` maps a task to its number of classes, and is empty without labels; `class_names` maps those tasks whose classes
    have names to these; `labels_at` gives the labels, int64 [n] from 0 up, of the examples at rows [n]. Sources can be pickled
    for worker processes; one that holds its pixels in memory is then copied into each of them.
    """

    @property
    def classes(self) -> Mapping[str, int]: ...

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]: ...

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray | bytes:
        """Pixels, uint8 [H, W] or [H, W, C], or an encoded image. Raises OSError where the file cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the example in messages: a path, or the data's name with an index. Never raises."""
        ...

    def file(self, index: int) -> str:
        """Where in the data set the example comes from: a file's path below the folder, or else the split and the index."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal digits that identify the examples, their order, content and labels: a key for what is computed of them.

        The same in every process, and wherever the data set lies. Pixels in memory are hashed; of files, their names, lengths
        and times of change. Found anew by every call. Raises `DataError` or OSError where an object store does not answer.
        """
        ...

    def contents(self) -> dict[str, str]:
        """What tells these images from others, by what it is told by, wherever they lie and whenever they were copied there.

        Cheap: pixels in memory are hashed; of files, their names, and the bytes of some. Labels do not count.
        """
        ...


def open_source(
    name: str,
    split: str,
    *,
    size: int,
    seed: int,
    directory: str | None = None,
    image_size: int | tuple[int, int] = 64,
    progress: Progress | None = None,
) -> Source:
    """Opens the split `train` or `test` of a data set.

    - `scenes`: `size` scenes (a `ScenesSource`), a function of `seed`, of `image_size` pixels, rendered here (`progress` is
      called as that goes on). Tasks count, distance (8 quantile bins, the same for all splits, seeds and sizes), shape, colour.
    - `folder:PATH`: JPEG, PNG and WebP files at any depth, in the order of their paths. Where PATH holds `train` (`training`)
      and `val` (`valid`, `validation`, `dev`) or else `test` (`testing`), in any case, these are the splits; otherwise a hash
      of its path below PATH puts every tenth file into the test split. The first sub-folder on a file's way is its label
      (task `label`, classes in sorted order).
    - `arrays:FILE.npz`: `images` (uint8 [N, H, W] or [N, H, W, C]) and optionally `labels`, of which a hash of the
      index puts every tenth into the test split; or `train_images`, `test_images` and optionally `train_labels`, `test_labels`.
    - `idx:DIR`: MNIST-format files `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not.
    - `tfds:NAME[/CONFIG][/VERSION][:SPLIT]`: a data set that TFDS has prepared as ArrayRecord files in `directory` (by default
      ~/tensorflow_datasets). SPLIT replaces `train` and may be a part of it (`train[:1%]`); the test split is `validation` or
      else `test`, or the last tenth of `train` where that is the only split and no SPLIT is given.
    - `tfds:PATH[:SPLIT]`: likewise, of the folder that holds the data set or its versions, as `launch.py prepare` writes it.

    `size`, `seed` and `image_size` are for scenes only. Paths may be local, gs:// or s3:// (tfds: not s3://). Raises
    `DataError`, and of its kind `NoSplit` where the data hold nothing for this split.
    """
    if split not in _SPLITS:
        raise DataError(f"no split {split!r}: the splits are 'train' and 'test'")
    kind, _, place = name.partition(":")
    if kind == "scenes" and not place:
        return _open_scenes(split, size, seed, image_size, progress)
    tfds = functools.partial(_open_tfds, directory=directory or "~/tensorflow_datasets")
    openers = {"folder": _open_folder, "arrays": _open_arrays, "idx": _open_idx, "tfds": tfds}
    if not place or kind not in openers:
        known = "scenes, folder:PATH, arrays:FILE.npz, idx:DIR, tfds:NAME[/CONFIG][:SPLIT], tfds:PATH[:SPLIT]"
        raise DataError(f"no data named {name!r}: use one of {known}")
    with storage_errors(f"{name} {directory or ''}"):
        return openers[kind](place, split)


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Makes one line of what object stores' libraries raise: exceptions of their own, or ImportError, if one is missing."""
    try:
        yield
    except (DataError, OSError):
        raise
    except Exception as error:
        if "://" not in place:
            raise
        raise DataError(f"cannot use {place.strip()}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def check_known(tested: Iterable[str], trained: Iterable[str], title: str) -> None:
    """Raises DataError where classes that are tested have no training image: no probe could name them."""
    trained = {*trained}
    unknown = sorted({*tested} - trained)
    if unknown:
        alike = {_letters(name): name for name in trained}
        shown = [
            f"{name!r} (in training {alike[_letters(name)]!r})" if _letters(name) in alike else repr(name)
            for name in unknown[:5]
        ]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(f"{title} has classes that the training split has not: {', '.join(shown)}{more}: they must be the same")


def _letters(name: str) -> str:
    """What two spellings of a name have in common: no case, no spaces or marks, one form of accents; a name of marks stays."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", plain) or plain


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold, and what would break a line or upset a terminal, escaped."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in readable)


def file_state(path: str) -> str:
    """A file's length and time of change, to tell by whether it is still the same, or that it cannot be read.

    The time is in nanoseconds for local files, in seconds on gs://, and unknown on s3://.
    """
    try:
        if "://" in path:
            remote = epath.Path(path).stat()
            return f"{remote.length} {remote.mtime}"
        local = Path(path).stat()
        return f"{local.st_size} {local.st_mtime_ns}"
    except OSError as error:
        if "://" in path and not isinstance(error, FileNotFoundError):  # a failed request says nothing of the file
            raise
        return "unreadable"


def hashed(pieces: Iterable[str | bytes | np.ndarray]) -> str:
    """Hexadecimal digits that identify a sequence of texts or arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece.encode("utf-8", "surrogateescape") if isinstance(piece, str) else piece)
    return digest.hexdigest()


class LabelledSource:
    """What a source with all its labels in memory says of them; `_content` gives what identifies its images, in pieces."""

    labels: Mapping[str, np.ndarray]
    class_names: Mapping[str, Sequence[str]] = {}

    @property
    def classes(self) -> dict[str, int]:
        return {task: int(labels.max()) + 1 for task, labels in self.labels.items()}

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {task: labels[rows] for task, labels in self.labels.items()}

    def _content(self) -> Iterator[bytes | np.ndarray]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for piece in self._content():
            digest.update(piece)
        for task, labels in sorted(self.labels.items()):
            digest.update(f"\0{task}\0".encode())
            digest.update(np.ascontiguousarray(labels, np.int64))
        return digest.hexdigest()


class ArraySource(LabelledSource):
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

    def file(self, index: int) -> str:
        return f"{self._title.split()[-1]} image {index}"

    def _content(self) -> Iterator[bytes | np.ndarray]:
        yield str(self.images.shape).encode()
        yield np.ascontiguousarray(self.images)

    def contents(self) -> dict[str, str]:
        return {"pixels": hashed(self._content())}


class ScenesSource(ArraySource):
    """Scenes `index` [N] of the collection `seed`, whose segments can be had too."""

    segment_names = scenes.SEGMENTS
    class_names: Mapping[str, Sequence[str]] = {
        "count": [str(count) for count in range(1, scenes.MAX_OBJECTS + 1)],
        "distance": [str(place) for place in range(1, _DISTANCE_BINS + 1)],  # from near to far
        "shape": list(scenes.SHAPES),
        "colour": list(scenes.COLOURS),
    }

    def __init__(self, images: np.ndarray, labels: Mapping[str, np.ndarray], title: str, seed: int, index: np.ndarray):
        super().__init__(images, labels, title)
        self._seed = seed
        self._index = index

    def contents(self) -> dict[str, str]:  # their pixels may differ by one in 100,000 between processors
        return {"scenes": f"{len(self)} from {self._index[0]} of seed {self._seed}, {list(self.images.shape[1:3])} pixels"}

    def segments_at(self, rows: np.ndarray) -> np.ndarray:
        """What is seen at each pixel of the examples at rows [n]: uint8 [n, H, W], indices into `segment_names`.

        The scenes are rendered anew, as opening the source has done: keep what is needed more than once.
        """
        index = self._index[rows]
        segments = np.empty((len(index), *self.images.shape[1:3]), np.uint8)
        for start in range(0, len(index), _SCENES_AT_ONCE):
            part = slice(start, start + _SCENES_AT_ONCE)
            segments[part] = scenes.segments(scenes.render(self._seed, index[part], size=self.images.shape[1:3]))
        return segments


class Subset:
    """Some examples of a source, as a source: those at `rows` int [n], which may repeat."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source = source
        self._rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray | bytes:
        return self._source[int(self._rows[index])]

    @property
    def classes(self) -> Mapping[str, int]:
        return self._source.classes

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        return self._source.class_names

    @property
    def segment_names(self) -> Sequence[str] | None:
        return getattr(self._source, "segment_names", None)

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._source.labels_at(self._rows[rows])

    def segments_at(self, rows: np.ndarray) -> np.ndarray:
        return self._source.segments_at(self._rows[rows])

    def name(self, index: int) -> str:
        return self._source.name(int(self._rows[index]))

    def file(self, index: int) -> str:
        return self._source.file(int(self._rows[index]))

    def contents(self) -> dict[str, str]:
        return {**self._source.contents(), "rows": hashed([self._rows])}

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._rows, digest_size=16)
        digest.update(self._source.fingerprint().encode())
        return digest.hexdigest()


def _open_scenes(
    split: str, size: int, seed: int, image_size: int | tuple[int, int], progress: Progress | None
) -> ScenesSource:
    if size < 1:
        raise DataError(f"scenes: cannot generate {size} scenes: give a size of 1 or more")
    index = np.arange(size, dtype=np.int64) + (_TEST_SCENES if split == "test" else 0)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = np.empty((size, height, width, 3), np.uint8)
    labels = []
    for start in range(0, size, _SCENES_AT_ONCE):  # in one thread: two were no faster on two cores
        part = slice(start, min(start + _SCENES_AT_ONCE, size))
        rendered = scenes.render(seed, index[part], size=(height, width))
        images[part] = rendered.images
        labels.append(rendered.labels)
        if progress is not None:
            progress(part.stop, size)
    columns = {task: np.concatenate([chunk[task] for chunk in labels]) for task in labels[0]}
    return ScenesSource(images, _scene_classes(columns), f"scenes {split}", seed, index)


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
    reference = scenes.render(0, np.arange(2048, dtype=np.int64) + _REFERENCE_SCENES, size=16)
    return np.quantile(reference.labels["distance"], np.arange(1, _DISTANCE_BINS) / _DISTANCE_BINS)


def _open_folder(place: str, split: str) -> Source:
    from ijepa_jax.data import folders

    return folders.open_folder(place, split)


def _open_tfds(place: str, split: str, directory: str) -> Source:
    from ijepa_jax.data import prepared

    return prepared.open_tfds(place, split, directory)


def _open_arrays(place: str, split: str) -> ArraySource:
    path = epath.Path(place).expanduser()
    if not path.is_file():
        raise DataError(f"arrays:{place}: no such file: --config.data.name tells where data are")
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
        if labels is not None and labels.ndim and len(labels) == len(images):  # no class is for the test split alone
            known = in_test & np.isin(labels, labels[~in_test]).reshape(len(images), -1).all(axis=1)
            if not known.any():
                logging.warning("arrays:%s: no class has images in both splits, so its labels are left out", place)
                labels = None
            in_test = known if known.any() else in_test
        chosen = in_test if split == "test" else ~in_test
    else:
        raise NoSplit(
            f"arrays:{place} holds {', '.join(arrays) or 'nothing'}: for the {split} split expected {split}_images (and "
            f"{split}_labels), or images (and labels) for all splits"
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise DataError(
            f"arrays:{place}: images must be uint8 [N, H, W] or [N, H, W, C], these are {images.dtype} {list(images.shape)}"
        )
    checked = {} if labels is None else {"label": _check_labels(labels, len(images), f"arrays:{place}")[chosen]}
    if split == "test" and checked and "train_labels" in arrays and "test_images" in arrays:
        check_known(map(str, np.unique(labels)), map(str, np.unique(arrays["train_labels"])), f"arrays:{place}: its test split")
    if not len(images[chosen]):
        raise NoSplit(f"arrays:{place}: its {len(images)} images leave none for the {split} split")
    return ArraySource(images[chosen], checked, f"arrays:{place} {split}")


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


def _open_idx(place: str, split: str) -> ArraySource:
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
