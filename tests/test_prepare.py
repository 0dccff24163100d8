"""Packing: what is kept and what is made anew, that nothing is lost by stopping it, and that nothing bad goes in unnoticed."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ijepa_jax.data import images
from ijepa_jax.data import source as sources
from ijepa_jax.data.open import open_source
from ijepa_jax.data.pack import pool, prepare, shards
from ijepa_jax.data.pipeline import permute
from tests import object_store

ROOT = Path(__file__).resolve().parent.parent


def _open(name, split="train"):
    return open_source(str(name), split, size=0, seed=0)


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth, so that JPEG changes it little."""
    return Image.fromarray(_pixels(4, 5, 3, seed=seed)).resize((width, height), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _photos(folder: Path, count: int, height: int = 40, width: int = 50) -> None:
    for i in range(count):
        _save(folder / f"class{i * 3 // count}" / f"{i:04}.jpg", _encoded(_photo(height, width, i), "JPEG"))


def _contents(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _by_file(name, split="train") -> dict[str, bytes]:
    source = _open(name, split)
    return {source.file(i): source[i] for i in range(len(source))}


def _refused(match: str, *arguments, **options) -> None:
    with pytest.raises(sources.DataError, match=match) as caught:
        prepare.prepare(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_IMAGES", 20)


def _first(fashion_mnist: Path, folder: Path, count: int) -> Path:
    """A folder with the first images and labels of both splits."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = _open(f"idx:{fashion_mnist}", split)
        _save(folder / f"{prefix}-images-idx3-ubyte", _idx(source.images[:count]))
        _save(folder / f"{prefix}-labels-idx1-ubyte", _idx(source.labels["label"][:count].astype(np.uint8)))
    return folder


@pytest.mark.parametrize("first", [2500, pytest.param(0, marks=pytest.mark.slow)])
def test_fashion_mnist_comes_back_pixel_for_pixel(fashion_mnist, tmp_path, first):
    files = _first(fashion_mnist, tmp_path / "idx", first) if first else fashion_mnist
    out = tmp_path / "fashion_mnist"
    result = prepare.prepare(f"idx:{files}", out, workers=0 if first else 2)
    assert result["images"] == {"train": first or 60_000, "test": first or 10_000} and result["skipped"] == 0
    assert result["name"] == f"tfds:{out}"
    for split, count in result["images"].items():
        original, packed = _open(f"idx:{files}", split), _open(f"tfds:{out}", split)
        assert packed.classes == {"label": 10} and len(packed) == count
        rows = permute(np.arange(count), count, seed=0, epoch=0)
        assert all(packed.file(i) == original.file(rows[i]) for i in range(0, count, 100))
        np.testing.assert_array_equal(packed.labels_at(np.arange(count))["label"], original.labels["label"][rows])
        for i, row in enumerate(rows):
            assert (images.decode(packed[i], 1)[..., 0] == original[row]).all()


def test_tfds_itself_reads_the_data_set_by_name_and_by_path(tmp_path):
    _photos(tmp_path / "photos", 30)
    out = tmp_path / "24-my photos"
    prepare.prepare(f"folder:{tmp_path}/photos", out)
    assert sorted(path.name for path in (out / "1.0.0").iterdir()) == [
        "data_24_my_photos-test.array_record-00000-of-00001", "data_24_my_photos-train.array_record-00000-of-00001",
        "dataset_info.json", "features.json", "label.labels.txt",
    ]  # fmt: skip
    builder = tfds.builder_from_directory(out / "1.0.0")
    examples = list(builder.as_data_source("train"))
    by_name = open_source("tfds:24-my photos", "train", size=0, seed=0, directory=str(tmp_path))
    assert len(examples) == len(by_name) == builder.info.splits["train"].num_examples
    assert builder.info.features["label"].names == by_name.class_names["label"] == ["class0", "class1", "class2"]
    for example in examples:
        file = example["file"].decode()
        np.testing.assert_array_equal(example["image"], Image.open(tmp_path / "photos" / file))
        assert file.startswith(f"class{example['label']}/")
    assert "tensorflow" not in sys.modules


def _strange_images() -> dict[str, bytes]:
    """Files that can be read, by whether they are to stay as they are."""
    photo, turned = _photo(40, 50), Image.Exif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(np.arange(0, 60_000, 30, np.uint16).reshape(40, 50))
    return {
        "kept/jpeg.jpg": _encoded(photo, "JPEG"),
        "kept/grey.jpg": _encoded(photo.convert("L"), "JPEG"),
        "kept/sixteen bits.png": _encoded(sixteen, "PNG"),
        "kept/palette.png": _encoded(photo.convert("P"), "PNG"),
        "made anew/transparent.png": _encoded(photo.convert("RGBA"), "PNG"),
        "kept/webp.webp": _encoded(photo, "WEBP"),
        "kept/a png.jpg": _encoded(photo, "PNG"),
        "kept/a jpeg.png": _encoded(photo, "JPEG"),
        "made/cmyk.jpg": _encoded(photo.convert("CMYK"), "JPEG"),
        "made/turned.jpg": _encoded(photo, "JPEG", exif=turned),
        "made/a gif.png": _encoded(photo, "GIF"),
        "made/large.jpg": _encoded(_photo(90, 200), "JPEG"),
        "made/large and turned.jpg": _encoded(_photo(90, 200), "JPEG", exif=turned),
        "made/large.png": _encoded(_photo(130, 60), "PNG"),
    }


def test_every_kind_of_file_is_kept_made_anew_or_skipped_by_name(tmp_path, monkeypatch):
    photo = _encoded(_photo(40, 50), "JPEG")
    bad = {
        "bad/truncated.jpg": photo[: len(photo) // 2],
        "bad/truncated.png": _encoded(_photo(40, 50), "PNG")[:-900],
        "bad/empty.jpg": b"",
        "bad/text.png": b"not an image",
        "bad/removed.jpg": photo,
    }
    good = _strange_images() | {b"kept/caf\xe9.jpg".decode("utf-8", "surrogateescape"): photo}
    for file, data in (good | bad).items():
        _save(tmp_path / "photos" / "train" / file, data)
    _save(tmp_path / "photos" / "val" / "kept" / "1.jpg", photo)
    listed = prepare._open_splits

    def list_and_remove(*arguments):
        found = listed(*arguments)
        (tmp_path / "photos" / "train" / "bad" / "removed.jpg").unlink()
        return found

    monkeypatch.setattr(prepare, "_open_splits", list_and_remove)
    result = prepare.prepare(f"folder:{tmp_path}/photos", tmp_path / "out", short_side=45, max_bad_fraction=0.3)
    assert result["images"] == {"train": len(good), "test": 1} and result["skipped"] == len(bad)
    skipped = [line.split("\t") for line in (tmp_path / "out" / "skipped.txt").read_text().splitlines()]
    assert [(split, file) for split, file, _ in skipped] == [("train", file) for file in sorted(bad)]
    assert "No such file" in dict(line[1:] for line in skipped)["bad/removed.jpg"]

    packed = _by_file(f"tfds:{tmp_path}/out")
    assert set(packed) == {file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for file in good}
    for file, data in packed.items():
        if file.startswith("kept"):
            assert data == good.get(file, photo), file
            continue
        original = images.decode(good[file], 3)
        made = Image.open(io.BytesIO(data))
        height, width = original.shape[:2]
        shrink = min(1, 45 / min(height, width))
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (round(width * shrink), round(height * shrink))), file
        expected = np.asarray(Image.fromarray(original).resize(made.size, Image.Resampling.LANCZOS), np.int16)
        assert abs(np.asarray(made) - expected).mean() < 6, file
        assert not made.getexif()


def test_short_side_zero_keeps_every_size(tmp_path):
    large = _encoded(_photo(900, 1000), "JPEG")
    assert shards.encode(large, 0, 92) == large
    assert Image.open(io.BytesIO(shards.encode(large, 416, 92))).size == (462, 416)
    assert len(shards.encode(large, 416, 30)) < len(shards.encode(large, 416, 92))


@pytest.mark.parametrize("shape", [(60, 9, 12), (60, 9, 12, 1), (60, 9, 12, 3)])
def test_arrays_are_stored_losslessly_unless_they_are_shrunk(tmp_path, shape):
    pixels = _pixels(*shape)
    np.savez(tmp_path / "a.npz", train_images=pixels, train_labels=np.arange(60), test_images=pixels[:9])
    prepare.prepare(f"arrays:{tmp_path}/a.npz", tmp_path / "out")
    packed = _open(f"tfds:{tmp_path}/out")
    assert packed.classes == {}  # as the test images have no labels
    channels = shape[3] if len(shape) == 4 else 1
    for i in range(60):
        row = int(packed.file(i).rpartition(" ")[2])
        np.testing.assert_array_equal(images.decode(packed[i], channels), pixels[row].reshape(9, 12, channels))
    prepare.prepare(f"arrays:{tmp_path}/a.npz", tmp_path / "small", short_side=6)
    assert images.decode(_open(f"tfds:{tmp_path}/small")[0], 3).shape == (6, 8, 3)


def test_arrays_that_no_image_file_holds_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=_pixels(60, 5, 5, 4))
    _refused("1 or 3 channels can be packed, these have 4", f"arrays:{tmp_path}/a.npz", tmp_path / "out")


def test_a_part_is_a_fair_sample_of_sorted_examples(tmp_path):
    labels = np.repeat(np.arange(4), 500)
    np.savez(tmp_path / "a.npz", images=_pixels(2000, 4, 4), labels=labels)
    prepare.prepare(f"arrays:{tmp_path}/a.npz", tmp_path / "out")
    part = _open(f"tfds:{tmp_path}/out:train[:10%]")
    counts = np.bincount(part.labels_at(np.arange(len(part)))["label"], minlength=4)
    assert 170 < len(part) < 190 and counts.min() > 25


def test_a_packed_data_set_can_be_packed_smaller(tmp_path):
    _photos(tmp_path / "photos", 30)
    prepare.prepare(f"folder:{tmp_path}/photos", tmp_path / "large")
    prepare.prepare(f"tfds:{tmp_path}/large", tmp_path / "small", short_side=20)
    large, small = _open(f"tfds:{tmp_path}/large"), _open(f"tfds:{tmp_path}/small")
    assert small.class_names == large.class_names
    assert {small.file(i) for i in range(len(small))} == {large.file(i) for i in range(len(large))}
    assert images.decode(small[0], 3).shape == (20, 25, 3)


def test_all_tasks_of_generated_scenes_are_packed(tmp_path, monkeypatch):
    def few(name, split, *, size, seed):
        return open_source(name, split, size=size // 500, seed=seed, image_size=24)

    monkeypatch.setattr(prepare, "open_source", few)
    assert prepare.prepare("scenes", tmp_path / "out")["images"] == {"train": 40, "test": 8}
    original, packed = few("scenes", "test", size=4000, seed=0), _open(f"tfds:{tmp_path}/out", "test")
    rows = np.array([int(packed.file(i).split()[-1]) for i in range(8)])
    for task, labels in packed.labels_at(np.arange(8)).items():
        np.testing.assert_array_equal(labels, original.labels[task][rows])
    assert set(packed.classes) == {"count", "distance", "shape", "colour"}
    np.testing.assert_array_equal(images.decode(packed[3], 3), original[rows[3]])


def test_a_source_without_a_test_split(tmp_path):
    for stem, array in (("images-idx3", _pixels(50, 7, 5)), ("labels-idx1", np.arange(50, dtype=np.uint8))):
        (tmp_path / f"train-{stem}-ubyte").write_bytes(_idx(array))
    assert prepare.prepare(f"idx:{tmp_path}", tmp_path / "out")["images"] == {"train": 50}
    assert len(_open(f"tfds:{tmp_path}/out")) == 45 and len(_open(f"tfds:{tmp_path}/out", "test")) == 5


def _done(out: Path) -> int:
    return len(list((out / "progress").glob("[!.]*")))


@contextlib.contextmanager
def _once_some_are_done(out: Path, number: int, act):
    """Calls `act` from another thread once `out` has so many finished shards."""

    def watch():
        deadline = time.monotonic() + 60
        while _done(out) < number and time.monotonic() < deadline:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_killed_and_stopped_it_ends_with_the_same_bytes(tmp_path, small_shards):
    _photos(tmp_path / "photos", 400, 300, 400)
    source, whole, out = f"folder:{tmp_path}/photos", tmp_path / "whole" / "packed", tmp_path / "killed" / "packed"
    prepare.prepare(source, whole, short_side=100)
    script = (
        "import sys; from ijepa_jax.data.pack import prepare; prepare._SHARD_IMAGES = 20;"
        "prepare.prepare(*sys.argv[1:], short_side=100, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, source, out], cwd=ROOT, stderr=subprocess.DEVNULL)
    with _once_some_are_done(out, 2, process.kill):
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (out / "1.0.0" / "dataset_info.json").exists()

    def kill_a_worker():
        multiprocessing.active_children()[0].kill()

    for act, workers, match in (
        (kill_a_worker, 2, r"a worker process was killed .*, \d+ of 20 shards are finished"),
        (lambda: signal.raise_signal(signal.SIGTERM), 0, r"stopped by SIGTERM, \d+ of 20 shards are finished"),
    ):
        with _once_some_are_done(out, _done(out) + 2, act), pytest.raises(pool.Stopped, match=match):
            prepare.prepare(source, out, short_side=100, workers=workers)
    finished = {path: path.stat().st_mtime_ns for path in (out / "1.0.0").glob("packed*")}
    assert 4 <= len(finished) < 20
    prepare.prepare(source, out, short_side=100)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # none was written again
    assert _contents(out) == _contents(whole)


def test_other_settings_files_and_folders_are_refused(tmp_path, monkeypatch):
    _photos(tmp_path / "photos", 30)
    source, out = f"folder:{tmp_path}/photos", tmp_path / "out"
    first = prepare.prepare(source, out, short_side=30)
    before, first_file = _contents(out), next((tmp_path / "photos").rglob("*.jpg")).relative_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert prepare.prepare("folder:photos", "out", short_side=30) == first  # finished: nothing is done
    _refused("begun with short_side 30, not short_side 20", source, out, short_side=20)
    _refused("begun with quality 92, not quality 50", source, out, short_side=30, quality=50)
    shutil.copytree(tmp_path / "photos", tmp_path / "others")
    assert prepare.prepare("folder:others", out, short_side=30) == first  # the same images may have moved
    _save(tmp_path / "others" / first_file, b"of the same name")
    _refused(
        "of folder:.*others are not those of folder:.*photos that .*out was begun with", "folder:others", out, short_side=30
    )
    _refused("others is there already, and was not made by prepare", source, tmp_path / "others")
    _save(tmp_path / "photos" / "class0" / "new.jpg", b"")
    _refused("the files or labels of .*photos are not those of", source, out, short_side=30)
    assert _contents(out) == before
    (out / "prepare.json").write_text("{")
    _refused("prepare.json is damaged", source, out, short_side=30)


def test_too_many_unreadable_images_stop_it_until_they_are_seen_to(tmp_path, small_shards):
    _photos(tmp_path / "photos", 200)
    victims = sorted((tmp_path / "photos").rglob("*.jpg"))[::20]
    whole = {victim: victim.read_bytes() for victim in victims}
    for victim in victims:
        victim.write_bytes(b"")
    source, out = f"folder:{tmp_path}/photos", tmp_path / "out"
    _refused(
        r"of the 1\d\d images of the train split are unreadable, more than max_bad_fraction 0.01: for example class",
        source,
        out,
    )
    _refused(r"of the 1\d\d images of the train split are unreadable", source, out)
    assert not (out / "1.0.0" / "dataset_info.json").exists() and "train\tclass" in (out / "skipped.txt").read_text()
    with pytest.raises(sources.DataError, match="not packed to the end"):
        _open(f"tfds:{out}")
    for victim, data in whole.items():
        victim.write_bytes(data)
    assert prepare.prepare(source, out)["skipped"] == 0 and not (out / "skipped.txt").exists()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_object_stores(tmp_path, monkeypatch, scheme, small_shards):
    _photos(tmp_path / "bucket" / "photos", 60)
    source, out = f"folder:{scheme}://bucket/photos", f"{scheme}://bucket/packed"
    with object_store.mounted(tmp_path, monkeypatch):
        copied = shards.shutil.copyfileobj

        def fail(*arguments):
            copied(*arguments)
            raise RuntimeError("the connection was lost")

        monkeypatch.setattr(shards.shutil, "copyfileobj", fail)
        _refused(f"cannot use {scheme}://bucket/packed/1.0.0/.*: RuntimeError: the connection was lost", source, out)
        monkeypatch.setattr(shards.shutil, "copyfileobj", copied)
        result = prepare.prepare(source, out)
        assert prepare.prepare(source, out) == result
        if scheme == "gs":
            remote = _by_file(f"tfds:{out}")
            assert all(data == (tmp_path / "bucket" / "photos" / file).read_bytes() for file, data in remote.items())
        else:
            with pytest.raises(sources.DataError, match="mount the bucket, or copy the folder"):
                _open(f"tfds:{out}")
    assert len(_by_file(f"tfds:{tmp_path}/bucket/packed")) == result["images"]["train"] > 40
    assert not list((tmp_path / "bucket" / "packed").rglob("*.json.*"))
    assert json.loads((tmp_path / "bucket" / "packed" / "prepare.json").read_text())["result"]["images"] == result["images"]


def test_the_same_images_packed_under_another_name_are_the_same(tmp_path):
    _photos(tmp_path / "photos", 30)
    names = [prepare.prepare(f"folder:{tmp_path}/photos", tmp_path / out)["name"] for out in ("a", "b")]
    one, other = (open_source(name, "train", size=0, seed=0).contents() for name in names)
    assert one == other


def test_images_replaced_in_place_are_other_images(tmp_path):
    _photos(tmp_path / "photos", 12)
    source, out = f"folder:{tmp_path}/photos", tmp_path / "out"
    prepare.prepare(source, out)
    for path in (tmp_path / "photos").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\0")
    _refused("the files or labels of .*photos are not those of", source, out)
