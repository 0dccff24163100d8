import numpy as np
import pytest
from PIL import Image

from ijepa_jax.visualize import curves, features, masks


def opened(path):
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert Image.open(path).format == "PNG"
    assert min(picture.shape[:2]) > 100 and max(picture.shape[:2]) < 4000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    return picture


def pictures(count, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masks_are_drawn(tmp_path, channels):
    target = np.array([[[0, 1, 8, 9], [20, 21, 0, 0]]] * 2)
    masks.draw_masks(tmp_path / "a.png", pictures(2, channels), np.array([[[3, 4, 5]]] * 2), target, [[4, 2]] * 2, 4)
    picture = opened(tmp_path / "a.png")
    for colour in masks._BLOCKS[:2]:  # each target block has its outline
        assert (picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum() > 50


def test_only_seen_patches_are_revealed():
    image = pictures(1)[0].repeat(3, 0).repeat(3, 1)
    seen = masks._patches([0, 9, 63, 62], 3, (8, 8))  # the fourth is padding
    assert seen.sum() == 3
    shown = masks._reveal(image, seen, faintness=1.0)
    kept = (shown == image).all(axis=-1).reshape(8, 12, 8, 12).all(axis=(1, 3))
    np.testing.assert_array_equal(kept, seen)
    np.testing.assert_array_equal(shown[12:24, 0], np.broadcast_to(masks._PAPER, (12, 3)))


def test_masks_out_of_the_grid_are_refused(tmp_path):
    with pytest.raises(ValueError, match="outside the 8x8 grid"):
        masks.draw_masks(tmp_path / "a.png", pictures(1), np.array([[[64]]]), np.array([[[1]]]), [[1]], 4)
    with pytest.raises(ValueError, match="patches of 5"):
        masks.draw_masks(tmp_path / "a.png", pictures(1), np.array([[[3]]]), np.array([[[1]]]), [[1]], 5)
    with pytest.raises(ValueError, match="must be uint8"):
        masks.draw_masks(tmp_path / "a.png", pictures(1) / 255.0, np.array([[[3]]]), np.array([[[1]]]), [[1]], 4)


def test_one_pca_basis_serves_all_images(tmp_path):
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(5, 24))
    which = rng.integers(0, 5, (10, 64))
    colours = features.pca_colours(kinds[which])
    assert colours.min() >= 0 and colours.max() <= 1
    for kind in range(5):  # the same feature has the same colour wherever it is, another one has not
        assert np.ptp(colours[which == kind], axis=0).max() < 1e-6
    assert len(np.unique(colours.reshape(-1, 3).round(3), axis=0)) == 5
    features.draw_pca(tmp_path / "a.png", pictures(10), kinds[which], (8, 8))
    opened(tmp_path / "a.png")


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
    features.draw_neighbours(tmp_path / "a.png", pictures(2, 1), pictures(30, 1), found, ["first", "second"])
    opened(tmp_path / "a.png")
    with pytest.raises(ValueError, match="2 query images but neighbours of 1"):
        features.draw_neighbours(tmp_path / "a.png", pictures(2), pictures(30), found[:1])


def run(steps):
    steady = {"gradient_norm": 0.5, "target_std": 0.4, "learning_rate": 1e-3}
    lines = [{"step": step, "loss": 1 / step, **steady} for step in range(1, steps)]
    lines[1]["loss"] = float("nan")
    lines[2]["loss"] = None
    baselines = {f"baseline/{name}/linear/{task}": 30.0 for name in ("random_init", "pixels") for task in ("count", "shape")}
    probes = [{"step": s, "probe/linear/count": 30 + s, "probe/linear/shape": 40.0, "probe/rankme": 9.0} for s in (0, 5, 10)]
    return lines + [{"step": 0, **baselines}] + probes


@pytest.mark.parametrize("steps", [12, 400])
def test_curves_are_drawn(tmp_path, steps):
    curves.draw_curves(tmp_path / "a.png", run(steps))
    opened(tmp_path / "a.png")
    curves.draw_probes(tmp_path / "b.png", run(steps))
    opened(tmp_path / "b.png")


def test_series_is_sorted_and_finite():
    steps, values = curves.series([*run(5)[::-1]], "loss")
    assert steps.tolist() == [1, 4] and values.tolist() == [1, 0.25]


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="no metrics"):
        curves.draw_curves(tmp_path / "a.png", [{"step": 1}])
    with pytest.raises(ValueError, match="no probes"):
        curves.draw_probes(tmp_path / "a.png", run(5)[:3])
