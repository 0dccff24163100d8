"""Prepared TFDS data sets give back every pixel, from every way to name them; damage gets one clear line or one bad example."""

import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ijepa_jax.data import images
from ijepa_jax.data import source as sources
from ijepa_jax.data.open import open_source
from tests import object_store

PIXELS = {split: np.random.default_rng(n).integers(0, 256, (n, 6, 7, 3), np.uint8) for split, n in (("train", 20), ("test", 5))}
SHARD = "tiny-train.array_record-00000-of-00001"


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Written without TensorFlow; every label tells which image it is of, as TFDS shuffles."""

    VERSION = tfds.core.Version("1.2.0")
    name = "tiny"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 7, 3)),
            "label": tfds.features.ClassLabel(names=[f"number {i}" for i in range(25)]),
            "file_name": tfds.features.Text(),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in PIXELS}

    def _generate_examples(self, split):
        for i, image in enumerate(PIXELS[split]):
            encoded = io.BytesIO()  # pixels as such would be encoded by TensorFlow
            Image.fromarray(image).save(encoded, "PNG")
            encoded.seek(0)
            yield i, {"image": encoded, "label": i, "file_name": f"{i}.png", "boxes": []}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=str(directory), file_format="array_record").download_and_prepare()
    return directory


@pytest.fixture
def directory(written, tmp_path) -> Path:
    """A copy of its own for a test that damages it."""
    return Path(shutil.copytree(written, tmp_path / "tfds"))


def _open(name: str, split: str = "train", directory: Path | None = None):
    return open_source(name, split, size=0, seed=0, directory=directory and str(directory))


def _refused(name: str, match: str, split: str = "train", directory: Path | None = None) -> None:
    with pytest.raises(sources.DataError, match=match) as caught:
        _open(name, split, directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "part", "count"),
    [
        ("tfds:tiny", "train", "train", 20),
        ("tfds:tiny/1.2.0", "test", "test", 5),
        ("tfds:tiny:train[:25%]", "train", "train", 5),
        ("tfds:tiny:train[4:]", "test", "test", 5),
        ("tfds:tiny:train[:2]+train[-3:]", "train", "train", 5),
        ("tfds:HERE/tiny", "train", "train", 20),
        ("tfds:HERE/tiny:train[10:]", "train", "train", 10),
        ("tfds:HERE/tiny/1.2.0:train[:10%]", "train", "train", 2),
        ("tfds:./tiny", "test", "test", 5),
        ("tfds:../HERE_NAME/tiny", "test", "test", 5),
    ],
)
def test_every_pixel_and_label_comes_back(written, monkeypatch, name, split, part, count):
    monkeypatch.chdir(written)
    name = name.replace("HERE_NAME", written.name).replace("HERE", str(written))
    source = _open(name, split, written)
    rows = np.arange(len(source))
    labels = source.labels_at(rows)["label"]
    assert len(source) == len(set(labels.tolist())) == count and source.classes == {"label": 25}
    assert source.class_names["label"][7] == "number 7"
    for i in rows.tolist():
        assert isinstance(source[i], bytes)
        np.testing.assert_array_equal(images.decode(source[i], 3), PIXELS[part][labels[i]])
        assert source.file(i) == f"{labels[i]}.png" and source.file(i) in source.name(i) and "tiny" in source.name(i)


def test_a_relative_folder_is_found_where_no_data_set_has_the_name(written, monkeypatch, tmp_path):
    monkeypatch.chdir(written.parent)
    assert len(_open(f"tfds:{written.name}/tiny", "train", tmp_path)) == 20


def test_fresh_and_used_sources_can_be_pickled_and_shared_by_threads(written):
    source = _open("tfds:tiny", "train", written)
    fresh = pickle.loads(pickle.dumps(source))
    first = [source[i] for i in range(20)]
    used = pickle.loads(pickle.dumps(source))
    with futures.ThreadPoolExecutor(4) as pool:
        for other in (fresh, used, source):
            assert list(pool.map(other.__getitem__, list(range(20)) * 5)) == first * 5


@pytest.mark.parametrize(("part", "shared"), [("test", 5), ("train+test", 5), ("all", 5), ("train[:1]+test[3:]", 2)])
def test_a_training_split_with_test_images_is_refused(written, part, shared):
    for split in ("train", "test"):
        _refused(
            f"tfds:tiny:{part}",
            f"{shared} of its images are in the split test, .*: name a part without",
            split,
            directory=written,
        )


def test_names_that_lead_nowhere(written, tmp_path):
    _refused("tfds:absent", "not prepared in .*: .* `tfds build absent --data_dir", directory=written)
    _refused(f"tfds:{tmp_path}/absent", "absent: no such folder")
    _refused(f"tfds:{tmp_path}:train[:1%]", "no prepared data set there")
    _refused(f"tfds:{written}", "name one: tfds:.*/tiny")
    config = tmp_path / "many" / "small" / "1.0.0"
    config.mkdir(parents=True)
    (config / "dataset_info.json").write_text("{}")
    _refused("tfds:many", "name one: tfds:many/small", directory=tmp_path)
    _refused("tfds:many/small", "metadata in .* cannot be read", directory=tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "prepare.json").write_text("{}")
    _refused(f"tfds:{tmp_path}/half", "not packed to the end")
    _refused("tfds:s3://bucket/tiny:train[:1%]", "array_record reads local files and gs:// alone: mount the bucket, or copy")
    _refused("tfds:tiny", "s3://bucket/tiny cannot be read", directory="s3://bucket")


@pytest.mark.parametrize(
    ("split", "match"),
    [
        ("trian", "trian.* It has train with 20 images, test with 5 images"),
        ("train[:1%", r"train\[:1%.* It has train"),
        ("train[a:b]", r"train\[a:b\]"),
        ("train[:200%]", "200%"),
        ("train[:1%]", "holds no images"),
        ("train[30:]", "incompatible with 20 examples"),
    ],
)
def test_splits_that_are_none(written, split, match):
    _refused(f"tfds:tiny:{split}", match, directory=written)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: None, "1 of its 1 shards are missing"),
        (lambda data: b"", "at least 64KB"),
        (lambda data: data[:65536], "cut off"),  # which array_record reads as empty records
        (lambda data: data[:-1], "are damaged"),
        (lambda data: data[: len(data) // 2], "are damaged"),
        (lambda data: bytes(len(data)), "are damaged"),
    ],
)
def test_damaged_shards_are_found_when_the_data_set_is_opened(directory, damage, match):
    shard = directory / "tiny" / "1.2.0" / SHARD
    data = damage(shard.read_bytes())
    shard.unlink()
    if data is not None:
        shard.write_bytes(data)
    _refused("tfds:tiny", f"tfds:tiny train: .*{match}", directory=directory)
    _refused("tfds:tiny", SHARD, directory=directory)
    assert len(_open("tfds:tiny", "test", directory)) == 5


def test_a_shard_of_another_data_set_is_found(directory):
    folder = directory / "tiny" / "1.2.0"
    shutil.copy(folder / SHARD.replace("train", "test"), folder / SHARD)
    _refused("tfds:tiny", "5 records, expected 20", directory=directory)


def test_a_damaged_record_is_one_unreadable_example(directory):
    shard = directory / "tiny" / "1.2.0" / SHARD
    data = bytearray(shard.read_bytes())
    data[data.find(b"IHDR", 200) + 20] ^= 1
    shard.write_bytes(data)
    source = _open("tfds:tiny", "train", directory)
    bad = []
    for i in range(20):
        try:
            source[i]
        except OSError as error:
            bad.append(i)
            assert f"tfds:tiny train image {i} from" in str(error) and SHARD in str(error)
    assert len(bad) == 1 and source.name(bad[0]) == f"tfds:tiny train image {bad[0]}"


def test_a_shard_cut_off_while_it_is_used_gives_unreadable_examples(directory):
    source = _open("tfds:tiny", "train", directory)
    os.truncate(directory / "tiny" / "1.2.0" / SHARD, 65536)
    with pytest.raises(OSError, match="train image 3 from .*: the record is empty"):
        source[3]
    assert source.name(3) == "tfds:tiny train image 3"


def test_other_file_formats_and_damaged_metadata(directory):
    path = directory / "tiny" / "1.2.0" / "dataset_info.json"
    text = path.read_text()
    path.write_text(text.replace('"array_record"', '"tfrecord"'))
    _refused("tfds:tiny", "prepared as tfrecord, .* `tfds convert_format --dataset_version_dir=", directory=directory)
    path.write_text(text[:40])
    _refused("tfds:tiny", "tfds:tiny: the metadata in .* cannot be read", directory=directory)
    path.write_text(text)
    (path.parent / "features.json").unlink()
    _refused("tfds:tiny", "tfds:tiny: the metadata in .* cannot be read", directory=directory)


def test_too_low_a_limit_on_open_files_is_named(written, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (128, 4096))
    _refused("tfds:tiny", "1 shards, and this process may only have 128 files open: .* `ulimit -n 1025`", directory=written)


def test_fingerprints_are_of_the_part_and_its_shards(written, directory):
    first = _open("tfds:tiny", "train", written).fingerprint()
    assert (
        first == _open(f"tfds:{written}/tiny").fingerprint() == _open("tfds:tiny:train[:100%]", "train", written).fingerprint()
    )
    assert first == _open("tfds:tiny", "train", directory).fingerprint()  # a copy that has the times
    assert first == pickle.loads(pickle.dumps(_open("tfds:tiny", "train", written))).fingerprint()
    parts = ["train[:5]", "train[5:10]", "train[:6]", "train[6:]", "train[:5]+train[6:]"]
    others = [_open(f"tfds:tiny:{part}", "train", written).fingerprint() for part in parts]
    assert len({first, *others}) == 6 and others[0] == _open("tfds:tiny:train[:25%]", "train", written).fingerprint()
    shard = directory / "tiny" / "1.2.0" / SHARD
    source, status = _open("tfds:tiny", "train", directory), shard.stat()
    seen = [first]
    for change in (
        lambda: os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1)),
        lambda: (os.truncate(shard, 65536), os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))),
        lambda: shard.unlink(),
    ):
        change()
        seen.append(source.fingerprint())
        assert source.fingerprint() == seen[-1]
    assert len(set(seen)) == 4
    assert _open("tfds:tiny", "test", directory).fingerprint() == _open("tfds:tiny", "test", written).fingerprint()


def test_fingerprints_agree_between_processes(written):
    script = f"""
from ijepa_jax.data.open import open_source
print(open_source("tfds:{written}/tiny", "train", size=0, seed=0).fingerprint())
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.strip() == _open("tfds:tiny", "train", written).fingerprint(), done.stderr


def test_fingerprints_in_a_bucket(directory, monkeypatch):
    (directory / "tiny").rename(directory / "bucket")
    with object_store.mounted(directory, monkeypatch):
        source = _open("tfds:gs://bucket")
        before = source.fingerprint()
        assert before == _open("tfds:gs://bucket/1.2.0").fingerprint() != _open("tfds:gs://bucket", "test").fingerprint()
        os.utime(directory / "bucket" / "1.2.0" / SHARD, (0, 0))
        assert source.fingerprint() != before
