"""Each kind of data is read as it is, labelled and split as documented, and refused with one clear line."""

import gzip
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils.epath import backend
from PIL import Image

from ijepa_jax import build
from ijepa_jax.data import arrays, images, render
from ijepa_jax.data import source as sources
from ijepa_jax.data.open import open_source
from tests import object_store, small

ROOT = pathlib.Path(__file__).parents[1]
FASHION_MNIST = ROOT.parent / "shared" / "data" / "fashion-mnist"


def _open(name, split="train", **settings):
    return open_source(str(name), split, **{"size": 8, "seed": 0} | settings)


def _pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def _refused(name, match: str, split="train", **settings) -> None:
    with pytest.raises(sources.DataError, match=match) as caught:
        _open(name, split, **settings)
    assert "\n" not in str(caught.value)


def _save(path: pathlib.Path, value: int = 0) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value % 256, 10, 20)).save(path)
    return path


@pytest.mark.parametrize("name", ["", "scene", "scenes:3", "folder:", "imagenet", "hdf5:file.h5"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    _refused(name, r"use one of scenes, folder:PATH, arrays:FILE\.npz")


def test_unknown_split_is_refused():
    _refused("scenes", "'train' and 'test'", split="val")


def test_scenes_are_deterministic_and_the_splits_differ():
    seen = []
    train = _open("scenes", size=40, image_size=32, progress=lambda done, total: seen.append((done, total)))
    again, test = _open("scenes", size=10, image_size=32), _open("scenes", "test", size=10, image_size=32)
    assert len(train) == 40 and train[0].shape == (32, 32, 3) and train[0].dtype == np.uint8
    assert seen[-1] == (40, 40) and "7" in train.name(7)
    np.testing.assert_array_equal(train.images[:10], again.images)
    assert (train.images[:10] != test.images).any(axis=(1, 2, 3)).all()
    classes = {"count": 8, "distance": 8, "shape": 3, "colour": 8}
    assert set(train.labels) == set(classes)
    for task, number in classes.items():
        np.testing.assert_array_equal(train.labels[task][:10], again.labels[task])
        assert train.labels[task].dtype == np.int64 and 0 <= train.labels[task].min() <= train.labels[task].max() < number
    _refused("scenes", "size of 1 or more", size=0)


def test_scene_distances_fall_into_even_bins_the_same_for_every_size():
    labels = _open("scenes", "test", size=2000, image_size=16).labels["distance"]
    share = np.bincount(labels, minlength=8) / 2000
    assert (abs(share - 1 / 8) < 0.04).all()  # five deviations
    np.testing.assert_array_equal(_open("scenes", "test", size=20, image_size=24).labels["distance"], labels[:20])


def test_folder_lists_images_in_order_with_sub_folders_as_labels(tmp_path):
    for i in range(60):
        _save(tmp_path / "dogs" / f"{i:02}.png", i)
        _save(tmp_path / "cats" / "deeper" / f"{i:02}.JPG", i)
    (tmp_path / "cats" / "notes.txt").write_text("not an image")
    _save(tmp_path / ".cache" / "x.png")
    train, test = _open(f"folder:{tmp_path}"), _open(f"folder:{tmp_path}", "test")
    assert len(train) + len(test) == 120 and 4 <= len(test) <= 24
    names = [train.name(i) for i in range(len(train))]
    assert names == sorted(names)
    assert not set(names) & {test.name(i) for i in range(len(test))}
    assert train.labels["label"].tolist() == [int("/dogs/" in name) for name in names]
    assert train[0] == pathlib.Path(names[0]).read_bytes() and images.decode(train[0], 3).shape == (5, 6, 3)
    _save(tmp_path / "ants" / "new.png")
    names = [name for name in names if "/ants/" not in name]
    more = _open(f"folder:{tmp_path}")
    assert set(names) <= {more.name(i) for i in range(len(more))}  # a new image moves none across the splits
    assert pickle.loads(pickle.dumps(train))[3] == train[3]


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_folder_with_split_sub_folders(tmp_path, held_out):
    for part in ("train", held_out):
        _save(tmp_path / part / "b" / "1.webp")
    _save(tmp_path / "train" / "a" / "1.jpeg")
    train, test = _open(f"folder:{tmp_path}"), _open(f"folder:{tmp_path}", "test")
    assert train.labels["label"].tolist() == [0, 1]
    assert test.labels["label"].tolist() == [1]  # the same number as in training, though `a` is missing
    assert test.name(0) == str(tmp_path / held_out / "b" / "1.webp")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Train", "Test"), ("training", "validation"), ("train", "valid"), ("TRAIN", "dev"), ("train", "testing")],
)
def test_split_sub_folders_go_by_many_names(tmp_path, train, held_out):
    for part in (train, held_out):
        _save(tmp_path / part / "a" / "1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.xml").write_text("no image")
    assert [_open(f"folder:{tmp_path}", split).files for split in ("train", "test")] == [["a/1.png"]] * 2
    assert _open(f"folder:{tmp_path}").class_names == {"label": ["a"]}


@pytest.mark.parametrize(
    "children",
    [
        ("train", "Training", "val"),
        ("train", "val", "valid"),
        ("train", "test", "cats"),
        ("test", "cats"),
        ("valid", "dev", "x"),
        ("val", "test"),
        ("cat_train", "cat_test", "dog_train", "dog_test"),
        ("train", "val", "seg_train", "seg_val"),
        ("trainA", "trainB", "testA", "testB"),
        ("train_hq", "valid_lq"),
        ("Training", "PublicTest", "PrivateTest"),
    ],
)
def test_split_sub_folders_that_cannot_be_told_are_refused(tmp_path, children):
    for child in children:
        _save(tmp_path / child / "a" / "1.png")
    for split in ("train", "test"):
        _refused(f"folder:{tmp_path}", "have train and val .or test. there, and no other images", split)


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("Training Images", "Test Images"),
        ("trainset", "eval"),
        ("trainval", "test"),
        ("seg_train", "seg_test"),
        ("Flowers-Training", "flowers_valid"),
        ("TrainImages", "TestImages"),
        ("traindata", "testdata"),
        ("XTrain", "XTest"),
        ("train", "held_out"),
    ],
)
def test_split_sub_folders_may_say_more(tmp_path, train, held_out, caplog):
    for part in (train, held_out, "unlabeled"):
        _save(tmp_path / part / "a" / "1.png")
    assert [_open(f"folder:{tmp_path}", split).files for split in ("train", "test")] == [["a/1.png"]] * 2
    assert "unlabeled left out" in caplog.text


