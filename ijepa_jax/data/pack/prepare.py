"""Packs any source into an ArrayRecord data set that TFDS and `tfds:PATH` read: in parallel, resumable, the same every time.

A packed folder `OUT` holds `prepare.json` (what was packed, and how), `1.0.0/` (shards and TFDS's metadata) and, where images
had to be left out, `skipped.txt`. While packing goes on, `progress/` has a file for each finished shard; `dataset_info.json`
is written last, so that a data set that is not packed to the end is never read.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.open import open_source
from ijepa_jax.data.pack.pool import write_shards
from ijepa_jax.data.pack.shards import VERSION, Account, Packing, Shard
from ijepa_jax.data.source import DataError, NoSplit, Source, printable, storage_errors
from ijepa_jax.host.console import Display
from ijepa_jax.host.files import absolute, write_whole

_SHARD_IMAGES = 1024  # about; a small shard is soon done again, and a big one spares open files
_MAX_SHARDS = 4096  # of a split


def prepare(
    source_name: str,
    out: epath.PathLike,
    *,
    short_side: int = 416,
    quality: int = 92,
    workers: int = 0,
    max_bad_fraction: float = 0.01,
    display: Display | None = None,
) -> dict[str, Any]:
    """Packs the splits of a source (see `open.open_source`) into a data set at `out`, local or gs:// or s3://.

    Every example has `image` (encoded, see `shards.encode` on `short_side` and `quality`), `file` (where it comes from) and
    the labels that all splits have. With the default short side no crop of 0.3 of a square image's area is enlarged for 224
    pixels (sqrt(0.3) * 416 = 228); 832 does the same for 448. The examples are stored in a fixed random order, so that a
    part such as `train[:10%]` is a fair sample of a folder that is sorted by class.

    `workers` processes write the shards; 0: this process does. A script that uses workers needs the usual
    `if __name__ == "__main__"`. A call that was stopped, by SIGINT, SIGTERM or anything else, is continued by the same call,
    and the result is the same to the byte. Unreadable images are skipped and listed.

    Returns the data set's `name`, the number of `images` by split, `bytes` and `skipped`. Raises `DataError` for data that are
    not there, for a folder with other contents or settings, and if more than `max_bad_fraction` of a split is unreadable;
    `pool.Stopped`; OSError.
    """
    display = display or Display(quiet=True)
    started = time.monotonic()
    source_name, out = _absolute(source_name), absolute(out)
    if ":" in str(out).removeprefix("gs://").removeprefix("s3://"):
        raise DataError(f"{out}: choose a path without colons, as tfds:PATH[:SPLIT] takes what follows one for a split")
    sources = _open_splits(source_name, display)
    packing = Packing(sources, out, _title(out.name), _features(sources, display), short_side, quality)
    settings = {"source": source_name, "short_side": short_side, "quality": quality, "listing": _digest(sources)}
    settings["contents"] = {split: source.contents() for split, source in sources.items()}
    with storage_errors(str(out)):
        begun = _begin(out, settings)
    result = begun.get("result")
    if result:
        display.log(f"{out} is finished, and nothing is left to do")
        if (out / "progress").exists():  # the call that finished it was killed as it tidied up
            (out / "progress").rmtree()
    else:
        accounts = _write_missing(packing, workers, max_bad_fraction, display)
        with storage_errors(str(out)):
            result = _finish(packing, accounts, settings)
        display.log(f"packed in {time.monotonic() - started:.1f} s")
    display.log(_summary(result))
    if result["skipped"]:
        display.log(f"the images skipped are listed in {out / 'skipped.txt'}")
    return {"name": f"tfds:{out}", **result}


def _absolute(source_name: str) -> str:
    """The name with a local path made absolute, so that the place a command is called from makes no difference."""
    kind, _, place = source_name.partition(":")
    if kind in ("folder", "arrays", "idx") and place and "://" not in place:
        return f"{kind}:{Path(place).expanduser().resolve()}"
    return source_name


def _open_splits(source_name: str, display: Display) -> dict[str, Source]:
    """Both splits of a source, or `train` alone; generated scenes as many and as large as a configuration has by default."""
    sources = {}
    for split, size in (("train", 20_000), ("test", 4_000)):
        try:
            sources[split] = open_source(source_name, split, size=size, seed=0)
        except NoSplit as error:
            if split == "train":
                raise
            display.log(f"no test split: {error}")
    for source in sources.values():
        if isinstance(source, ArraySource) and source.images.ndim == 4 and source.images.shape[-1] not in (1, 3):
            raise DataError(f"{source_name}: images of 1 or 3 channels can be packed, these have {source.images.shape[-1]}")
    return sources


def _title(folder_name: str) -> str:
    """A name for the data set that TFDS takes: letters, digits and underscores, a letter first."""
    title = re.sub(r"\W", "_", folder_name, flags=re.ASCII)
    return title if re.match("[a-zA-Z]", title) else f"data_{title}"


def _features(sources: Mapping[str, Source], display: Display):
    """TFDS's description of an example."""
    import tensorflow_datasets as tfds

    first, *others = sources.values()
    tasks = [task for task in first.classes if all(task in other.classes for other in others)]
    for task in first.classes.keys() - tasks:
        display.log(f"the test split has no labels for {task!r}: these are left out")
    grey = isinstance(first, ArraySource) and (first.images.ndim == 3 or first.images.shape[-1] == 1)
    labels = {}
    for task in tasks:
        if task in first.class_names:
            labels[task] = tfds.features.ClassLabel(names=[printable(name) for name in first.class_names[task]])
        else:
            labels[task] = tfds.features.ClassLabel(num_classes=max(source.classes[task] for source in sources.values()))
    image = tfds.features.Image(shape=(None, None, 1 if grey else 3))
    return tfds.features.FeaturesDict({"image": image, "file": tfds.features.Text(), **labels})


