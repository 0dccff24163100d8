"""Each kind of data is read as it is, labelled and split as documented, and refused with one clear line."""

import gzip
import io
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data import images, sources

FASHION_MNIST = pathlib.Path(__file__).parents[2] / "shared" / "data" / "fashion-mnist"


def _open(name, split="train", **settings):
    return sources.open_source(str(name), split, **{"size": 8, "seed": 0} | settings)


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


def test_folder_follows_links_and_prefers_labelled_validation_images(tmp_path):
    _save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a").symlink_to(tmp_path / "elsewhere")
    _save(tmp_path / "data" / "val" / "a" / "2.png")
    _save(tmp_path / "data" / "test" / "3.png")
    assert len(_open(f"folder:{tmp_path / 'data'}")) == 1
    assert _open(f"folder:{tmp_path / 'data'}", "test").name(0).endswith("val/a/2.png")


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
    np.savez_compressed(path, images=_pixels(300, 4, 4), labels=np.arange(300))
    train, test = _open(f"arrays:{path}"), _open(f"arrays:{path}", "test")
    assert 15 <= len(test) <= 50 and test[0].shape == (4, 4)
    both = np.concatenate([train.labels["label"], test.labels["label"]])
    assert sorted(both.tolist()) == list(range(300))


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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[str, dict[str, np.ndarray]]:
    """A folder with the TFDS data set `tiny`, written without TensorFlow, and its pixels by split."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pixels = {"train": _pixels(20, 6, 7, 3), "test": _pixels(5, 6, 7, 3)}

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        name = "tiny"

        def _info(self):
            features = {"image": tfds.features.Image(shape=(6, 7, 3)), "label": tfds.features.ClassLabel(num_classes=25)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in pixels}

        def _generate_examples(self, split):
            for i, image in enumerate(pixels[split]):
                encoded = io.BytesIO()  # pixels as such would be encoded by TensorFlow
                Image.fromarray(image).save(encoded, "PNG")
                encoded.seek(0)
                yield i, {"image": encoded, "label": i}

    directory = str(tmp_path_factory.mktemp("tfds"))
    Tiny(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory, pixels


@pytest.mark.parametrize(
    ("name", "split", "part", "first", "last"),
    [
        ("tfds:tiny", "train", "train", 0, 20),
        ("tfds:tiny/1.2.0", "test", "test", 0, 5),
        ("tfds:tiny:train[:25%]", "train", "train", 0, 5),
        ("tfds:tiny:train[4:]", "test", "test", 0, 5),
    ],
)
def test_tfds_gives_back_every_pixel_and_label(prepared, name, split, part, first, last):
    directory, pixels = prepared
    source = pickle.loads(pickle.dumps(_open(name, split, directory=directory)))
    labels = source.labels_at(np.arange(len(source)))[
        "label"
    ]  # TFDS shuffles as it writes: the label tells which example it is
    assert len(source) == len(set(labels.tolist())) == last - first
    for i in range(len(source)):
        assert isinstance(source[i], bytes)
        np.testing.assert_array_equal(images.decode(source[i], 3), pixels[part][labels[i]])
    assert "tfds:tiny" in source.name(3) and "3" in source.name(3)


def test_tfds_errors(prepared, tmp_path):
    directory, _ = prepared
    _refused("tfds:absent", "not prepared in .*: .* `tfds build absent --data_dir", directory=directory)
    _refused("tfds:tiny:trian", "cannot be read: .*trian", directory=directory)
    config = tmp_path / "many" / "small" / "1.0.0"
    config.mkdir(parents=True)
    (config / "dataset_info.json").write_text("{}")
    _refused("tfds:many", "name one: tfds:many/small", directory=str(tmp_path))