def test_classes_whose_names_have_words_of_splits_are_classes(tmp_path):
    names = ["bullet train", "flower", "test tube", "train station", "training shoe"]
    for i in range(100):
        _save(tmp_path / names[i % 5] / f"{i}.png")
    assert _open(f"folder:{tmp_path}").class_names == {"label": names}


@pytest.mark.parametrize(
    ("places", "right"),
    [
        (("cat/train", "cat/test", "dog/train", "dog/test"), r"cat, dog: have train and val \(or test\) above the classes"),
        (("images/Train/a", "images/val/a"), r"images: give folder:.*/images"),
    ],
)
def test_splits_below_the_classes_are_refused(tmp_path, places, right):
    for i in range(40):
        _save(tmp_path / places[i % len(places)] / f"{i}.png")
    for split in ("train", "test"):
        _refused(f"folder:{tmp_path}", f"training and held-out images lie below {right}", split)


def test_classes_of_one_image_each_are_no_labels(tmp_path, caplog):
    for i in range(40):
        _save(tmp_path / "photos" / f"{i}" / "x.png")
    np.savez(tmp_path / "x.npz", images=np.zeros((60, 4, 4), np.uint8), labels=np.arange(60))
    for name, count in ((f"folder:{tmp_path / 'photos'}", 40), (f"arrays:{tmp_path / 'x.npz'}", 60)):
        opened = [_open(name, split) for split in ("train", "test")]
        assert sum(map(len, opened)) == count and all(len(source) and not source.classes for source in opened)
        assert "no class has images in both splits" in caplog.text
        caplog.clear()


