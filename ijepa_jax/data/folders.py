"""Folders of image files as sources: listed once, labelled by their sub-folders, read file by file."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
from etils import epath

from ijepa_jax.data.sources import HELD_OUT, DataError, LabelledSource, NoSplit, file_state, printable, storage_errors

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_LOOKS_AT_ONCE = 16  # network disks and object stores take their time for each file
_FILES_PER_LOOK = 256  # a task of a thread costs more than a look at a local file


class FolderSource(LabelledSource):
    """Image files below a folder, given as their bytes."""

    def __init__(
        self,
        folder: epath.Path,
        files: Sequence[str],
        labels: Mapping[str, np.ndarray],
        class_names: Mapping[str, Sequence[str]] | None = None,
    ):
        self._folder = folder
        self.files = files
        self.labels = dict(labels)
        self.class_names = dict(class_names or {})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> bytes:
        path = self._folder / self.files[index]
        try:
            return path.read_bytes()
        except OSError:
            raise
        except Exception as error:  # object stores' libraries have exceptions of their own
            raise OSError(f"cannot read {path}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def name(self, index: int) -> str:
        return printable(str(self._folder / self.files[index]))

    def file(self, index: int) -> str:
        return self.files[index]

    def _content(self) -> Iterator[bytes]:
        starts = range(0, len(self.files), _FILES_PER_LOOK)
        with storage_errors(str(self._folder)), futures.ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            yield from pool.map(self._states, starts)

    def _states(self, start: int) -> bytes:
        files = self.files[start : start + _FILES_PER_LOOK]
        lines = [f"{file}\0{file_state(f'{self._folder}/{file}')}\0" for file in files]
        return "".join(lines).encode("utf-8", "surrogateescape")


def open_folder(place: str, split: str) -> FolderSource:
    """The source of `folder:PLACE`, see `sources.open_source`."""
    root = epath.Path(place).expanduser()
    if not root.is_dir():
        raise DataError(f"folder:{place}: {'this is a file, not a folder' if root.exists() else 'no such folder'}")
    held_out = next((part for part in HELD_OUT if (root / part).is_dir()), None)
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
            raise NoSplit(
                f"folder:{place}: its {len(everything)} images are too few to leave some for the {split} split: "
                "add images, or sort them into train/ and test/"
            )
    if not files:
        raise DataError(f"folder:{place}: no {', '.join(_EXTENSIONS)} files in {folder} or below")
    labels = _folder_labels(folder, files, sorted(classes))
    return FolderSource(folder, files, labels, {"label": sorted(classes)} if labels else {})


def _list_images(folder: epath.Path) -> list[str]:
    """The image files below `folder`, as sorted paths relative to it; hidden files and folders are left out."""
    if "://" not in str(folder):
        return sorted(_walk(str(folder), "", frozenset()))
    base = str(folder).rpartition("://")[2].rstrip("/")  # object stores may list paths without their scheme
    found = []
    for directory, _, names in folder.walk(on_error=_unreadable):
        below = str(directory).rpartition("://")[2].rstrip("/").removeprefix(base).strip("/")
        if any(part.startswith(".") for part in below.split("/")):
            continue
        prefix = below + "/" if below else ""
        found += [prefix + name for name in names if _is_image(name)]
    return sorted(found)


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Follows links, of which data sets are often assembled, but none to a folder that this one is in."""
    try:
        status = Path(folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            logging.warning("%s is a link to a folder that it is in: left out", folder)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir():
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here})
                elif _is_image(entry.name) and (entry.is_file() or entry.is_symlink()):
                    yield prefix + entry.name
    except OSError as error:
        _unreadable(error)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS) and name[0] != "."


def _unreadable(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _in_test_split(relative: str) -> bool:
    """A tenth of all paths, whatever else is in the folder, so that adding images moves none across the splits."""
    digest = hashlib.blake2b(relative.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 10 == 0


def _folder_labels(folder: epath.Path, files: Sequence[str], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """The class of each file; none at all where some or all files lie in no sub-folder."""
    unlabelled = [file for file in files if "/" not in file]
    if unlabelled:
        if len(unlabelled) < len(files):
            example = folder / unlabelled[0]
            logging.warning("%s and %d more lie in no sub-folder: no labels for %s", example, len(unlabelled) - 1, folder)
        return {}
    number = {name: i for i, name in enumerate(classes)}
    return {"label": np.array([number[file.partition("/")[0]] for file in files], np.int64)}