def _digest(sources: Mapping[str, Source]) -> str:
    """A hash of what is to be packed: the files' names, or the pixels where these are in memory, and the labels."""
    digest = hashlib.blake2b(digest_size=16)
    for split, source in sources.items():
        digest.update(f"{split} {len(source)} {sorted(source.classes.items())}\n".encode())
        if isinstance(source, ArraySource):
            digest.update(np.ascontiguousarray(source.images))
        for file in getattr(source, "files", ()):
            digest.update(file.encode("utf-8", "surrogateescape") + b"\0")
        for task, labels in sorted(getattr(source, "labels", {}).items()):
            digest.update(task.encode() + np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()


def _begin(out: epath.Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Makes the folder, or checks that it was begun with the same settings; returns what its prepare.json says."""
    path = out / "prepare.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(not child.name.startswith(".") for child in out.iterdir())):
            raise DataError(f"{out} is there already, and was not made by prepare: choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=2))
    try:
        begun = json.loads(path.read_text())
        changed = [name for name, value in settings.items() if begun.get(name, value) != value]
        compared = "contents" in begun and (
            begun["source"] != settings["source"] or begun.get("result", {}).get("skipped") == 0
        )
        changed = [name for name in changed if name != ("source" if compared else "contents")]  # else damaged files were mended
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: remove {out}, or choose another folder") from error
    others = [name for name in changed if name not in ("listing", "contents")]
    if changed and not others:
        raise DataError(
            f"the files or labels of {settings['source']} are not those of {begun['source']} that {out} was begun with: choose "
            "another folder, or remove it"
        )
    if changed:
        before, now = (", ".join(f"{name} {these[name]}" for name in others) for these in (begun, settings))
        raise DataError(f"{out} was begun with {before}, not {now}: choose another folder, or remove it")
    return begun


def _divide(split: str, examples: int) -> list[Shard]:
    count = min(_MAX_SHARDS, max(1, round(examples / _SHARD_IMAGES)))
    bounds = [examples * i // count for i in range(count + 1)]
    return [Shard(split, i, count, bounds[i], bounds[i + 1]) for i in range(count)]


def _finished(packing: Packing, shards: Sequence[Shard]) -> dict[Shard, Account]:
    """The accounts of the shards that earlier calls have finished."""
    accounted, written = _names(packing.out / "progress"), _names(packing.folder)
    done = [s for s in shards if packing.account(s).name in accounted and packing.path(s).name in written]
    with futures.ThreadPoolExecutor(16) as pool:  # object stores take their time for each file
        return dict(zip(done, pool.map(lambda shard: json.loads(packing.account(shard).read_text()), done), strict=True))


def _names(folder: epath.Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()  # object stores have no empty folders


def _write_missing(packing: Packing, workers: int, max_bad_fraction: float, display: Display) -> dict[Shard, Account]:
    """Writes the shards that earlier calls have not finished; returns the accounts of all, in order."""
    shards = [shard for split, source in packing.sources.items() for shard in _divide(split, len(source))]
    with storage_errors(str(packing.out)):
        for folder in (packing.folder, packing.out / "progress"):
            folder.mkdir(parents=True, exist_ok=True)
        accounts = _finished(packing, shards)
    if accounts:
        display.log(f"continuing: {len(accounts)} of {len(shards)} shards are finished")
    try:
        write_shards(packing, shards, accounts, workers, max_bad_fraction, display)
    except DataError:  # too many unreadable images: when these have been seen to, the next call is to read them again
        for shard, account in accounts.items():
            if account["skipped"]:
                packing.account(shard).unlink()
        if _list_skipped(packing, accounts):
            display.log(f"the unreadable images found so far are listed in {packing.out / 'skipped.txt'}")
        raise
    return {shard: accounts[shard] for shard in shards}


def _finish(packing: Packing, accounts: Mapping[Shard, Account], settings: dict[str, Any]) -> dict[str, Any]:
    """Writes what belongs to the data set as a whole. Lists no folder of an object store: listings there may be outdated."""
    if "://" not in str(packing.folder):
        for path in packing.folder.glob(".*"):  # of processes that were killed
            path.unlink(missing_ok=True)
    skipped = _list_skipped(packing, accounts)
    _write_metadata(packing, accounts)
    images = dict.fromkeys(packing.sources, 0)
    for shard, account in accounts.items():
        images[shard.split] += account["images"]
    size = sum(account["bytes"] for account in accounts.values())
    result = {"images": images, "bytes": size, "skipped": skipped}
    write_whole(packing.out / "prepare.json", json.dumps({**settings, "result": result}, indent=2))
    (packing.out / "progress").rmtree()
    return result


def _list_skipped(packing: Packing, accounts: Mapping[Shard, Account]) -> int:
    """Lists the skipped images in skipped.txt, if there are any; returns how many."""
    path = packing.out / "skipped.txt"
    skipped = [(shard.split, *file) for shard, account in accounts.items() for file in account["skipped"]]
    if skipped:
        write_whole(path, "".join("\t".join(line) + "\n" for line in sorted(skipped)))
    elif path.exists():
        path.unlink()
    return len(skipped)


def _write_metadata(packing: Packing, accounts: Mapping[Shard, Account]) -> None:
    import tensorflow_datasets as tfds

    infos = []
    for split in packing.sources:
        of_split = [account for shard, account in accounts.items() if shard.split == split]
        template = tfds.core.ShardedFileTemplate(
            dataset_name=packing.title, split=split, filetype_suffix="array_record", data_dir=packing.folder
        )
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[account["images"] for account in of_split],
            num_bytes=sum(account["bytes"] for account in of_split),
            filename_template=template,
        )
        infos.append(info)
    version = tfds.core.Version(VERSION)
    identity = tfds.core.DatasetIdentity(name=packing.title, version=version, data_dir=str(packing.folder), module_name="")
    info = tfds.core.DatasetInfo(builder=identity, features=packing.features)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(infos))
    info.write_to_directory(packing.folder)


def _summary(result: dict[str, Any]) -> str:
    images = " and ".join(f"{count} {split}" for split, count in result["images"].items())
    return f"{images} images, {result['bytes'] / 1e6:.1f} MB, {result['skipped']} skipped"