def test_images_beside_the_splits_are_left_out_with_a_line(tmp_path, caplog):
    for place in ("train/a/1.png", "val/a/1.png", "loose.jpg"):
        _save(tmp_path / place)
    assert len(_open(f"folder:{tmp_path}")) == 1
    assert "1 images beside train and val left out, for example loose.jpg" in caplog.text


def test_a_held_out_split_without_images_is_passed_over(tmp_path):
    for part in ("train", "test"):
        _save(tmp_path / part / "a" / "1.png")
    (tmp_path / "val" / "a").mkdir(parents=True)
    assert _open(f"folder:{tmp_path}", "test").name(0) == str(tmp_path / "test" / "a" / "1.png")


def test_no_class_is_for_the_test_split_alone(tmp_path):
    for i in range(60):
        _save(tmp_path / "photos" / f"{i // 2:02}" / f"{i}.png")
    train, test = (_open(f"folder:{tmp_path / 'photos'}", split) for split in ("train", "test"))
    assert len(train) + len(test) == 60 and len(test) > 1 and {*test.labels["label"]} <= {*train.labels["label"]}
    np.savez(tmp_path / "x.npz", images=np.zeros((60, 4, 4), np.uint8), labels=np.arange(60) // 2)
    train, test = (_open(f"arrays:{tmp_path / 'x.npz'}", split) for split in ("train", "test"))
    assert len(train) + len(test) == 60 and len(test) > 1 and {*test.labels["label"]} <= {*train.labels["label"]}


def test_a_training_class_without_images_is_unknown(tmp_path):
    for place in ("train/ant", "train/cat", "val/ant", "val/bee"):
        _save(tmp_path / place / "1.png")
    (tmp_path / "train" / "bee").mkdir()
    _refused(f"folder:{tmp_path}", "has classes that the training split has not: 'bee'", "test")


def test_a_class_that_is_called_train_and_a_wrapping_folder_are_said(tmp_path, caplog):
    for i in range(30):
        _save(tmp_path / "vehicles" / ("bus", "train")[i % 2] / f"{i}.png")
    assert _open(f"folder:{tmp_path / 'vehicles'}").class_names == {"label": ["bus", "train"]}
    assert "train is taken for a class" in caplog.text
    _open(f"folder:{tmp_path}")
    assert f"holds one class, vehicles: if it holds the classes, give folder:{tmp_path / 'vehicles'}" in caplog.text


@pytest.mark.parametrize(
    ("held_out", "shown"),
    [
        ("images", "'images'"),
        ("N00", r"'N00' \(in training 'n00'\)"),
        ("n00 ", r"'n00 ' \(in training 'n00'\)"),
        ("hot_dog", r"'hot_dog' \(in training 'Hot-dog'\)"),
        ("cafe\u0301", "'cafe\u0301' \\(in training 'caf\u00e9'\\)"),
    ],
)
def test_test_classes_unknown_in_training_are_refused_by_name(tmp_path, held_out, shown):
    for place in ("train/n00", "train/n01", "train/Hot-dog", "train/caf\u00e9", "val/n01", f"val/{held_out}"):
        _save(tmp_path / place / "1.png")
    _refused(f"folder:{tmp_path}", f"has classes that the training split has not: {shown}: they must be the same", "test")


def test_a_link_to_a_device_is_an_unreadable_image(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(30):
        (tmp_path / "a" / f"{i}.png").symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"cannot read .*png: a device or pipe is no image file"):
        _open(f"folder:{tmp_path}")[0]


def test_what_is_left_out_of_a_folder_is_counted(tmp_path, caplog):
    for i in range(30):
        _save(tmp_path / "a" / f"{i}.png")
        (tmp_path / "a" / f"{i}.tif").touch()
    (tmp_path / "README").touch()
    (tmp_path / ".hidden").touch()
    for split in ("train", "test"):
        _open(f"folder:{tmp_path}", split)
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "31 files left out, which are no .jpg, .jpeg, .png, .webp: 30 .tif, 1 without an ending" in line


@pytest.mark.parametrize("labels", [[-1, 0], [0, 2_000_000_000], np.array([0, 2**63], np.uint64)])
def test_labels_that_are_no_classes_are_refused(tmp_path, labels):
    np.savez(tmp_path / "x.npz", train_images=np.zeros((2, 4, 4), np.uint8), train_labels=labels)
    _refused(f"arrays:{tmp_path / 'x.npz'}", "labels must be classes from 0 up to 99999, these are")
    np.savez(tmp_path / "x.npz", train_images=np.zeros((2, 4, 4), np.uint8), train_labels=[0, 90_000])
    _refused(f"arrays:{tmp_path / 'x.npz'}", "labels of 2 classes run up to 90000: number the classes from 0 up")


def test_test_labels_unknown_in_training_are_refused(tmp_path):
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=[0, 1, 3], test_images=images, test_labels=[0, 2, 3])
    _refused(f"arrays:{tmp_path / 'x.npz'}", "its test split has classes that the training split has not: '2'", "test")


