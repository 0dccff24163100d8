"""Prepared TFDS data sets as sources: random access to ArrayRecord files, without TensorFlow and without a builder's code.

array_record keeps one open file for each shard it has read from, checks every record against a hash, and reads local files
and gs://. It raises RuntimeError for whatever goes wrong, and gives an empty record for a shard cut off after its first 64 KiB.
"""

import hashlib
import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from ijepa_jax.data import clevr
from ijepa_jax.data.source import DataError, NoSplit, hashed, storage_errors
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import file_state

_HELD_OUT = ("val", "validation", "test")  # in this order: a `test` beside a `val` often has no labels
_FILE_FEATURES = ("file", "file_name", "filename")
_SPARE_FILES = 128  # open files that are none of a data set's shards
_CHECKS_AT_ONCE = 16
_RECORDS_SEEN = 16


class TfdsSource:
    """The images of a prepared TFDS split as they were encoded, straight from its ArrayRecord files.

    Tasks are the ClassLabel features, but for CLEVR those of `clevr.labels`.
    Raises `DataError` for a split that is not there and for shards that are missing or damaged.
    """

    def __init__(self, builder, split: str, title: str):
        import tensorflow_datasets as tfds

        features = builder.info.features
        kinds = {key: type(feature).__name__ for key, feature in features.items()}
        images = [key for key, kind in kinds.items() if kind == "Image"]
        if not images:
            raise DataError(f"{title} has no image feature among {', '.join(kinds)}")
        self._title = f"{title} {split}"
        self._split = split
        self._image = "image" if "image" in images else images[0]
        self._file = next((key for key in _FILE_FEATURES if kinds.get(key) == "Text"), None)
        labels = [key for key, kind in kinds.items() if kind == "ClassLabel" and features[key].num_classes]
        self.class_names = {key: features[key].names for key in labels}
        wanted = [self._image, *labels, *([self._file] if self._file else [])]
        self._is_clevr = clevr.holds_objects(builder.name, features)
        if self._is_clevr:
            self.class_names = clevr.CLASS_NAMES
        self.classes = {key: len(names) for key, names in self.class_names.items()}
        self._features = tfds.features.FeaturesDict({key: features[key] for key in wanted})
        self._decoders = {self._image: tfds.decode.SkipDecoding()}
        try:
            shards = builder.info.splits[split].file_instructions
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(split, deserialize_method=raw) if shards else []
        except (KeyError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).strip("'\"").split()).rstrip(".")
            raise DataError(f"{self._title} cannot be read: {reason}. It has {_sizes(builder)}") from error
        if not shards:
            raise DataError(f"{self._title} holds no images: it has {_sizes(builder)}")
        _check_shards(shards, self._title)
        self._full_name = builder.info.full_name
        self._shards = [str(shard.filename) for shard in shards]
        self._skips = [shard.skip for shard in shards]
        self._ends = np.cumsum([shard.take for shard in shards])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        return self._read(index, self._parse_image)

    def labels_at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the records of these rows alone: those of a whole split can be hundreds of gigabytes.

        Raises OSError where a record cannot be read, and `DataError` where it is not as CLEVR's are.
        """
        records = [self._labels(int(row)) for row in rows]
        return {task: np.array([record[task] for record in records], np.int64) for task in self.classes}

    def _labels(self, index: int) -> Mapping[str, Any]:
        if not self._is_clevr:
            return self._read(index, self._parse)
        coordinates = self._read(index, clevr.pixel_coords)
        try:
            return clevr.labels(coordinates)
        except ValueError as error:
            raise DataError(f"{self.name(index)}: {error}") from error

    def fingerprint(self) -> str:
        """Of the data set's name and version, and of the part, length and time of change of each shard file."""
        with storage_errors(self._shards[0]), futures.ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
            states = list(pool.map(file_state, self._shards))
        lines = [f"{self._full_name} {sorted(self.classes.items())}"]
        for shard, skip, end, state in zip(self._shards, self._skips, self._ends, states, strict=True):
            lines.append(f"{epath.Path(shard).name} {skip} {end} {state}")
        return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def contents(self) -> dict[str, str]:
        parts = hashed(f"{skip} {end}\n" for skip, end in zip(self._skips, self._ends, strict=True))
        return {"parts": parts, "records": hashed(map(self._seen, _spread(len(self))))}

    def _seen(self, index: int) -> bytes:
        try:
            return self[index]
        except OSError:
            return b"unreadable"

    def name(self, index: int) -> str:
        """With the file that the image was made from, where the records tell."""
        try:
            file = self._file_of(index)
        except OSError:
            file = None
        return f"{self._title} image {index}{f' ({file})' if file else ''}"

    def file(self, index: int) -> str:
        return self._file_of(index) or f"{self._split} image {index}"

    def _file_of(self, index: int) -> str | None:
        return self._read(index, self._parse)[self._file].decode("utf-8", "backslashreplace") if self._file else None

    def _parse(self, record: bytes) -> dict[str, Any]:
        """All features, the image undecoded."""
        return self._features.deserialize_example_np(record, decoders=self._decoders)

    def _parse_image(self, record: bytes) -> bytes:
        """The image alone: training reads nothing else, and TFDS's own way takes twice as long, with the interpreter's lock."""
        return tf_example_pb2.Example.FromString(record).features.feature[self._image].bytes_list.value[0]

    def _read(self, index: int, parse: Callable[[bytes], Any]) -> Any:
        """What `parse` makes of a record. Raises OSError if it cannot be read."""
        try:
            record = self._records[index]
            if not record:
                raise ValueError("the record is empty")
            return parse(record)
        except Exception as error:  # RuntimeError from array_record, and whatever TFDS meets in a record that is none
            shard = self._shards[min(int(np.searchsorted(self._ends, index, side="right")), len(self._shards) - 1)]
            reason = one_line(error)
            raise OSError(f"cannot read {self._title} image {index} from {shard}: {reason}") from error


