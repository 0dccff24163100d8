"""Generated scenes are pure functions of (seed, index), and their labels say what the pixels show."""

import numpy as np
import pytest

from ijepa_jax.data import render


@pytest.fixture(scope="module")
def batch() -> render.Scenes:
    return render.render(0, np.arange(1000))


def _same(a: render.Scenes, b: render.Scenes, rows: np.ndarray | slice = slice(None)) -> bool:
    pairs = [*zip(a[:5], b[:5], strict=True), *((a.labels[name], b.labels[name]) for name in a.labels)]
    return all(np.array_equal(x[rows], y) for x, y in pairs)


def test_shapes_and_types(batch):
    assert batch.images.shape == (1000, 64, 64, 3) and batch.images.dtype == np.uint8
    assert batch.objects.shape == (1000, 64, 64) and batch.objects.dtype == np.uint8
    for field, dtype in ((batch.shapes, np.int8), (batch.colours, np.int8), (batch.distances, np.float32)):
        assert field.shape == (1000, render.MAX_OBJECTS) and field.dtype == dtype
    kinds = {"count": np.int32, "distance": np.float32, "shape": np.int32, "colour": np.int32}
    assert {name: label.dtype for name, label in batch.labels.items()} == kinds
    assert all(label.shape == (1000,) for label in batch.labels.values())


def test_grouping_and_order_change_nothing(batch):
    order = np.random.default_rng(0).permutation(1000)[:300]
    assert _same(batch, render.render(0, order), order)
    for rows in (np.array([7]), np.array([999, 3]), np.array([5, 5, 600])):
        assert _same(batch, render.render(0, rows), rows)


def test_seed_and_index_change_the_scene(batch):
    assert _same(batch, render.render(0, np.arange(50)), slice(50))
    other = render.render(1, np.arange(50))
    assert all((a != b).mean() > 0.5 for a, b in zip(batch.images[:50], other.images, strict=True))
    assert len(np.unique(batch.images.reshape(1000, -1), axis=0)) == 1000
    far = render.render(2**40, np.array([0, 2**40]))
    assert (far.images[0] != far.images[1]).mean() > 0.5


def test_count_is_what_can_be_seen(batch):
    ids = np.arange(1, render.MAX_OBJECTS + 1)
    placed = ids <= batch.labels["count"][:, None]
    assert np.array_equal(np.isfinite(batch.distances), placed)
    assert np.array_equal(batch.shapes >= 0, placed) and np.array_equal(batch.colours >= 0, placed)
    pixels = (batch.objects[:, None] == ids[:, None, None]).sum((2, 3))
    assert (pixels[~placed] == 0).all()
    assert (pixels[placed] > 0).mean() >= 0.99
    assert (pixels[placed] >= 20).mean() >= 0.97  # enough to tell that something is there
    assert pixels[:, 0].min() >= 64  # the largest object is well in sight


def test_distance_is_the_nearest_objects(batch):
    assert (batch.labels["distance"] > 0).all()
    assert np.array_equal(batch.labels["distance"], batch.distances.min(1))
    low, high = np.quantile(batch.labels["distance"], (0.1, 0.9))
    assert high / low > 1.4  # far enough apart to be told by looking
    assert abs(np.corrcoef(batch.labels["count"], batch.labels["distance"])[0, 1]) < 0.25


def test_a_lone_sphere_shrinks_with_distance(batch):
    lone = (batch.labels["count"] == 1) & (batch.labels["shape"] == 0)
    touched = (batch.objects[lone] > 0).any(1)[:, [0, -1]].any(1)
    across = np.sqrt((batch.objects[lone] == 1).sum((1, 2)))[~touched]
    scale = across * batch.labels["distance"][lone][~touched]
    assert len(scale) > 20
    assert scale.max() / scale.min() < 1.5  # sizes vary by 1.2, and the edge of the frame stretches a little