def test_folder_follows_links_and_prefers_labelled_validation_images(tmp_path):
    _save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a").symlink_to(tmp_path / "elsewhere")
    _save(tmp_path / "data" / "val" / "a" / "2.png")
    _save(tmp_path / "data" / "test" / "3.png")
    assert len(_open(f"folder:{tmp_path / 'data'}")) == 1
    assert _open(f"folder:{tmp_path / 'data'}", "test").name(0).endswith("val/a/2.png")


def test_folder_with_links_to_itself_lists_each_image_once(tmp_path):
    for i in range(30):
        _save(tmp_path / "a" / f"{i}.png", i)
    for name in ("me", "again"):
        (tmp_path / name).symlink_to(tmp_path)
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    files = [file for split in ("train", "test") for file in _open(f"folder:{tmp_path}", split).files]
    assert sorted(files) == sorted(f"a/{i}.png" for i in range(30))


def test_folder_without_sub_folders_has_no_labels(tmp_path, caplog):
    for i in range(40):
        _save(tmp_path / f"{i}.png")
    assert _open(f"folder:{tmp_path}").labels == {} and not caplog.records
    for i in range(40):
        _save(tmp_path / "album" / f"{i}.png")
    assert _open(f"folder:{tmp_path}").labels == {}
    assert "no labels" in caplog.text


def test_folder_errors(tmp_path):
    _refused(f"folder:{tmp_path / 'absent'}", "no such folder")
    file = _save(tmp_path / "few" / "1.png")
    _refused(f"folder:{file}", "a file, not a folder")
    (tmp_path / "empty").mkdir()
    _refused(f"folder:{tmp_path / 'empty'}", r"no \.jpg, .* files in")
    _refused(f"folder:{tmp_path / 'few'}", "too few", split="test" if len(_open(f"folder:{tmp_path / 'few'}")) else "train")


def test_arrays_with_a_split_of_their_own(tmp_path):
    pixels, labels = _pixels(30, 8, 9, 3), np.arange(30, dtype=np.uint8)[:, None]
    path = tmp_path / "a.npz"
    np.savez(path, train_images=pixels[:20], train_labels=labels[:20], test_images=pixels[20:])
    train, test = _open(f"arrays:{path}"), _open(f"arrays:{path}", "test")
    np.testing.assert_array_equal(train.images, pixels[:20])
    assert train.labels["label"].tolist() == list(range(20)) and test.labels == {}
    np.testing.assert_array_equal(test[3], pixels[23])


