"""CLEVR as TFDS prepares it gets VTAB's labels, without an image being decoded."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ijepa_jax.data import clevr
from ijepa_jax.data import source as sources
from ijepa_jax.data.open import open_source

# depth of the nearest object, number of objects, and the classes of the two; VTAB's bins hold their upper edges
SCENES = [
    (7.2, 3, 0, 0),
    (8.0, 10, 0, 7),
    (8.25, 4, 1, 1),
    (8.5, 5, 1, 2),
    (np.nextafter(np.float32(8.5), np.float32(9)), 6, 2, 3),
    (9.0, 7, 2, 4),
    (9.5, 8, 3, 5),
    (10.0, 9, 4, 6),
    (12.5, 3, 5, 0),
]
COUNTS = {"train": [count for _, count, _, _ in SCENES], "validation": [3, 2, 11, 10], "test": [0]}


def _object(depth: float) -> dict:
    return {
        "3d_coords": [depth + 20, 0, 0.5],
        "color": "red",
        "material": "rubber",
        "pixel_coords": [20, 10, depth],
        "rotation": 30,
        "shape": "cube",
        "size": "small",
    }


class Clevr(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of TFDS's CLEVR, written without TensorFlow; no image is one."""

    VERSION = tfds.core.Version("3.1.0")
    name = "clevr"

    def _info(self):
        coordinates = tfds.features.Tensor(shape=(3,), dtype=np.float32)
        features = {
            "image": tfds.features.Image(),
            "file_name": tfds.features.Text(),
            "question_answer": tfds.features.Sequence({"question": tfds.features.Text(), "answer": tfds.features.Text()}),
            "objects": tfds.features.Sequence(
                {
                    "3d_coords": coordinates,
                    "color": tfds.features.ClassLabel(names=["gray", "red"]),
                    "material": tfds.features.ClassLabel(names=["rubber", "metal"]),
                    "pixel_coords": coordinates,
                    "rotation": np.float32,
                    "shape": tfds.features.ClassLabel(names=["cube", "sphere", "cylinder"]),
                    "size": tfds.features.ClassLabel(names=["small", "large"]),
                }
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i, count in enumerate(COUNTS[split]):
            depths = SCENES[i][0] + np.roll(np.arange(count, dtype=np.float32), i)  # the nearest is anywhere in the list
            yield (
                i,
                {
                    "image": io.BytesIO(b"no image"),
                    "file_name": f"CLEVR_{i}.png",
                    "question_answer": [{"question": "How many?", "answer": str(count)}],
                    "objects": [_object(depth) for depth in depths],
                },
            )


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tfds")
    Clevr(data_dir=str(directory), file_format="array_record").download_and_prepare()
    return directory


def _open(directory: Path, split: str, part: str = ""):
    return open_source(f"tfds:clevr{part}", split, size=0, seed=0, directory=str(directory))


def test_every_image_has_vtabs_classes(directory):
    source = _open(directory, "train")
    assert source.classes == {"count": 8, "distance": 6} and len(source) == len(SCENES)
    assert source.class_names["count"] == ["3", "4", "5", "6", "7", "8", "9", "10"]
    assert source.class_names["distance"] == ["up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "over 10"]
    rows = np.arange(len(source))[::-1]
    for other in (source, pickle.loads(pickle.dumps(source))):
        found = other.labels_at(rows)
        assert {task: labels.dtype for task, labels in found.items()} == {"count": np.int64, "distance": np.int64}
        for row, count, distance in zip(rows, found["count"], found["distance"], strict=True):
            assert source[row] == b"no image"
            number = int(source.file(row).removeprefix("CLEVR_").removesuffix(".png"))
            assert (distance, count) == SCENES[number][2:]
    assert source.labels_at(rows[:0])["count"].shape == (0,)


@pytest.mark.parametrize(("part", "good"), [("", 2), (":test", 0)])
def test_other_numbers_of_objects_are_refused_with_the_image(directory, part, good):
    source = _open(directory, "test" if not part else "train", part)
    accepted = 0
    for row in range(len(source)):
        try:
            source.labels_at(np.array([row]))
            accepted += 1
        except sources.DataError as error:
            number = {"CLEVR_1.png": 2, "CLEVR_2.png": 11, "CLEVR_0.png": 0}[source.file(row)]
            assert str(error).startswith(f"{source.name(row)}: {number} objects are listed, CLEVR's images have 3 to 10")
            assert source.file(row) in str(error) and "\n" not in str(error)
    assert accepted == good


def test_only_clevr_with_its_objects_is_recognised():
    objects = tfds.features.Sequence({"pixel_coords": tfds.features.Tensor(shape=(3,), dtype=np.float32)})
    boxes = tfds.features.Sequence(tfds.features.BBoxFeature())
    assert clevr.holds_objects("clevr", tfds.features.FeaturesDict({"objects": objects}))
    assert not clevr.holds_objects("other", tfds.features.FeaturesDict({"objects": objects}))
    for features in ({"objects": boxes}, {"objects": tfds.features.Text()}, {"image": tfds.features.Image()}):
        assert not clevr.holds_objects("clevr", tfds.features.FeaturesDict(features))


def test_records_hold_what_tfds_reads_from_them(directory):
    builder = tfds.builder_from_directory(directory / "clevr" / "3.1.0")
    records = builder.as_data_source("train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    assert len(records) == len(SCENES)
    for record in records:
        example = builder.info.features.deserialize_example_np(record, decoders={"image": tfds.decode.SkipDecoding()})
        np.testing.assert_array_equal(clevr.pixel_coords(record), example["objects"]["pixel_coords"])


def test_labels_agree_with_vtabs_formula():
    thresholds = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])
    for depth in np.random.default_rng(0).choice(np.arange(28, 60) / 4, (50, 4)):
        found = clevr.labels(np.stack([depth, depth, depth], 1).astype(np.float32))
        assert found == {"count": 1, "distance": np.max(np.where(thresholds < depth.min()))}
