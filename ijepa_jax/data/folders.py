"""Folders of image files as sources: listed once, labelled by their sub-folders, read file by file."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
from etils import epath

from ijepa_jax.data import images
from ijepa_jax.data.source import DataError, LabelledSource, NoSplit, check_known, hashed, printable, storage_errors
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import file_state

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
# Words for splits. Of held-out ones the first kind that has images is taken: a `test` beside a `val` often has no labels.
_TRAIN = ("train", "training", "trainval")
_HELD_OUT = (("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "holdout"), ("test", "testing"))
_TESTED = (*_HELD_OUT[0], *_HELD_OUT[1])
_NO_SPLITS = ("unlabeled", "unlabelled", "extra")  # beside them, and left out
_SAY_NOTHING = ("set", "data", "dataset", "images", "split")  # words beside these: train_set, Test Images, val2017
_LOOKS_AT_ONCE = 16  # network disks and object stores take their time for each file
_FILES_SEEN = 64  # files whose bytes tell a folder from one with files of the same names
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
            return path.read_bytes() if "://" in str(path) else images.read(path)
        except OSError:
            raise
        except images.BadImage as error:  # a link to a device, say
            raise OSError(f"cannot read {path}: {error}") from error
        except Exception as error:  # object stores' libraries have exceptions of their own
            raise OSError(f"cannot read {path}: {type(error).__name__}: {one_line(error)}") from error

    def name(self, index: int) -> str:
        return printable(str(self._folder / self.files[index]))

    def file(self, index: int) -> str:
        return self.files[index]

    def _content(self) -> Iterator[bytes]:
        starts = range(0, len(self.files), _FILES_PER_LOOK)
        with storage_errors(str(self._folder)), futures.ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            yield from pool.map(self._states, starts)

    def contents(self) -> dict[str, str]:
        some = range(0, len(self.files), max(1, len(self.files) // _FILES_SEEN))
        with storage_errors(str(self._folder)), futures.ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            return {"files": hashed(f"{file}\0" for file in self.files), "bytes": hashed(pool.map(self._seen, some))}

    def _seen(self, index: int) -> bytes:
        try:
            return self[index]
        except OSError:
            return b"unreadable"

    def _states(self, start: int) -> bytes:
        files = self.files[start : start + _FILES_PER_LOOK]
        lines = [f"{file}\0{file_state(f'{self._folder}/{file}')}\0" for file in files]
        return "".join(lines).encode("utf-8", "surrogateescape")


def open_folder(place: str, split: str) -> FolderSource:
    """The source of `folder:PLACE`, see `open.open_source`."""
    root = epath.Path(place).expanduser()
    if not root.is_dir():
        problem = "this is a file, not a folder" if root.exists() else "no such folder: --config.data.name tells where data are"
        raise DataError(f"folder:{place}: {problem}")
    parts = _splits(root, place)
    if parts:
        folder = parts[split == "test"]
        files = _list_images(folder, say=True)
        loose = [child.name for child in root.iterdir() if _is_image(child.name)] if split == "train" else ()
        if loose:
            beside = " and ".join(part.name for part in parts)
            logging.warning("folder:%s: %d images beside %s left out, for example %s", place, len(loose), beside, loose[0])
        trained, held_out = (_children(part) for part in parts)
        classes = {*trained, *held_out}
        if split == "test" and trained:
            tested = {_class(file) for file in files}
            if "" in tested:
                logging.warning("%s: images in no sub-folder have no class: no probes with labels", folder)
            else:
                known = [name for name in trained if name not in tested or _has_images(parts[0] / name)]
                check_known(tested, known, f"folder:{place}: the test split {folder}")
    else:
        folder = root
        everything = _list_images(root, say=split == "train")
        held_out = {file for file in everything if _in_test_split(file)}
        trained = {_class(file) for file in everything if file not in held_out}
        known = {file for file in held_out if _class(file) in trained}  # no class is for the test split alone
        _refuse_splits_below(root, everything, place)
        files = [file for file in everything if (file in (known or held_out)) == (split == "test")]
        classes = {_class(file) for file in everything if "/" in file}
        if len(classes) == 1 and split == "train" and all("/" in file for file in everything):
            (only,) = classes
            logging.warning("folder:%s holds one class, %s: if it holds the classes, give folder:%s", place, only, root / only)
        if everything and not files:
            raise NoSplit(
                f"folder:{place}: its {len(everything)} images are too few to leave some for the {split} split: "
                "add images, or sort them into train/ and test/"
            )
    if not files:
        raise DataError(f"folder:{place}: no {', '.join(_EXTENSIONS)} files in {folder} or below")
    labels = _folder_labels(folder, files, sorted(classes))
    if labels and not parts and not known:
        logging.warning("folder:%s: no class has images in both splits, so its sub-folders are no labels", place)
        labels = {}
    return FolderSource(folder, files, labels, {"label": sorted(classes)} if labels else {})


def _splits(root: epath.Path, place: str) -> tuple[epath.Path, epath.Path] | None:
    """The folders of the training and the held-out split, by their names; None where the sub-folders are classes.

    Raises DataError where it cannot be told.
    """
    children = _children(root)
    if len(children) == 1:
        return None  # a wrapping folder
    said = {child: _words(child) for child in children}
    trained, tested = ({rest for word, rest in said.values() if word in words} for words in (_TRAIN, _TESTED))
    speaking = {"", *(trained & tested)}  # seg_train speaks of a split where seg_test is there; "train station" is a class

    def named(names: Sequence[str]) -> list[str]:
        return [child for child, (word, rest) in said.items() if word in names and rest in speaking]

    train, held_out = named(_TRAIN), [named(kind) for kind in _HELD_OUT]
    kinds = [kind for kind in held_out if kind]
    chosen = next((kind for kind in kinds if len(kinds) == 1 or any(_has_images(root / name) for name in kind)), [])
    others = [child for child in children if not any(child in kind for kind in (train, *held_out))]
    right = "have train and val (or test) there, and no other images; classes that are called so go below these"
    if not chosen:
        if trained and tested and all(word for word, _ in said.values()):
            raise DataError(
                f"folder:{place}: {', '.join(children)} speak of splits, but not of two that belong together: {right}"
            )
        if train and others:
            logging.warning("folder:%s: %s is taken for a class, as no held-out split is beside it", place, ", ".join(train))
        return None
    if len(train) != 1 or len(chosen) != 1:
        raise DataError(f"folder:{place}: {', '.join(children)} are not one training and one held-out split: {right}")
    mixed = [other for other in others if _has_images(root / other)]
    if mixed and all(said[other][0] in _NO_SPLITS for other in mixed):
        logging.warning("folder:%s: %s left out, which is no split", place, ", ".join(mixed))
    elif mixed:
        raise DataError(
            f"folder:{place}: {', '.join(mixed[:5])} lie beside the splits {train[0]} and {chosen[0]}, and are neither: {right}"
        )
    return root / train[0], root / chosen[0]


def _words(name: str) -> tuple[str, str]:
    """The word by which a folder's name speaks of a split, and its other words: 'train' and 'seg' of Seg_Train_set2."""
    name = re.sub("(?i)(held|hold)[-_ ]?out", "holdout", name)
    words = [_bare(word.casefold()) for word in re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    words = [word for word in words if word not in _SAY_NOTHING]
    known = [word for word in words if word in (*_TRAIN, *_TESTED, *_NO_SPLITS)]
    return (known[0] if len(known) == 1 else "", " ".join(word for word in words if word not in known))


def _bare(word: str) -> str:
    """A word of a split without what says nothing after it: train of trainset."""
    ends = [end for end in _SAY_NOTHING if word.removesuffix(end) in (*_TRAIN, *_TESTED)]
    return word.removesuffix(ends[0]) if ends else word


def _refuse_splits_below(root: epath.Path, files: Iterable[str], place: str) -> None:
    """Raises DataError where a class has folders for splits below it, as in cats/train and cats/val."""
    below: dict[str, set[str]] = {}
    for file in files:
        name, _, rest = file.partition("/")
        if "/" in rest:
            below.setdefault(name, set()).add(rest.partition("/")[0])
    said = {name: {_words(folder)[0] for folder in folders} for name, folders in below.items()}
    split = [name for name, words in said.items() if words & {*_TRAIN} and words & {*_TESTED}]
    if split:
        right = f"give folder:{root / split[0]}" if len(below) == 1 else "have train and val (or test) above the classes"
        raise DataError(f"folder:{place}: training and held-out images lie below {', '.join(split[:5])}: {right}")


def _class(file: str) -> str:
    """The first sub-folder on a file's way, empty if there is none."""
    return file.rpartition("/")[0].partition("/")[0]


def _has_images(folder: epath.Path) -> bool:
    return next(iter(_images(folder, Counter())), None) is not None


def _children(folder: epath.Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")


def _list_images(folder: epath.Path, say: bool = False) -> list[str]:
    """The image files below `folder`, as sorted paths relative to it; hidden files and folders are left out.

    What else is there is counted, and said where `say`.
    """
    others: Counter = Counter()
    files = sorted(_images(folder, others))
    if others and say:
        kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(6))
        more = ", ..." if len(others) > 6 else ""
        logging.warning(
            "%s: %d files left out, which are no %s: %s%s", folder, others.total(), ", ".join(_EXTENSIONS), kinds, more
        )
    return files


def _images(folder: epath.Path, others: Counter) -> Iterable[str]:
    if "://" not in str(folder):
        return _walk(str(folder), "", frozenset(), others)
    base = str(folder).rpartition("://")[2].rstrip("/")  # object stores may list paths without their scheme
    found = []
    for directory, _, names in folder.walk(on_error=_unreadable):
        below = str(directory).rpartition("://")[2].rstrip("/").removeprefix(base).strip("/")
        if any(part.startswith(".") for part in below.split("/")):
            continue
        prefix = below + "/" if below else ""
        found += [prefix + name for name in names if _is_image(name)]
        others.update(_ending(name) for name in names if name[0] != "." and not _is_image(name))
    return found


def _ending(name: str) -> str:
    return Path(name).suffix.lower() or "without an ending"


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]], others: Counter | None = None) -> Iterator[str]:
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
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here}, others)
                elif _is_image(entry.name) and (entry.is_file() or entry.is_symlink()):
                    yield prefix + entry.name
                elif others is not None:
                    others[_ending(entry.name)] += 1
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