def test_arrays_without_splits_are_divided(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=_pixels(300, 4, 4), labels=np.arange(300) // 4)
    train, test = _open(f"arrays:{path}"), _open(f"arrays:{path}", "test")
    assert 15 <= len(test) <= 50 and test[0].shape == (4, 4)
    both = np.concatenate([train.labels["label"], test.labels["label"]])
    assert sorted(both.tolist()) == [i // 4 for i in range(300)]


def test_array_errors(tmp_path):
    path = tmp_path / "a.npz"
    _refused(f"arrays:{path}", "no such file")
    path.write_bytes(b"PK no zip file")
    _refused(f"arrays:{path}", "not a readable .npz file")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    _refused(f"arrays:{path}", "not a readable .npz file")
    np.savez(path, x=np.zeros(3))
    _refused(f"arrays:{path}", "holds x: for the train split expected train_images .* or images")
    np.savez(path, images=np.zeros((20, 4, 4), np.float32))
    _refused(f"arrays:{path}", r"must be uint8 .* these are float32 \[20, 4, 4\]")
    np.savez(path, images=_pixels(20, 4, 4), labels=np.zeros(19, int))
    _refused(f"arrays:{path}", r"labels must be 20 integers, these are int64 \[19\]")
    np.savez(path, images=_pixels(0, 4, 4))
    _refused(f"arrays:{path}", "leave none for the train split")


def test_arrays_of_videos_and_signals(tmp_path):
    rng, labels, path = np.random.default_rng(0), np.arange(60) % 3, tmp_path / "a.npz"
    videos, signals = rng.integers(0, 256, (60, 4, 6, 8, 3), np.uint8), rng.normal(size=(60, 50, 2))
    np.savez(path, videos=videos, signals=signals, labels=labels)
    for size, whole, dtype in (((4, 6, 8), videos, np.uint8), ((50,), signals.astype(np.float32), np.float32)):
        train, test = (_open(f"arrays:{path}", split, image_size=size) for split in ("train", "test"))
        assert train[0].dtype == dtype and train.classes == {"label": 3}
        joined = np.concatenate([train.images, test.images])
        assert sorted(map(bytes, joined)) == sorted(map(bytes, whole))
        assert train.name(0).endswith(" train video 0" if len(size) == 3 else " train signal 0")
    np.savez(path, train_signals=signals[:20, :, 0], test_signals=signals[20:, :, 0], train_labels=labels[:20])
    test = _open(f"arrays:{path}", "test", image_size=(50,))
    np.testing.assert_array_equal(test.images, signals[20:, :, 0].astype(np.float32))


def test_array_errors_of_other_modalities(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, videos=np.zeros((20, 4, 6, 8, 3), np.uint8))
    _refused(f"arrays:{path}", r"holds videos, no images: videos .* where data.image_size is \(frames, height, width\)")
    _refused(f"arrays:{path}", "holds videos, no signals: videos are what is read", image_size=(64,))
    np.savez(path, signals=np.zeros((20, 64), np.int16))
    _refused(f"arrays:{path}", r"holds signals, no videos: .* data.image_size is \(length,\)", image_size=(4, 6, 8))
    _refused(f"arrays:{path}", r"signals must be float32 \[N, L\] or \[N, L, C\], these are int16 \[20, 64\]", image_size=(64,))
    np.savez(path, videos=np.zeros((20, 4, 6), np.uint8))
    _refused(f"arrays:{path}", r"videos must be uint8 \[N, T, H, W\] or .*, these are uint8 \[20, 4, 6\]", image_size=(4, 6, 8))
    broken = np.zeros((20, 64))
    broken[3, 5], broken[7, 0], broken[9, 9] = np.nan, np.inf, 1e300
    np.savez(path, signals=broken)
    _refused(f"arrays:{path}", "3 of 20 signals are not finite as float32", image_size=(64,))
    _refused("scenes", r"scenes has images, of \(height, width\), and data.image_size \(64,\) is of signals", image_size=(64,))
    _refused("folder:/x", r"data.image_size \(8, 32, 32\) is of videos, which come from arrays", image_size=(8, 32, 32))


def test_signals_far_from_standardised_are_told(tmp_path, caplog):
    path = tmp_path / "a.npz"
    np.savez(path, signals=np.random.default_rng(0).normal(500, 20, (50, 64)).astype(np.float32))
    given = {"data__image_size": (64,), "data__channels": 1, "data__name": f"arrays:{path}", "masks__context_patches": 4}
    for mean, std, told in ((0.0, 1.0, True), (500.0, 20.0, False)):
        config = small.config(**given, data__mean=(mean,), data__std=(std,))
        caplog.clear()
        build.loader(config).open("train")
        assert ("signals have mean 499 and standard deviation 20" in caplog.text) == told


def _idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files(tmp_path, compressed):
    pixels = _pixels(12, 7, 5)
    for prefix, part in (("train", pixels[:9]), ("t10k", pixels[9:])):
        for stem, array in (("images-idx3-ubyte", part), ("labels-idx1-ubyte", np.arange(len(part)))):
            data = _idx(array)
            (tmp_path / f"{prefix}-{stem}{'.gz' * compressed}").write_bytes(gzip.compress(data) if compressed else data)
    train, test = _open(f"idx:{tmp_path}"), _open(f"idx:{tmp_path}", "test")
    np.testing.assert_array_equal(train.images, pixels[:9])
    np.testing.assert_array_equal(test[2], pixels[11])
    assert train.labels["label"].tolist() == list(range(9))
    (tmp_path / f"t10k-labels-idx1-ubyte{'.gz' * compressed}").unlink()
    assert _open(f"idx:{tmp_path}", "test").labels == {}


def test_idx_errors(tmp_path):
    _refused(f"idx:{tmp_path / 'absent'}", "no such folder")
    _refused(f"idx:{tmp_path}", "no train-images-idx3-ubyte")
    path, whole = tmp_path / "train-images-idx3-ubyte", _idx(_pixels(5, 4, 4))
    for data, match in (
        (b"\x00\x00\x0d\x03" + whole[4:], "it starts with 00000d03"),
        (_idx(np.arange(9)), "no idx file of 3-dimensional bytes"),
        (whole[:-1], r"damaged: \[5, 4, 4\] announced, but 79 bytes"),
        (gzip.compress(whole)[:-10], "not a whole gzip file"),
        (b"", "no idx file"),
    ):
        path.write_bytes(data)
        _refused(f"idx:{tmp_path}", match)
    path.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(np.arange(4)))
    _refused(f"idx:{tmp_path}", "labels must be 5 integers")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="../shared/data/fashion-mnist is not beside this repository")
