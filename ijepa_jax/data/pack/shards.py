"""The shards of a packed data set: examples of a source checked, made small, encoded, and written as ArrayRecord files."""

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from ijepa_jax.data import images
from ijepa_jax.data.pipeline import permute
from ijepa_jax.data.source import Source, printable, storage_errors
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import unfinished, write_whole

VERSION = "1.0.0"
Account = dict[str, Any]  # of a finished shard, see write_shard


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write: the examples at the positions `start` to `stop` of a split's fixed random order."""

    split: str
    index: int
    count: int  # shards of the split
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Packing:
    """What is packed, how, and where to. Can be pickled for worker processes."""

    sources: Mapping[str, Source]
    out: epath.Path
    title: str  # TFDS's name of the data set
    features: Any  # tfds.features.FeaturesDict
    short_side: int  # pixels; 0: images of any size stay as they are
    quality: int

    @property
    def folder(self) -> epath.Path:
        """Where the shards and TFDS's metadata go."""
        return self.out / VERSION

    def path(self, shard: Shard) -> epath.Path:
        """The shard's file, named as TFDS does."""
        return self.folder / f"{self.title}-{shard.split}.array_record-{shard.index:05}-of-{shard.count:05}"

    def account(self, shard: Shard) -> epath.Path:
        """The file that says that the shard is finished, and what it holds."""
        return self.out / "progress" / f"{shard.split}-{shard.index:05}.json"


class Cancelled(Exception):
    """The shard was given up because the program was asked to stop."""


def write_shard(packing: Packing, shard: Shard, report: Callable[[int], None], stopping: Callable[[], bool]) -> Account:
    """Writes a shard and then its account, which is returned.

    The account holds `images` and `bytes` written and the `skipped`, a list of [file, reason]. `report` is called with how
    many examples are done. Raises OSError if the shard cannot be written, and `Cancelled`.
    """
    from array_record.python import array_record_module

    path = packing.path(shard)
    try:
        with _local(path) as place:
            # For random access; images are compressed already.
            writer = array_record_module.ArrayRecordWriter(str(place), "group_size:1,uncompressed")
            try:
                account = _write_records(writer.write, packing, shard, report, stopping)
            finally:
                writer.close()
    except RuntimeError as error:
        raise OSError(f"cannot write {path}: {one_line(error)}") from error
    with storage_errors(str(path)):
        write_whole(packing.account(shard), json.dumps(account))
    return account


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[Path]:
    """A place on this machine to write a shard to, which is there as a whole or not at all: array_record writes no other."""
    if "://" not in str(path):
        with unfinished(path) as place:
            yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield (place := Path(folder, path.name))
        with storage_errors(str(path)), place.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 16 << 20)


def _write_records(
    write: Callable[[bytes], None], packing: Packing, shard: Shard, report: Callable[[int], None], stopping: Callable[[], bool]
) -> Account:
    source = packing.sources[shard.split]
    size, skipped = 0, []
    rows = permute(np.arange(shard.start, shard.stop), len(source), seed=0, epoch=0)
    for done, row in enumerate(rows.tolist()):
        if stopping():
            raise Cancelled
        report(done)
        try:
            example = _example(packing, source, row)
        except (images.BadImage, OSError) as error:
            skipped.append([printable(_file(source, row)), printable(one_line(error))])
        else:
            record = _serialize(packing.features, example)
            size += len(record)
            write(record)
    report(len(rows))
    return {"images": len(rows) - len(skipped), "bytes": size, "skipped": skipped}


def _example(packing: Packing, source: Source, row: int) -> dict[str, Any]:
    image = encode(source[row], packing.short_side, packing.quality)
    labels = source.labels_at(np.array([row]))
    tasks = {task: int(labels[task][0]) for task in labels if task in packing.features}
    return {"image": image, "file": source.file(row).encode("utf-8", "surrogateescape"), **tasks}


def _serialize(features, example: dict[str, Any]) -> bytes:
    """A TFDS record; one example has one only, while protobuf leaves the order of features to chance unless it is told."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(features.serialize_example(example)).SerializeToString(deterministic=True)


def _file(source: Source, row: int) -> str:
    try:
        return source.file(row)
    except OSError:
        return source.name(row)


def encode(data: bytes | np.ndarray, short_side: int, quality: int) -> bytes:
    """The encoded image to store for an encoded image or pixels (uint8 [H, W] or [H, W, C], C is 1 or 3).

    Images whose short side has at most `short_side` pixels keep theirs: upright JPEG files (grey or RGB), PNG and WebP files
    stay as they are, byte for byte, and pixels become PNG. All else becomes an upright JPEG at `quality`, with 4:2:0
    chroma, as photographs mostly have it and as is fastest to decode. Larger images are resized to the short side by Lanczos's
    filter, the sharpest of Pillow's: training resamples once more, and softly. Images are never enlarged.

    Raises `BadImage` for what cannot be decoded.
    """
    is_file = isinstance(data, bytes)
    pixels = images.decode(data, 3 if is_file else _channels(data))
    small = not short_side or min(pixels.shape[:2]) <= short_side
    if is_file and small and _stays(data):
        return data
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    encoded = io.BytesIO()
    if not is_file and small:
        image.save(encoded, "PNG")
        return encoded.getvalue()
    if not small:
        shrunk = [max(1, round(side * short_side / min(image.size))) for side in image.size]
        image = image.resize(shrunk, Image.Resampling.LANCZOS)
    image.save(encoded, "JPEG", quality=quality, subsampling="4:2:0")
    return encoded.getvalue()


def _channels(pixels: np.ndarray) -> int:
    return 1 if pixels.ndim == 2 else pixels.shape[-1]


def _stays(data: bytes) -> bool:
    """Whether a decodable file is upright, and of a kind that any reader of images takes as it is."""
    with Image.open(io.BytesIO(data)) as image:
        kept = image.format in ("PNG", "WEBP") or (image.format == "JPEG" and image.mode in ("L", "RGB"))
        return images.is_upright(image) and kept and not image.has_transparency_data
