from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.visualize import canvas, curves, features, live, map, masks, prediction, sheet, similarity
from ijepa_jax.visualize.canvas import Canvas


def opened(path, rows=()):
    """The picture that was drawn; images of noise, uint8 [H, W, 3], must be shown in it, in these rows and in this order."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert Image.open(path).format == "PNG"
    assert min(picture.shape[:2]) > 100 and max(picture.shape[:2]) < 4000
    bottom = 0
    for row in rows:
        places = [place(picture, image) for image in row]
        assert len({top for top, *_ in places}) == 1 and places[0][0] > bottom
        for (_, left, _, width), (_, after, *_) in pairwise(places):
            assert after > left + width
        bottom = places[0][0] + places[0][2]
    return picture


def place(picture, image):
    """Where an image is shown, enlarged: top, left, height and width."""
    numbers, size = numbered(picture), np.array(image.shape[:2])
    first, last = (np.argwhere(numbers == numbered(corner)) for corner in (image[0, 0], image[-1, -1]))
    assert len(first) and len(last), "an image is not drawn"
    step = (last[0] - first[0]) / (size - 1)
    rows, columns = ((first[0][i] + (np.arange(size[i]) + 0.5) * step[i]).astype(int) for i in (0, 1))
    np.testing.assert_array_equal(picture[rows[:, None], columns], image)
    return (*first[0], *(step * size).round().astype(int))


def numbered(colours):
    """Colours [..., 3] as one number each."""
    red, green, blue = np.moveaxis(np.asarray(colours, np.int32), -1, 0)
    return 65536 * red + 256 * green + blue


def pixels_of(picture, colour, within=0):
    """How many pixels have a colour: of names like #1971c2, or (red, green, blue)."""
    if isinstance(colour, str):
        colour = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    if not within:
        return (numbered(picture) == numbered(colour)).sum()
    return (np.abs(picture - np.asarray(colour, np.float32)) <= within).all(axis=-1).sum()