def test_fashion_mnist():
    for split, count in (("train", 60_000), ("test", 10_000)):
        source = _open(f"idx:{FASHION_MNIST}", split)
        assert len(source) == count and source[0].shape == (28, 28)
        assert np.bincount(source.labels["label"]).tolist() == [count // 10] * 10


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_object_stores(tmp_path, monkeypatch, scheme):
    for i in range(40):
        _save(tmp_path / "bucket" / "photos" / ("dogs" if i % 2 else "cats") / f"{i:02}.png", i)
    np.savez(tmp_path / "bucket" / "a.npz", images=_pixels(30, 4, 4))
    for stem, array in (("images-idx3", _pixels(9, 7, 5)), ("labels-idx1", np.arange(9))):
        (tmp_path / "bucket" / f"train-{stem}-ubyte").write_bytes(_idx(array))
    with object_store.mounted(tmp_path, monkeypatch):
        local, remote = _open(f"folder:{tmp_path}/bucket/photos"), _open(f"folder:{scheme}://bucket/photos")
        assert remote.files == local.files and remote.labels["label"].tolist() == local.labels["label"].tolist()
        assert remote[3] == local[3] and remote.name(3) == f"{scheme}://bucket/photos/{local.files[3]}"
        assert pickle.loads(pickle.dumps(remote))[3] == local[3]
        before = remote.fingerprint()
        assert before == _open(f"folder:{scheme}://bucket/photos").fingerprint()
        with (tmp_path / "bucket" / "photos" / local.files[5]).open("ab") as file:
            file.write(b"more")
        assert before != remote.fingerprint()
        (tmp_path / "bucket" / "photos" / local.files[3]).unlink()
        with pytest.raises(OSError):
            remote[3]
        assert len(_open(f"arrays:{scheme}://bucket/a.npz")) + len(_open(f"arrays:{scheme}://bucket/a.npz", "test")) == 30
        np.testing.assert_array_equal(_open(f"idx:{scheme}://bucket").images, _pixels(9, 7, 5))
        _refused(f"folder:{scheme}://bucket/absent", "no such folder")
        _refused(f"arrays:{scheme}://bucket/absent.npz", "no such file")


@pytest.mark.parametrize(("scheme", "library"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_library_for_object_storage_is_named(monkeypatch, scheme, library):
    monkeypatch.setitem(sys.modules, library, None)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    for name in (f"folder:{scheme}://bucket/photos", f"arrays:{scheme}://bucket/a.npz", f"idx:{scheme}://bucket"):
        _refused(name, f"cannot use {name}: ImportError: .*nstall {library}")


def test_folders_tell_class_names_and_files(tmp_path):
    for part in ("train", "val"):
        _save(tmp_path / part / "b" / "1.png")
    _save(tmp_path / "train" / "a" / "deep" / "1.png")
    train, test = _open(f"folder:{tmp_path}"), _open(f"folder:{tmp_path}", "test")
    assert train.class_names == test.class_names == {"label": ["a", "b"]}
    assert train.file(0) == "a/deep/1.png" and test.file(0) == "b/1.png"
    path = tmp_path / "a.npz"
    np.savez(path, images=_pixels(30, 4, 4))
    assert _open(f"arrays:{path}").class_names == {} and _open(f"arrays:{path}").file(3) == "train image 3"


def test_a_split_that_the_data_lack_is_told_from_other_faults(tmp_path):
    _save(tmp_path / "photos" / "1.png")
    np.savez(tmp_path / "a.npz", train_images=_pixels(5, 4, 4))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(_pixels(5, 4, 4)))
    for name in (f"folder:{tmp_path}/photos", f"arrays:{tmp_path}/a.npz", f"idx:{tmp_path}"):
        with pytest.raises(sources.NoSplit):
            _open(name, "test"), _open(name, "train")
    for name in (f"folder:{tmp_path}/absent", f"arrays:{tmp_path}/absent", f"idx:{tmp_path}/absent"):
        with pytest.raises(sources.DataError) as caught:
            _open(name)
        assert not isinstance(caught.value, sources.NoSplit)


def test_scenes_tell_the_segment_of_each_pixel():
    source = _open("scenes", "test", size=300, seed=3, image_size=32)
    everything = source.segments_at(np.arange(300))  # more than are rendered at once
    assert everything.shape == (300, 32, 32) and everything.dtype == np.uint8
    assert source.segment_names == render.SEGMENTS and set(np.unique(everything)) == {0, 1, 2, 3}
    rows = np.array([299, 4, 4])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).segments_at(rows), everything[rows])
    assert source.segments_at(rows[:0]).shape == (0, 32, 32)
    alone = source.labels["count"] == 0
    shape = source.labels["shape"][alone][:, None, None] + 1
    assert alone.sum() > 10 and ((everything[alone] == 0) | (everything[alone] == shape)).all()
    difference = np.abs(source.images[alone].astype(int) - np.median(source.images[alone], (1, 2), keepdims=True)).max(-1)
    assert difference[everything[alone] > 0].mean() > 2 * difference[everything[alone] == 0].mean()


