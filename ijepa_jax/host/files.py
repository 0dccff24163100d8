"""Files and places: local ones and object stores, written as a whole or not at all."""

import contextlib
import errno
import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from etils import epath

ASIDE = "damaged-"  # prefix of what was set aside
_UNFINISHED = ".tmp"  # suffix of files that are not finished
_STORES = {"gs": "gcsfs", "s3": "s3fs"}  # and the libraries that reach them
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def absolute(place: epath.PathLike) -> epath.Path:
    """A place from the root on, a local one's `~` expanded: a folder that the program changes to later makes no difference.

    Raises ValueError for nobody's home, and for an object store that there is not, or whose library is not installed.
    """
    place = os.fspath(place)
    scheme, remote, _ = place.partition("://")
    if not remote:
        try:
            return epath.Path(Path(place).expanduser().absolute())
        except RuntimeError as error:  # ~ of nobody
            raise ValueError(f"{place}: {str(error).rstrip('.')}") from error
    if scheme not in _STORES:
        raise ValueError(f"{place}: a place is a local path, or one of {', '.join(f'{store}://' for store in _STORES)}")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(f"{place} needs a library that is not installed: pip install {_STORES[scheme]}") from error
    return epath.Path(place)


def set_aside(path: epath.PathLike) -> epath.Path:
    """Renames what is damaged or in the way to damaged-NAME beside it, or another free name like that; returns the new path."""
    path = epath.Path(path)
    names = (f"{ASIDE}{path.name}{f'.{i}' if i else ''}" for i in itertools.count())
    places = (path.parent / name for name in names)
    free = next(place for place in places if not (place.exists() or os.path.lexists(place)))  # a link to nothing is there too
    path.rename(free)
    return free


@contextlib.contextmanager
def unfinished(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary place. When the block ends well it is renamed to `path`; otherwise `path` stays as it was.

    In object stores the place is `path` itself: a file is there when it is written as a whole.
    """
    path = epath.Path(path)
    if "://" in str(path):
        yield path
        return
    place = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_UNFINISHED}")  # another process may write the same
    try:
        yield place
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def remove_unfinished(path: epath.PathLike) -> None:
    """Removes what writers of a file left that were killed. None may be at work."""
    path = epath.Path(path)
    for left in path.parent.glob(f".{path.name}.*{_UNFINISHED}"):
        left.unlink(missing_ok=True)


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file which is there as a whole or not at all; one that was there before stays as long."""
    with unfinished(path) as place:
        place.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def full_disk_named(place: epath.PathLike) -> Iterator[None]:
    """Has the error of a full disk, which names no file, say where there was no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(f"cannot write to {place} (disk full?): {error.strerror}") from error


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