def test_labels_are_spread_evenly(batch):
    for name, values in (("count", range(1, 9)), ("shape", range(3)), ("colour", range(8))):
        share = np.array([(batch.labels[name] == value).mean() for value in values])
        assert share.sum() == pytest.approx(1)
        assert np.abs(share * len(values) - 1).max() < 0.4  # four standard deviations of 1000 draws


def test_the_largest_object_has_its_colour(batch):
    mask = batch.objects == 1
    mean = np.stack([image[inside].mean(0) for image, inside in zip(batch.images, mask, strict=True)])
    hue = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    palette = render.PALETTE / np.linalg.norm(render.PALETTE, axis=1, keepdims=True)
    assert ((hue @ palette.T).argmax(1) == batch.labels["colour"]).mean() > 0.95


def test_other_sizes_show_the_same_scene(batch):
    for size in (16, 33, 128):
        other = render.render(0, np.arange(6), size)
        assert other.images.shape == (6, size, size, 3)
        assert np.array_equal(other.distances, batch.distances[:6])
    halved = other.images.reshape(6, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halved - batch.images[:6]).mean() < 3  # the rest is the edges


def test_no_scenes():
    empty = render.render(0, np.arange(0))
    assert empty.images.shape == (0, 64, 64, 3) and empty.labels["count"].shape == (0,)


@pytest.mark.parametrize(
    ("index", "size"), [(np.array([-1]), 64), (np.array([0.5]), 64), (np.zeros((2, 2), int), 64), (np.arange(2), 8)]
)
def test_bad_input_is_refused(index, size):
    with pytest.raises(ValueError, match="must be"):
        render.render(0, index, size)


def test_segments_are_the_shapes_of_the_objects_seen(batch):
    segments = render.segments(batch)
    assert segments.shape == batch.objects.shape and segments.dtype == np.uint8
    assert render.SEGMENTS == ("background", "sphere", "cube", "cylinder")
    assert np.array_equal(segments == 0, batch.objects == 0)
    for number in range(render.MAX_OBJECTS):
        kind = np.broadcast_to(batch.shapes[:, number, None, None] + 1, segments.shape)
        seen = batch.objects == number + 1
        assert np.array_equal(segments[seen], kind[seen])
    assert render.segments(render.render(0, np.arange(0))).shape == (0, 64, 64)


def test_segments_differ_in_colour_from_what_is_around_them(batch):
    segments, images = render.segments(batch)[:200], batch.images[:200].astype(np.float32)
    step = np.abs(np.diff(images, axis=2)).max(-1)
    border = segments[:, :, 1:] != segments[:, :, :-1]
    for steps, at in zip(step, border, strict=True):
        assert steps[at].mean() > 4 * steps[~at].mean()
    seen = segments > 0
    near = np.pad(seen, ((0, 0), (3, 3), (3, 3)))
    near = np.lib.stride_tricks.sliding_window_view(near, (7, 7), (1, 2)).any((3, 4)) & ~seen
    for image, objects, ground in zip(images, batch.objects, near, strict=False):
        for number in np.flatnonzero(np.bincount(objects.ravel())[1:] >= 20) + 1:
            assert np.abs(image[objects == number].mean(0) - image[ground].mean(0)).max() > 5


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (33, 40)])
def test_an_image_that_is_not_square_shows_the_square_one_in_its_middle(height, width):
    side = min(height, width)
    square, wide = (render.render(0, np.arange(40), size) for size in (side, (height, width)))
    assert wide.images.shape == (40, height, width, 3)
    if (height - side) % 2 == (width - side) % 2 == 0:
        rows, columns = (slice((length - side) // 2, (length + side) // 2) for length in (height, width))
        same = (wide.objects[:, rows, columns] == square.objects).mean()
        off = np.abs(wide.images[:, rows, columns].astype(int) - square.images).mean()
        assert same > 0.999 and off < 0.5
    for name, labels in square.labels.items():
        np.testing.assert_array_equal(wide.labels[name], labels)