def _fingerprint(name, split="train", **settings) -> str:
    return _open(name, split, **settings).fingerprint()


def test_fingerprints_of_pixels_in_memory():
    pixels, labels = _pixels(12, 6, 5, 3), {"a": np.arange(12), "b": np.arange(12)[::-1]}
    first = arrays.ArraySource(pixels, labels, "one").fingerprint()
    assert len(first) == 32 and int(first, 16) >= 0
    same = arrays.ArraySource(pixels[::-1][::-1], {"b": labels["b"], "a": labels["a"].astype(np.uint8)}, "another")
    assert same.fingerprint() == first == pickle.loads(pickle.dumps(same)).fingerprint()
    pixel, label = pixels.copy(), labels["a"].copy()
    pixel[7, 3, 2, 1] ^= 1
    label[5] += 1
    others = [
        (pixel, labels),
        (pixels, labels | {"a": label}),
        (pixels, {"a": labels["a"]}),
        (pixels, {"a": labels["a"], "c": labels["b"]}),
        (pixels, {"a": labels["b"], "b": labels["a"]}),
        (pixels.reshape(12, 5, 6, 3), labels),
        (pixels[:11], {task: values[:11] for task, values in labels.items()}),
        (pixels[::-1], labels),
    ]
    assert len({first, *(arrays.ArraySource(*other, "one").fingerprint() for other in others)}) == 1 + len(others)


