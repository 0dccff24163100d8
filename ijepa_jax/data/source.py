"""A data set as a random-access source: the protocol, its errors, and what sources have in common.

A source gives example `i` as pixels or as the bytes of an image file, undecoded, so that only the examples that are asked
for cost anything, in the worker that asks.
"""

import contextlib
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from ijepa_jax.host.errors import one_line

Arrays = dict[str, np.ndarray]  # of examples, by name: what is made on the host


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
        raise DataError(f"cannot use {place.strip()}: {type(error).__name__}: {one_line(error)}") from error


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