def _spread(count: int) -> range:
    """Some places among so many: shards are padded, so that lengths tell little."""
    return range(0, count, max(1, count // _RECORDS_SEEN))


def open_tfds(place: str, split: str, directory: str) -> TfdsSource:
    """The source of `tfds:PLACE`, see `open.open_source`."""
    where, explicit = _split_off(place)
    folder = _find_prepared(where, directory)
    builder = _builder(folder, f"tfds:{where}")
    splits = builder.info.splits
    present = [part for part in ("train", *_HELD_OUT) if part in splits and splits[part].num_examples]
    held_out = next((part for part in present if part != "train"), None)
    if explicit and held_out and (shared := _shared(builder, explicit, held_out)):
        raise DataError(
            f"tfds:{place}: {shared} of its images are in the split {held_out}, which probes are tested on: name a part "
            f"without them. It has {_sizes(builder)}"
        )
    if explicit and split == "train":
        chosen = explicit
    elif held_out and (split == "test" or "train" in present):
        chosen = held_out if split == "test" else "train"
    elif present == ["train"] and not explicit:
        chosen = "train[:90%]" if split == "train" else "train[90%:]"
    else:
        raise NoSplit(f"tfds:{place} has no {split} split: it has {_sizes(builder)}")
    return TfdsSource(builder, chosen, f"tfds:{where}")


def _shared(builder, part: str, held_out: str) -> int:
    """How many images two parts of a data set share; 0 for a part that there is not, which opening it will name."""
    try:
        one, other = (
            [(i.filename, i.skip, i.take) for i in builder.info.splits[name].file_instructions] for name in (part, held_out)
        )
    except (KeyError, ValueError, NotImplementedError):
        return 0
    return sum(
        max(0, min(skip + take, begin + count) - max(skip, begin))
        for file, skip, take in one
        for shard, begin, count in other
        if file == shard
    )


def _split_off(place: str) -> tuple[str, str]:
    """Divides WHERE[:SPLIT] at the last colon that is neither in brackets nor of a scheme."""
    depth, colon = 0, len(place)
    for i, character in enumerate(place):
        depth += (character == "[") - (character == "]")
        if character == ":" and depth == 0 and place[i : i + 3] != "://":
            colon = i
    return place[:colon], place[colon + 1 :]


def _find_prepared(where: str, directory: str) -> epath.Path:
    """The folder of a data set's newest prepared version, from its path or its NAME[/CONFIG][/VERSION] in `directory`."""
    is_path = where.startswith(("/", "~", "./", "../")) or where in (".", "..") or "://" in where
    root = epath.Path(where) if is_path else epath.Path(directory) / where
    if "://" in str(root) and not str(root).startswith("gs://"):
        raise DataError(
            f"tfds:{where}: {root} cannot be read, as array_record reads local files and gs:// alone: mount the bucket, or "
            "copy the folder to a local disk or to gs://"
        )
    root = root.expanduser()
    found = _newest(root) or (None if is_path else _newest(epath.Path(where)))
    if found is not None:
        return found
    children = sorted(child for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
    configs = [child.name for child in children if _newest(child)]
    if configs:
        raise DataError(f"tfds:{where} has several configurations, name one: {', '.join(f'tfds:{where}/{c}' for c in configs)}")
    if any((place / "prepare.json").exists() for place in (root, epath.Path(where))):
        raise DataError(f"tfds:{where} is not packed to the end: run the `launch.py prepare` that began it again")
    if is_path:
        problem = "no prepared data set there, as it holds no dataset_info.json" if root.is_dir() else "no such folder"
        problem += ": --config.data.name tells where data are"
        raise DataError(f"tfds:{where}: {problem}")
    raise DataError(
        f"tfds:{where} is not prepared in {directory}: where TensorFlow is installed, run once "
        f"`tfds build {where} --data_dir {directory} --file_format array_record`; or pack a folder of images by `python "
        "launch.py prepare --from folder:PATH --out DIR` and give --config.data.name=tfds:DIR, or folder:PATH as it is"
    )


def _newest(root: epath.Path) -> epath.Path | None:
    """`root`, if it is a prepared version, or else the newest version in it."""
    if (root / "dataset_info.json").exists():
        return root
    children = [child for child in root.iterdir() if child.is_dir()] if root.is_dir() else []
    versions = [child for child in children if (child / "dataset_info.json").exists()]
    return max(
        versions, key=lambda child: [int(part) if part.isdigit() else -1 for part in child.name.split(".")], default=None
    )


def _builder(folder: epath.Path, title: str):
    """TFDS's read-only builder of a prepared version."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
    except Exception as error:  # JSON's and protobuf's errors and TFDS's own
        reason = one_line(error)
        raise DataError(f"{title}: the metadata in {folder} cannot be read: {reason}") from error
    if "array_record" not in formats:
        raise DataError(
            f"{title} is prepared as {' and '.join(sorted(formats))}, which has no random access: where TensorFlow is "
            f"installed, run once `tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record`"
        )
    return tfds.builder_from_directory(folder, file_format="array_record")


def _sizes(builder) -> str:
    return ", ".join(f"{name} with {info.num_examples} images" for name, info in builder.info.splits.items()) or "no splits"


def _check_shards(shards: Sequence[Any], title: str) -> None:
    """Raises DataError unless all shards are there and, where they are local, whole."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and len(shards) + _SPARE_FILES > soft:
        raise DataError(
            f"{title} has {len(shards)} shards, and this process may only have {soft} files open: raise that, for instance by "
            f"`ulimit -n {len(shards) + 1024}` (the most possible is {hard})"
        )
    files = [epath.Path(shard.filename) for shard in shards]
    present = {file.name for folder in {file.parent for file in files} for file in folder.iterdir()}
    missing = [file for file in files if file.name not in present]
    if missing:
        raise DataError(f"{title}: {len(missing)} of its {len(files)} shards are missing, for example {missing[0]}")
    if "://" in str(files[0]):  # opening one there reads a megabyte
        return
    with futures.ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
        damaged = [problem for problem in pool.map(_damage, shards) if problem]
    if damaged:
        raise DataError(f"{title}: {len(damaged)} of its {len(files)} shards are damaged, for example {damaged[0]}")


def _damage(shard: Any) -> str:
    """What is wrong with a shard file, from its footer; empty if nothing is."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(
        str(shard.filename), "readahead_buffer_size:0", file_reader_buffer_size=32768
    )
    try:
        whole, records = reader.ok(), reader.num_records()
        reader.close()
    except RuntimeError as error:
        return f"{shard.filename}: {one_line(error) if str(error) else 'it was cut off'}"
    if whole and records == shard.examples_in_shard:
        return ""
    return f"{shard.filename}: {records} records, expected {shard.examples_in_shard}"