def test_fingerprints_of_scenes_are_of_what_they_show():
    first = _fingerprint("scenes")
    assert first == _fingerprint("scenes")
    others = [
        _fingerprint("scenes", "test"),
        *(_fingerprint("scenes", **s) for s in ({"seed": 1}, {"size": 9}, {"image_size": 32})),
    ]
    assert len({first, *others}) == 5


def test_fingerprints_of_folders(tmp_path):
    folder = tmp_path / "photos"
    for i in range(300):  # more than a thread looks at in one go
        _save(folder / "train" / ("dogs" if i % 2 else "cats") / f"{i:03}.png", i)
    _save(folder / "val" / "dogs" / "x.png")
    (folder / "train" / "dogs" / "nowhere.png").symlink_to("absent")
    first, name = _fingerprint(f"folder:{folder}"), f"folder:{folder}"
    assert _fingerprint(name) == first != _fingerprint(name, "test")
    assert _fingerprint(f"folder:{shutil.copytree(folder, tmp_path / 'copy', symlinks=True)}") == first  # keeps the times
    file = folder / "train" / "dogs" / "199.png"
    data, status = file.read_bytes(), file.stat()
    seen = [first]
    for change in (
        lambda: os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1)),
        lambda: (file.write_bytes(data + b"0"), os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))),
        lambda: file.rename(file.with_name("1990.png")),
        lambda: (folder / "train" / "ants").mkdir(),  # which moves the labels of all
        lambda: _save(folder / "train" / "dogs" / "nowhere.png", 0) and None,
        lambda: (folder / "train" / "dogs" / "001.png").unlink(),
    ):
        change()
        seen.append(_fingerprint(name))
        assert _fingerprint(name) == seen[-1]
    assert len(set(seen)) == len(seen)
    assert _fingerprint(name, "test") == _fingerprint(name, "test")


def test_fingerprints_agree_between_processes(tmp_path):
    for i in range(30):
        _save(tmp_path / "photos" / "abc"[i % 3] / f"{i}.png", i)
    np.savez(tmp_path / "a.npz", images=_pixels(30, 4, 4), labels=np.arange(30))
    names = [f"folder:{tmp_path}/photos", f"arrays:{tmp_path}/a.npz", "scenes"]
    script = f"""
from ijepa_jax.data.open import open_source
print(*(open_source(name, "train", size=8, seed=0).fingerprint() for name in {names}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == [_fingerprint(name) for name in names], done.stderr