def pictures(count, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masks_are_drawn(tmp_path, channels):
    target = np.array([[[0, 1, 8, 9], [20, 21, 0, 0]]] * 2)
    images = pictures(2, channels)
    masks.draw_masks(tmp_path / "a.png", images, np.array([[[3, 4, 5]]] * 2), target, [[4, 2]] * 2, 4)
    picture = opened(tmp_path / "a.png", images[:, None, ..., :3] if channels >= 3 else ())
    for colour in masks._BLOCKS[:2]:  # each target block has its outline
        assert pixels_of(picture, colour) > 50
    if channels >= 3:  # what the context sees is shown twice, of targets what their outline leaves, all else once
        seen, target, other = (pixels_of(picture, images[0, y, x, :3]) for y, x in ((1, 14), (5, 3), (30, 30)))
        assert seen > 1.8 * other and target > 1.8 * other and 20 < other < 60


def test_only_seen_patches_are_revealed():
    image = pictures(1)[0].repeat(3, 0).repeat(3, 1)
    seen = canvas.seen_patches([0, 9, 63, 62], 3, (8, 8))  # the fourth is padding
    assert seen.sum() == 3
    shown = canvas.reveal(image, seen, faintness=1.0)
    kept = (shown == image).all(axis=-1).reshape(8, 12, 8, 12).all(axis=(1, 3))
    np.testing.assert_array_equal(kept, seen)
    np.testing.assert_array_equal(shown[12:24, 0], np.broadcast_to(canvas._PAPER, (12, 3)))


def test_masks_out_of_the_grid_are_refused(tmp_path):
    with pytest.raises(ValueError, match="outside the 8x8 grid"):
        masks.draw_masks(tmp_path / "a.png", pictures(1), np.array([[[64]]]), np.array([[[1]]]), [[1]], 4)
    with pytest.raises(ValueError, match="patches of 5"):
        masks.draw_masks(tmp_path / "a.png", pictures(1), np.array([[[3]]]), np.array([[[1]]]), [[1]], 5)
    with pytest.raises(ValueError, match="must be uint8"):
        masks.draw_masks(tmp_path / "a.png", pictures(1) / 255.0, np.array([[[3]]]), np.array([[[1]]]), [[1]], 4)


# sizes of examples, and of patches that are not square
KINDS = {
    "image": ((8, 32), (4, 16)),
    "video": ((6, 16, 24), (2, 4, 8)),
    "signal": ((96,), (16,)),
}


def examples(kind, count=2, channels=3):
    sizes, patch = KINDS[kind]
    rng = np.random.default_rng(3)
    given = rng.normal(size=(count, *sizes, channels)).astype(np.float32)
    if kind != "signal":
        given = rng.integers(0, 256, given.shape, np.uint8)
    return given, patch, tuple(size // side for size, side in zip(sizes, patch, strict=True))


def cells(picture, grid, indices):
    """Where patches lie in a picture [frames, H, W, ...] that shows all steps: bool [frames, H, W]."""
    inside = np.zeros(picture.shape[:3], bool)
    frames, rows, columns = (1,) * (3 - len(grid)) + grid
    height, width = picture.shape[1] // rows, picture.shape[2] // columns
    assert len(picture) == frames
    for index in indices:
        frame, row, column = index // (rows * columns), index // columns % rows, index % columns
        inside[frame, row * height : (row + 1) * height, column * width : (column + 1) * width] = True
    return inside


@pytest.fixture
def drawn(monkeypatch):
    """What drawing functions hand on to be written: {"rows": pictures, "titles": list}."""
    found = {}
    for module in (masks, features, similarity, prediction):
        monkeypatch.setattr(module, "save_grid", lambda path, rows, titles, *_, **__: found.update(rows=rows, titles=titles))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_any_modality_lie_on_their_patches(drawn, kind):
    given, patch, grid = examples(kind, count=1)
    context, target = [0, 3], [1, 2]  # the last index pads
    masks.draw_masks("", given, np.array([[[*context, 1]]]), np.array([[[*target, 0]]]), [[2]], patch, [[2]])
    (whole, seen, block), *others = drawn["rows"]
    assert not others and drawn["titles"] == [kind, "context", "target"]
    np.testing.assert_array_equal((seen != canvas._PAPER).any(axis=-1) <= cells(whole, grid, context), True)
    np.testing.assert_array_equal(seen[cells(whole, grid, context)], whole[cells(whole, grid, context)])
    outline = numbered(block) == numbered([int(masks._BLOCKS[0][i : i + 2], 16) for i in (1, 3, 5)])
    inside = cells(whole, grid, target)
    assert outline.any() and not outline[~inside].any()
    np.testing.assert_array_equal(block[inside & ~outline], whole[inside & ~outline])
    assert (outline | (block != whole).any(axis=-1))[~inside].mean() > 0.9


def test_a_block_has_an_outline_in_each_frame(drawn):
    """The last column of a frame and the first of the next are no neighbours."""
    given, patch, grid = examples("video", count=1)
    masks.draw_masks("", given, np.array([[[5]]]), np.array([[[2, 12]]]), [[2]], patch)
    outline = numbered(drawn["rows"][0][2]) == numbered([int(masks._BLOCKS[0][i : i + 2], 16) for i in (1, 3, 5)])
    for frame, place in ((0, 2), (1, 12)):
        inside = cells(outline, grid, [place])[frame]
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert outline[frame][rows][:, columns[[0, -1]]].all() and outline[frame][rows[[0, -1]]][:, columns].all()


def test_a_film_strip_has_the_first_frame_of_each_step(tmp_path):
    given, _, grid = examples("video")
    strip = Canvas.of(given, grid)
    np.testing.assert_array_equal(strip.pictures(given), given[:, ::2])
    np.testing.assert_array_equal(strip.patches, np.arange(3 * 4 * 3).reshape(3, 4, 3))
    long = np.random.default_rng(0).integers(0, 256, (2, 32, 8, 12, 1), np.uint8)
    strip = Canvas.of(long, (16, 2, 3))  # of 16 steps every other one is shown
    np.testing.assert_array_equal(strip.pictures(long), long[:, ::4].repeat(3, axis=-1))
    np.testing.assert_array_equal(strip.patches, np.arange(96).reshape(16, 2, 3)[::2])
    features.draw_pca(tmp_path / "a.png", given, np.random.default_rng(0).normal(size=(2, 36, 8)), grid)
    opened(tmp_path / "a.png", given[:, ::2])  # stacked, frames side by side


def test_a_signal_is_drawn_in_lanes_and_patches():
    given = np.zeros((1, 96, 2), np.float32)
    given[0, 33:47, 1] = 9.0  # in the third of six patches
    (picture,) = Canvas.of(given, (6,)).pictures(given)[0]
    height, width, _ = picture.shape
    dark = picture.max(axis=-1) < 120
    quiet = dark[: height // 2].any(axis=1)
    assert 0 < quiet.sum() < 5  # a flat line
    loud = dark[height // 2 : height * 5 // 8]  # the upper part of the lower lane
    assert loud.any() and set(np.flatnonzero(loud.any(axis=0)) * 6 // width) == {2}
    many = np.random.default_rng(0).normal(size=(1, 5000, 9)).astype(np.float32)
    assert Canvas.of(many, (200,)).pictures(many).shape == (1, 1, height, 1200, 3)
    np.testing.assert_array_equal(Canvas.of(many, (200,)).patches, np.arange(200)[None, None])


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_predictions_are_coloured_on_their_patches(drawn, kind):
    given, patch, grid = examples(kind)
    size = int(np.prod(grid))
    patches = np.zeros((2, size, 4))
    patches[:, [1, 3], 0] = 1.0
    features.draw_pca("", given, patches, grid)
    assert drawn["titles"] in ([kind, "PCA"], [""] * 2)
    colours = features.as_colours(patches, given, grid)
    for picture in colours:
        assert {*numbered(picture)[cells(picture, grid, [1, 3])]}.isdisjoint(numbered(picture)[~cells(picture, grid, [1, 3])])
    values = np.array([[[0.25, -1.0]]] * 2)
    shown = {"context": np.array([[[0]]] * 2), "target": np.array([[[1, 3]]] * 2), "target_length": np.full((2, 1), 2)}
    prediction.draw_prediction("", given, shown, values, values, patch)
    for *_, block in drawn["rows"]:
        for index, value in ((1, 0.25), (3, -1.0)):
            found = block[cells(block, grid, [index])]
            assert (found == prediction._SCALE.colours(value)).all(axis=-1).mean() > 0.5
            assert ((found == prediction._SCALE.colours(value)) | (found == prediction._INK)).all()


@pytest.mark.parametrize("kind", ["video", "signal"])
def test_similarities_of_videos_and_signals_are_maps_in_order(drawn, kind):
    given, _, grid = examples(kind, count=1)
    size = int(np.prod(grid))
    patches = np.zeros((1, size, 2))
    early = np.arange(size) < size // grid[0] * (grid[0] // 2)
    patches[0, early, 0], patches[0, ~early, 1] = 1.0, 1.0
    similarity.draw_similarity("", given, patches, grid)
    marked, *maps = drawn["rows"][0]
    queries = similarity.patches_along(Canvas.of(given, grid).patches)
    assert len(queries) == len(maps) == 5 and drawn["titles"] == [kind, *(f"similarity {i}" for i in range(1, 6))]
    assert list(queries) == sorted(queries)
    alike = numbered([253, 231, 36])  # the upper end of the scale
    for query, picture in zip(queries, maps, strict=True):
        same = cells(picture, grid, np.flatnonzero(early == early[query]))
        mark = numbered(picture) == numbered(similarity._MARK)
        assert (numbered(picture) == alike)[same & ~mark].all() and not (numbered(picture) == alike)[~same].any()
        here = cells(picture, grid, [query])
        assert mark.any() and not mark[~here].any()
        assert (numbered(marked) == numbered(similarity._MARK))[here].any()


def test_marks_are_spread_over_time_and_space():
    places = similarity.patches_along(np.arange(8 * 14 * 14).reshape(8, 14, 14))
    steps, rows, columns = np.unravel_index(places, (8, 14, 14))
    assert all(len({*found}) == 5 for found in (steps, rows, columns))
    assert similarity.patches_along(np.arange(3).reshape(1, 1, 3)).tolist() == [0, 1, 2]


def test_wide_pictures_are_stacked_as_many_as_fit(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 120, 3), np.uint8)
    sheet.save_grid(tmp_path / "a.png", [list(row) for row in wide[:2]], ["a", "b", "c"])
    few = opened(tmp_path / "a.png", wide[:2].reshape(6, 1, 32, 120, 3))
    sheet.save_grid(tmp_path / "b.png", [list(row) for row in wide], ["a", "b", "c"], captions=[["one\ntwo"] * 3] * 40)
    many = opened(tmp_path / "b.png", wide[:4].reshape(12, 1, 32, 120, 3))
    assert len(few) < len(many) < 3000
    sheet.save_grid(tmp_path / "c.png", [[picture[:, :60] for picture in wide[0]]], ["a", "b", "c"])
    opened(tmp_path / "c.png", [wide[0][:, :, :60]])  # not wide: side by side


@pytest.mark.parametrize("kind", ["video", "signal"])
def test_neighbours_and_the_strip_of_a_running_run_show_any_modality(tmp_path, kind):
    given, _, grid = examples(kind, count=6)
    features.draw_neighbours(tmp_path / "a.png", given[:2], given, [[1, 2], [0, 3]], captions=[["$a_", "b\nc", ""]] * 2)
    picture = opened(tmp_path / "a.png")
    if kind == "video":  # all frames, the grid of patches is not asked for
        opened(tmp_path / "a.png", given[[0, 1, 2]])
    strip = live.side_by_side(given, np.random.default_rng(0).normal(size=(6, int(np.prod(grid)), 8)), grid)
    assert strip.dtype == np.uint8 and strip.shape[0] > strip.shape[1] / 3
    assert picture.shape[1] > 2.5 * given.shape[-2] and strip.shape[1] >= 2 * live._SIDE


def test_examples_that_do_not_fit_are_named():
    videos, patch, grid = examples("video")
    with pytest.raises(ValueError, match="must be uint8"):
        Canvas.of(videos, grid).pictures(videos / 255.0)
    with pytest.raises(ValueError, match="videos of 6x16x24 do not lie on a grid of 4x3 patches"):
        features.draw_pca("", videos, np.zeros((2, 12, 4)), grid[1:])
    with pytest.raises(ValueError, match="2 videos on a 3x4x3 grid do not fit"):
        similarity.draw_similarity("", videos, np.zeros((2, 12, 4)), grid)
    with pytest.raises(ValueError, match="video of 6x16x24 frames and pixels does not divide into patches of 4x4x8"):
        masks.draw_masks("", videos, np.zeros((2, 1, 1), int), np.zeros((2, 1, 1), int), [[1]] * 2, (4, *patch[1:]))
    with pytest.raises(ValueError, match="outside the 3x4x3 grid"):
        masks.draw_masks("", videos, np.full((2, 1, 1), 36), np.zeros((2, 1, 1), int), [[1]] * 2, patch)


def test_one_pca_basis_serves_all_images(tmp_path):
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(5, 24))
    which = rng.integers(0, 5, (10, 64))
    colours = features.pca_colours(kinds[which])
    assert colours.min() >= 0 and colours.max() <= 1
    for kind in range(5):  # the same feature has the same colour wherever it is, another one has not
        assert np.ptp(colours[which == kind], axis=0).max() < 1e-6
    assert len(np.unique(colours.reshape(-1, 3).round(3), axis=0)) == 5
    images = pictures(10)
    features.draw_pca(tmp_path / "a.png", images, kinds[which], (8, 8))
    picture = opened(tmp_path / "a.png", [images[:8], images[8:]])
    for kind in range(5):
        colour = (255 * colours[which == kind][0]).round()
        assert pixels_of(picture, colour) == pytest.approx((which == kind).mean() * 10 * 195**2, rel=0.2)


def test_pca_of_collapsed_or_narrow_features_is_grey_not_nan():
    np.testing.assert_array_equal(features.pca_colours(np.full((2, 16, 8), 3.3)), 0.5)
    narrow = features.pca_colours(np.random.default_rng(0).normal(size=(2, 16, 2)))
    assert np.isfinite(narrow).all() and (narrow[..., 2] == 0.5).all()
    with pytest.raises(ValueError, match="NaN"):
        features.pca_colours(np.full((2, 16, 8), np.nan))


def test_pca_must_fit_the_grid(tmp_path):
    with pytest.raises(ValueError, match="4x4 grid do not fit"):
        features.draw_pca(tmp_path / "a.png", pictures(2), np.zeros((2, 64, 8)), (4, 4))


def test_neighbours_are_the_nearest_and_are_drawn(tmp_path):
    bank = np.random.default_rng(0).normal(size=(30, 8))
    found = features.nearest(3 * bank[[4, 17]], bank, 3)
    np.testing.assert_array_equal(found[:, 0], [4, 17])
    images, others = pictures(2), pictures(30, seed=1)
    features.draw_neighbours(tmp_path / "a.png", images, others, found, ["first", "second"])
    opened(tmp_path / "a.png", [[image, *others[row]] for image, row in zip(images, found, strict=True)])
    with pytest.raises(ValueError, match="2 query images but neighbours of 1"):
        features.draw_neighbours(tmp_path / "a.png", pictures(2), pictures(30), found[:1])


def test_an_image_is_never_its_own_neighbour():
    bank = np.random.default_rng(0).normal(size=(6, 8))
    bank[1] = bank[2] = bank[0]
    found = features.nearest_others(bank, [0, 1, 2, 5], 3)
    assert [{*row} for row in found[:3, :2]] == [{1, 2}, {0, 2}, {0, 1}] and 5 not in found[3]
    assert features.nearest_others(bank, [2], 1).tolist() == [[0]]  # equal features have crowded it out
    assert features.nearest_others(bank, [3], 50).shape == (1, 5)


def test_agreement_of_neighbours_is_counted_beside_chance():
    labels = np.array([7, 7, 7, 9, 9])
    share, chance = features.label_agreement(labels, [0, 3], np.array([[1, 3], [4, 0]]))
    assert share == 0.5  # one of two neighbours each
    assert chance == (2 / 4 + 1 / 4) / 2  # of the four others two are 7 like the first, one is 9 like the second


def test_captions_are_drawn_below_neighbours_whatever_they_hold(tmp_path):
    found, images, others = np.array([[1, 2], [3, 0]]), pictures(2), pictures(4, seed=1)
    rows = [[image, *others[row]] for image, row in zip(images, found, strict=True)]
    features.draw_neighbours(tmp_path / "a.png", images, others, found)
    captions = [["a_b$", "<3>", "$x"], ["two\nlines", "", "%"]]
    features.draw_neighbours(tmp_path / "b.png", images, others, found, captions=captions)
    assert len(opened(tmp_path / "b.png", rows)) > len(opened(tmp_path / "a.png", rows)) + 20


def test_a_random_encoder_is_drawn_below_the_trained_one(tmp_path):
    patches = np.random.default_rng(0).normal(size=(2, 2, 64, 8))
    features.draw_pca(tmp_path / "a.png", pictures(2), patches[0], (8, 8))
    features.draw_pca(tmp_path / "b.png", pictures(2), patches[0], (8, 8), patches[1])
    one, two = (opened(tmp_path / name, [pictures(2)]) for name in ("a.png", "b.png"))
    assert len(two) > 1.2 * len(one)
    for below, drawn in zip(patches, (one, two), strict=True):
        assert np.isin(numbered((255 * features.pca_colours(below)).round()), numbered(drawn)).all()
    with pytest.raises(ValueError, match="8x8 grid do not fit"):
        features.draw_pca(tmp_path / "c.png", pictures(2), patches[0], (8, 8), patches[1, :, :9])


def test_similarity_tells_the_halves_of_an_image_apart():
    patches = np.zeros((1, 4, 6, 5), np.float32)  # 4 rows, 6 columns: the left half is one thing, the right another
    patches[0, :, :3, 0], patches[0, :, 3:, 1] = 2.0, 0.5
    patches[0, 3, 5] = 0  # of no direction
    found = similarity.similarities(patches.reshape(1, 24, 5), [0, 5, 23]).reshape(1, 3, 4, 6)
    left = np.repeat([[1.0, 1, 1, 0, 0, 0]], 4, axis=0)
    np.testing.assert_allclose(found[0, 0], left, atol=1e-6)
    np.testing.assert_allclose(found[0, 1, :3], 1 - left[:3], atol=1e-6)
    assert not found[0, 2].any() and found[0, 1, 3, 5] == 0
    random = np.random.default_rng(0).normal(size=(2, 24, 5))
    np.testing.assert_allclose(similarity.similarities(random, range(24))[:, range(24), range(24)], 1, rtol=1e-6)


@pytest.mark.parametrize(("grid", "places"), [((6, 6), [7, 9, 11, 19, 21, 23, 31, 33, 35]), ((1, 2), [0, 1])])
def test_queries_are_spread_over_the_grid(grid, places):
    assert similarity.spread_patches(grid).ravel().tolist() == places


@pytest.mark.parametrize(("grid", "channels"), [((4, 4), 3), ((2, 4), 1), ((1, 1), 3)])
def test_similarity_is_drawn(tmp_path, grid, channels):
    images = pictures(2, channels)[:, : 8 * grid[0], : 8 * grid[1]]
    patches = np.random.default_rng(0).normal(size=(2, grid[0] * grid[1], 5))
    similarity.draw_similarity(tmp_path / "a.png", images, patches, grid)
    picture = opened(tmp_path / "a.png")
    assert pixels_of(picture, similarity._MARK) > 50
    assert pixels_of(picture, (253, 231, 36)) > 500  # the end of the scale: what is marked is like itself
    assert np.isin(numbered(canvas.as_rgb(images)), numbered(picture)).mean() > 0.5  # marks hide some
    with pytest.raises(ValueError, match="3x3 grid do not fit"):
        similarity.draw_similarity(tmp_path / "b.png", images, patches, (3, 3))


def test_padding_does_not_count_in_the_means_of_blocks():
    values, length = np.array([[[1.0, 0.5, -9.0], [0.0, 0.25, 0.5]]]), np.array([[2, 3]])
    np.testing.assert_allclose(prediction.block_means(values, length), [[0.75, 0.25]])
    assert prediction.token_mean(values, length) == pytest.approx((1.5 + 0.75) / 5)


@pytest.mark.parametrize("padded", [False, True])
def test_blocks_are_coloured_by_how_well_they_are_predicted(tmp_path, padded):
    drawn = {
        "context": np.array([[[3, 4]]]),
        "target": np.array([[[0, 1, 1], [14, 15, 15]]]),
        "target_length": np.full((1, 2), 2),
    }
    if padded:
        drawn["context_length"] = np.array([[1]])
    values = np.array([[[1.0, 1.0, 0], [-1.0, -1.0, 0]]])
    prediction.draw_prediction(tmp_path / "a.png", pictures(1, 1)[:, :16], drawn, values, values, 4)
    picture = opened(tmp_path / "a.png")
    for value in (1.0, -1.0):
        assert (picture == prediction._SCALE.colours(value)).all(axis=-1).sum() > 500


def test_a_map_keeps_what_is_apart_apart_and_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    which = np.arange(60) % 3
    points = 30 * np.eye(8)[which] + rng.normal(size=(60, 8))
    found = map.project(points)
    assert next(iter(found)) == "PCA" and all(places.shape == (60, 2) for places in found.values())
    again = map.project(points)
    for name, places in found.items():
        np.testing.assert_array_equal(again[name], places)
        spread = np.linalg.norm(places[:, None] - places[None], axis=-1)
        assert spread[which[:, None] == which].max() < spread[which[:, None] != which].min()
    for labels in ({}, {"kind": which}, {"kind": which, "many": np.arange(60)}):
        map.draw_map(tmp_path / "a.png", found, labels, {"kind": ["_hidden", "$a", "a very long name of some class"]})
        picture = opened(tmp_path / "a.png")
        assert len(picture) > 380 * max(1, len(labels)) and picture.shape[1] > 380 * len(found)
        for colour in map._COLOURS[: 3 if labels else 1]:
            faint = [0.8 * int(colour[i : i + 2], 16) + 0.2 * 255 for i in (1, 3, 5)]
            assert pixels_of(picture, faint, within=2) > 20 * len(found)


def test_classes_that_are_colours_are_drawn_in_them(tmp_path):
    places = {"PCA": np.random.default_rng(0).normal(size=(40, 2))}
    map.draw_map(tmp_path / "a.png", places, {"colour": np.arange(40) % 2}, {"colour": ["magenta", "green"]})
    red, green, blue = np.moveaxis(opened(tmp_path / "a.png").astype(int), -1, 0)
    assert ((red > 250) & (green < 60) & (blue > 250)).sum() > 50


@pytest.mark.parametrize("points", [np.zeros((20, 4)), np.ones((1, 4)), np.arange(12.0).reshape(12, 1)])
def test_a_map_of_collapsed_or_few_features_is_no_error(tmp_path, points):
    found = map.project(points)
    assert all(np.isfinite(places).all() for places in found.values())
    map.draw_map(tmp_path / "a.png", found, {}, {})


def run(steps):
    steady = {"gradient_norm": 0.5, "target_std": 0.4, "learning_rate": 1e-3}
    lines = [{"step": step, "loss": 1 / step, **steady} for step in range(1, steps)]
    lines[1]["loss"] = float("nan")
    lines[2]["loss"] = None
    baselines = {f"baseline/{name}/linear/{task}": 30.0 for name in ("random_init", "pixels") for task in ("count", "shape")}
    probes = [{"step": s, "probe/linear/count": 30 + s, "probe/linear/shape": 40.0, "probe/rankme": 9.0} for s in (0, 5, 10)]
    return lines + [{"step": 0, **baselines}] + probes


def parts(picture, rows, columns):
    """Equal parts of a picture, row by row."""
    return [part for row in np.array_split(picture, rows) for part in np.array_split(row, columns, axis=1)]


@pytest.mark.parametrize("steps", [12, 400])
def test_curves_are_drawn(tmp_path, steps):
    curves.draw_curves(tmp_path / "a.png", run(steps))
    lines = [pixels_of(part, curves._COLOURS[0]) for part in parts(opened(tmp_path / "a.png"), 2, 3)]
    assert min(lines[:5]) > 100 and lines[5] == 0  # loss, feature std, RankMe, norms, learning rate
    curves.draw_probes(tmp_path / "b.png", run(steps), "I-JEPA")
    for part in parts(opened(tmp_path / "b.png"), 1, 2):  # a panel for each task
        for colour in (curves._COLOURS[0], *(colour for _, colour, _ in curves._BASELINES.values())):
            assert pixels_of(part, colour, within=8) > 100


def test_series_is_sorted_and_finite():
    steps, values = curves.series([*run(5)[::-1]], "loss")
    assert steps.tolist() == [1, 4] and values.tolist() == [1, 0.25]


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="no metrics"):
        curves.draw_curves(tmp_path / "a.png", [{"step": 1}])
    with pytest.raises(ValueError, match="no probes"):
        curves.draw_probes(tmp_path / "a.png", run(5)[:3], "I-JEPA")
