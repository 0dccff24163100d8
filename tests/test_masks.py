"""Masks are disjoint, in range, of fixed size, a pure function of (seed, index), and distributed as specified."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ijepa_jax.methods.masks import STRATEGIES, MaskSampler

KINDS = {
    "subset": {"context_patches": 48},
    "raster": {"mode": "raster", "context_patches": 48},
    "pad": {"mode": "pad"},
    "reference": {"mode": "reference", "context_patches": 48, "batch_size": 8},
    "contexts": {"context_patches": 40, "num_context_blocks": 3},
    "small context": {"context_patches": 20, "num_context_blocks": 2, "context_scale": (0.3, 0.5), "num_targets": 2},
    "pad contexts": {"mode": "pad", "num_context_blocks": 2, "context_patches": 30},
    "reference contexts": {"mode": "reference", "context_patches": 48, "num_context_blocks": 2, "batch_size": 8},
    "random": {"strategy": "random"},
    "block": {"strategy": "block"},
    "rasterized": {"strategy": "rasterized"},
}
every_kind = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def sampler_of(settings: dict, grid: tuple[int, int] = (14, 14), **more) -> MaskSampler:
    return MaskSampler(grid, **(settings | more))


def assert_sound(sampler: MaskSampler, index: np.ndarray) -> dict[str, np.ndarray]:
    """Checks shapes, dtypes, ranges, order, padding and disjointness of the masks of `index`; returns them."""
    masks = sampler(index)
    context, target, length = masks["context"], masks["target"], masks["target_length"]
    images, patches = len(index), np.prod(sampler.grid)
    assert context.shape == (images, sampler.num_context_blocks, sampler.context_length)
    assert target.shape == (images, sampler.num_targets, sampler.target_length)
    assert length.shape == target.shape[:2]
    assert {array.dtype for array in masks.values()} == {np.dtype(np.int32)}
    assert ("context_length" in masks) == (sampler.mode == "pad")
    context_length = masks.get("context_length", np.full(context.shape[:2], sampler.context_length))
    for cells, count in ((context, context_length), (target, length)):
        assert cells.min() >= 0 and cells.max() < patches
        assert count.min() >= 1 and count.max() <= cells.shape[-1]
        inner = np.arange(1, cells.shape[-1]) < count[..., None]  # pairs of neighbours that are both valid
        np.testing.assert_array_equal(np.diff(cells) > 0, inner)  # ascending, thus unique; then the last one repeated
        assert (np.diff(cells)[~inner] == 0).all()
    assert context_length.min() >= 4
    hidden = np.zeros((images, patches), bool)
    np.put_along_axis(hidden, target.reshape(images, -1), True, -1)
    assert not np.take_along_axis(hidden, context.reshape(images, -1), -1).any()
    return masks


def target_sides(sampler: MaskSampler, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, [B, M], between the outermost cells of each target."""
    return tuple(1 + np.ptp(part, axis=-1) for part in np.divmod(target, sampler.grid[1]))


@every_kind
def test_masks_are_sound(settings):
    sampler = sampler_of(settings)
    masks = assert_sound(sampler, np.arange(400))
    if sampler.strategy != "random":
        height, width = target_sides(sampler, masks["target"])
        np.testing.assert_array_equal(height * width, masks["target_length"])  # distinct cells, as many as the box: a rectangle


@every_kind
def test_largest_target_is_reached_and_never_passed(settings):
    sampler = sampler_of(settings)
    assert sampler(np.arange(2000))["target_length"].max() == sampler.target_length


@pytest.mark.parametrize("grid", [(6, 11), (10, 10), (4, 16)])
@pytest.mark.parametrize("mode", ["pad", "reference"])
def test_largest_target_on_other_grids(grid, mode):
    sampler = MaskSampler(grid, mode=mode, context_patches=8, num_targets=1)
    assert sampler(np.arange(20000))["target_length"].max() == sampler.target_length


def test_targets_are_as_large_as_their_scale():
    """Sides are rounded, each by half a patch at most; on a fine grid that is little."""
    sampler = MaskSampler((64, 64), context_patches=512)
    masks = sampler(np.arange(500))
    height, width = target_sides(sampler, masks["target"])
    share, aspect = height * width / 64**2, height / width
    assert 0.15 * 0.95 < share.min() < 0.152 and 0.198 < share.max() < 0.2 * 1.05
    assert 0.72 < aspect.min() < 0.78 and 1.45 < aspect.max() < 1.56
    assert abs(np.corrcoef(share.ravel(), aspect.ravel())[0, 1]) < 0.1  # scale and aspect are independent
    assert len(np.unique(height[0] * 64 + width[0])) > 1  # each target has its own


@every_kind
def test_pure_in_seed_and_index(settings):
    sampler, index = sampler_of(settings), np.random.default_rng(0).integers(0, 2**40, 60)
    whole = sampler(index)
    order = np.random.default_rng(1).permutation(len(index))
    parts = [sampler_of(settings)(index[order[start : start + 7]]) for start in range(0, len(index), 7)]
    other = sampler_of(settings, seed=1)(index)
    for name, value in whole.items():
        np.testing.assert_array_equal(value[order], np.concatenate([part[name] for part in parts]))
    assert (whole["context"] != other["context"]).any(axis=(1, 2)).mean() > 0.7  # a quarter share the rasterized quadrant
    assert sampler(index[:0])["context"].shape[0] == 0


def test_masks_of_an_image_stay_what_they_are():
    """Golden values: another draw would be another one for every run that goes on."""
    masks = MaskSampler((6, 6), context_patches=9, num_targets=2)(np.array([5]))
    assert masks["context"].tolist() == [[[1, 5, 9, 10, 15, 23, 28, 29, 33]]]
    assert masks["target"][..., :6].tolist() == [[[12, 13, 14, 18, 19, 20], [19, 20, 25, 26, 31, 32]]]
    scattered = MaskSampler((6, 6), strategy="random")(np.array([5]))["context"]
    assert scattered.tolist() == [[[0, 2, 6, 8, 9, 10, 13, 14, 15, 21, 24, 25, 28, 35]]]


def test_images_differ():
    context = MaskSampler((14, 14), context_patches=48)(np.arange(1000))["context"]
    assert len(np.unique(context[:, 0], axis=0)) == 1000


@pytest.mark.parametrize("grid", [(4, 4), (5, 9), (7, 7), (9, 4), (8, 32), (32, 8), (13, 17), (37, 37), (64, 64)])
def test_any_grid(grid):
    quarter = grid[0] * grid[1] // 4
    for mode in ("subset", "raster", "pad", "reference"):
        assert_sound(MaskSampler(grid, mode=mode, context_patches=quarter), np.arange(40))
    for strategy in STRATEGIES[1:]:
        assert_sound(MaskSampler(grid, strategy=strategy), np.arange(40))


@pytest.mark.parametrize("grid", [(4,), (17,), (64,), (1, 4, 4), (2, 5, 7), (4, 8, 8)])
def test_grids_of_one_and_three_axes(grid):
    quarter = np.prod(grid) // 4
    index = np.arange(60)
    for mode in ("subset", "raster", "pad"):
        if len(grid) == 1 and grid[0] < 8:
            continue  # too short for four patches beside a target
        sampler = MaskSampler(grid, mode=mode, context_patches=max(4, quarter), num_context_blocks=2)
        masks = assert_sound(sampler, index)
        for cells, length in zip(masks["target"].reshape(240, -1), masks["target_length"].ravel(), strict=True):
            corners = np.stack(np.unravel_index(cells[:length], grid))
            sides = np.ptp(corners, axis=1) + 1
            assert sides.prod() == length  # a block
            assert len(grid) == 1 or sides[0] == grid[0]  # a tube
    for strategy in STRATEGIES[1:]:
        if np.prod(grid) > 10:
            assert_sound(MaskSampler(grid, strategy=strategy), index)
    if len(grid) == 3:
        flat = MaskSampler(grid[1:], context_patches=4)(index)
        deep = MaskSampler(grid, context_patches=4)(index)
        lengths = flat["target_length"]  # the same draws, through time
        np.testing.assert_array_equal(deep["target_length"], lengths * grid[0])
        for part in range(4):
            first = np.take_along_axis(flat["target"][:, part], np.zeros((60, 1), int), 1)
            np.testing.assert_array_equal(deep["target"][:, part, :1], first)


def test_blocks_last_for_a_share_of_the_steps():
    sampler = MaskSampler((10, 6, 6), context_patches=40, target_duration=(0.3, 0.61))
    masks = assert_sound(sampler, np.arange(2000))
    begins, lasts = [], []
    for cells, length in zip(masks["target"].reshape(8000, -1), masks["target_length"].ravel(), strict=True):
        step = cells[:length] // 36
        begins.append(step[0])
        lasts.append(step[-1] - step[0] + 1)
    last, count = np.unique(lasts, return_counts=True)
    np.testing.assert_array_equal(last, [3, 4, 5, 6])
    np.testing.assert_allclose(count[:3] / 8000, 0.1 / 0.31, atol=0.03)  # five standard deviations
    assert {*begins} == {*range(8)}
    rows = masks["target"][..., 0] % 36 // 6
    assert abs(np.corrcoef(np.reshape(begins, (2000, 4)).ravel(), rows.ravel())[0, 1]) < 0.1  # drawn apart
    context_steps = np.bincount((masks["context"] // 36).ravel(), minlength=10) / 2000
    assert context_steps.min() > 2 and context_steps.max() < 6  # contexts last for all steps


@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("grid", [(10,), (50,), (14, 14), (7, 9), (3, 5, 5)])
def test_random_hides_the_share_that_is_asked_for(grid, ratio):
    """MAE keeps int(N * (1 - ratio)) patches."""
    patches = int(np.prod(grid))
    if int(patches * (1 - ratio)) < 4:
        pytest.skip("leaves too few patches")
    near = MaskSampler(grid, strategy="random", mask_ratio=ratio)
    assert near.target_length == round(ratio * patches) and near.context_length == patches - near.target_length
    down = MaskSampler(grid, strategy="random", mask_ratio=ratio, keep_rounds_down=True)
    assert down.context_length == int(patches * (1 - ratio)) and down.target_length == patches - down.context_length
    masks = assert_sound(down, np.arange(50))
    assert (np.sort(np.concatenate([masks["context"], masks["target"]], -1)) == np.arange(patches)).all()


def test_block_hides_the_share_that_is_asked_for():
    for ratio in (0.3, 0.6):
        length = MaskSampler((14, 14), strategy="block", mask_ratio=ratio)(np.arange(500))["target_length"].mean()
        np.testing.assert_allclose(length / 196, ratio, atol=0.03)


def test_tubes_hide_the_same_patches_at_every_step():
    sampler = MaskSampler((4, 5, 6), strategy="random", mask_ratio=0.75, tubes=True)
    masks = assert_sound(sampler, np.arange(300))
    hidden = np.zeros((300, 120), bool)
    np.put_along_axis(hidden, masks["target"][:, 0], True, 1)
    steps = hidden.reshape(300, 4, 30)
    assert (steps == steps[:, :1]).all() and (steps.sum(-1) == round(0.75 * 30)).all()
    np.testing.assert_allclose(steps[:, 0].mean(0), 22 / 30, atol=0.13)  # five standard deviations
    scattered = MaskSampler((4, 5, 6), strategy="random", mask_ratio=0.75)(np.arange(300))["target"]
    assert (np.sort(masks["target"]) != np.sort(scattered)[..., : sampler.target_length]).any()


def test_halves_of_a_length_are_context_and_target():
    masks = MaskSampler((16,), strategy="rasterized")(np.arange(1000))
    assert masks["target"].shape == (1000, 1, 8) and MaskSampler((17,), strategy="rasterized").target_length == 9
    first, count = np.unique(masks["context"][:, 0, 0], return_counts=True)
    np.testing.assert_array_equal(first, [0, 8])
    np.testing.assert_allclose(count / 1000, 0.5, atol=0.08)


def test_every_square_grid_has_a_sampler():
    for side in range(4, 65):
        for mode in ("subset", "reference"):
            sampler = MaskSampler((side, side), mode=mode, context_patches=side * side // 4)
            assert sampler(np.arange(2))["context"].shape == (2, 1, side * side // 4)


@pytest.mark.parametrize("grid", [(8, 32), (32, 8)])
def test_context_is_extended_on_a_non_square_grid(grid):
    """A side of 0.85 of the area's root does not fit 8 rows; the block keeps its area along the columns instead."""
    seen = {}
    for mode in ("pad", "reference"):  # the released code cuts it
        found = MaskSampler(grid, mode=mode, context_patches=30).blocks(np.arange(300), 4)
        seen[mode] = (found.available[:, 0] | found.union).sum(1)
    assert seen["pad"].min() >= 8 * 27
    assert seen["reference"].max() <= 7 * 31 and seen["reference"].min() < 8 * 15


def test_a_scale_without_a_range_is_one_size_for_the_reference_too():
    for scale in (0.2, 0.15):
        sampler = MaskSampler((10, 10), mode="reference", context_patches=20, target_scale=(scale, scale), num_targets=1)
        length = assert_sound(sampler, np.arange(500))["target_length"]
        assert abs(length.mean() - 100 * scale) < 2 and length.max() == sampler.target_length


@pytest.mark.parametrize("mode", ["subset", "raster"])
def test_subset_is_uniform_and_raster_is_not(mode):
    sampler, index = MaskSampler((14, 14), mode=mode, context_patches=48), np.arange(15000)
    available = sampler.blocks(index, 48).available[:, 0]
    expected = (available * (48 / available.sum(-1, keepdims=True))).sum(0)
    kept = np.bincount(sampler(index)["context"].ravel(), minlength=196)
    by_row = kept.reshape(14, 14).sum(1) / expected.reshape(14, 14).sum(1)
    if mode == "subset":  # about 60,000 draws a row and 4,000 a cell: five standard deviations
        np.testing.assert_allclose(by_row, 1, atol=0.015)
        np.testing.assert_allclose(kept / expected, 1, atol=0.08)
    else:
        assert by_row[0] > 1.2 and by_row[-1] < 0.2


def test_context_blocks_are_drawn_apart_and_exclude_the_same_targets():
    sampler = MaskSampler((14, 14), context_patches=40, num_context_blocks=3)
    blocks = sampler.blocks(np.arange(500), 40)
    assert not (blocks.available & blocks.union[:, None]).any()
    context = sampler(np.arange(500))["context"]
    assert (context[:, 0] != context[:, 1]).any(-1).all() and (context[:, 1] != context[:, 2]).any(-1).all()
    assert (blocks.available[:, 0] != blocks.available[:, 1]).any(-1).mean() > 0.5


@pytest.mark.parametrize(("grid", "count", "areas"), [(14, 5, (30, 40)), (16, 6, (35, 54))])
def test_reference_draws_few_sizes(grid, count, areas):
    """One uniform number for both scale and aspect leaves few sizes: on 14x14 5x6, 6x5, 6x6, 7x5 and 8x5."""
    sampler = MaskSampler((grid, grid), mode="reference", context_patches=48)
    height, width = target_sides(sampler, sampler(np.arange(4000))["target"])
    seen = set(zip(height.ravel().tolist(), width.ravel().tolist(), strict=True))
    assert len(seen) == count
    assert (min(h * w for h, w in seen), max(h * w for h, w in seen)) == areas
    if grid == 14:
        assert seen == {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def test_reference_shares_sizes_by_batch():
    sampler = MaskSampler((14, 14), mode="reference", context_patches=48, batch_size=8)
    length = sampler(np.arange(400 * 8))["target_length"].reshape(400, -1)
    np.testing.assert_array_equal(length, np.broadcast_to(length[:, :1], length.shape))
    np.testing.assert_array_equal(np.unique(length), [30, 35, 36, 40])


def test_guaranteed_context_is_reached_by_the_fallback():
    """Contexts as long as the settings guarantee leave the corner fallback as the only way for nearly every image."""
    for settings in ({}, {"mode": "reference"}, {"num_context_blocks": 2}):
        limit = 129 if "mode" in settings else 139
        sampler = MaskSampler((14, 14), context_patches=limit, tries=2, **settings)
        masks = assert_sound(sampler, np.arange(500))
        shared = (masks["target"] == masks["target"][:, :1]).all((1, 2))
        assert shared.mean() > 0.9
        corners = np.unique(masks["target"][shared, 0, 0])
        assert len(corners) > 4  # all four corners, and several sizes
        with pytest.raises(ValueError, match=f"context_patches is {limit + 1}.*guarantee {limit}"):
            MaskSampler((14, 14), context_patches=limit + 1, **settings)


def test_a_context_that_targets_need_not_touch_is_guaranteed_whole():
    """7x7 in one corner of 14x14, targets of at most 8x7 in the opposite one."""
    assert_sound(MaskSampler((14, 14), context_patches=49, context_scale=(0.25, 0.25)), np.arange(200))
    with pytest.raises(ValueError, match="guarantee 49: give 4 to 49"):
        MaskSampler((14, 14), context_patches=50, context_scale=(0.25, 0.25))


def test_before_corners_targets_share_one_block_anywhere():
    sampler, index = MaskSampler((14, 14), context_patches=132, tries=1), np.arange(2000)
    target = sampler(index)["target"]
    shared = target[(target == target[:, :1]).all((1, 2)), 0]
    sides = (np.divmod(shared, 14)[axis] for axis in (0, 1))
    in_corner = np.logical_and(*(((side == 0) | (side == 13)).any(1) for side in sides))
    assert len(shared) > 1900 and 0.01 < in_corner.mean() < 0.5


@pytest.mark.parametrize("grid", [(6, 6), (7, 7), (5, 9)])
def test_pad_keeps_every_context_patch_and_its_length_is_attained(grid):
    sampler, index = MaskSampler(grid, mode="pad", num_targets=1), np.arange(20000)
    length = sampler(index)["context_length"]
    np.testing.assert_array_equal(length, sampler.blocks(index, 4).available.sum(-1))
    assert length.max() == sampler.context_length
    assert MaskSampler(grid, mode="pad", context_patches=12)(index)["context_length"].min() >= 12


def test_strategies():
    index = np.arange(3000)
    random, block, raster = (MaskSampler((14, 14), strategy=name) for name in STRATEGIES[1:])
    assert (random.num_targets, block.num_targets, raster.num_targets) == (1, 1, 3)
    assert (random.target_length, random.context_length) == (118, 78)
    cells = np.bincount(random(index)["target"].ravel(), minlength=196) / len(index)
    np.testing.assert_allclose(cells, 118 / 196, atol=0.045)  # five standard deviations
    assert 105 < block(index)["target_length"].mean() < 130  # 0.6 of the grid is 117
    blocks = block.blocks(index, 4)
    assert (blocks.available[:, 0] ^ blocks.union).all()
    masks = raster(index)
    assert (raster.context_length, raster.target_length) == (49, 49)
    first, count = np.unique(masks["context"][:, 0, 0], return_counts=True)
    np.testing.assert_array_equal(first, [0, 7, 98, 105])
    np.testing.assert_allclose(count / len(index), 0.25, atol=0.04)
    cells = np.concatenate([masks["context"], masks["target"]], axis=1).reshape(len(index), -1)
    np.testing.assert_array_equal(np.sort(cells), np.broadcast_to(np.arange(196), cells.shape))  # all four quadrants
    odd = MaskSampler((5, 9), strategy="rasterized")
    assert (odd.context_length, odd.target_length) == (8, 15)
    assert MaskSampler((14, 14), strategy="block", context_patches=30)(index)["context"].shape == (3000, 1, 30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"context_patches must be given.*48 on 14x14, 72 on 16x16, 272 on 28x28"),
        ({"context_patches": 3}, r"context_patches is 3;.*give 4 to 139"),
        ({"context_patches": 140}, r"context_patches is 140;.*guarantee 139"),
        ({"mode": "pad", "context_patches": 150}, r"context_patches is 150;.*guarantee 139"),
        ({"strategy": "rasterized", "context_patches": 50}, r"context_patches is 50;.*guarantee 49"),
        ({"strategy": "multi"}, r"strategy is 'multi'; valid are multiblock, random, block, rasterized"),
        ({"mode": "cut"}, r"mode is 'cut'; valid are subset, raster, pad, reference"),
        ({"strategy": "block", "mode": "pad"}, r"mode is 'pad'; strategy 'block' takes 'subset'"),
        ({"strategy": "block", "num_context_blocks": 2}, r"num_context_blocks is 2; strategy 'block' takes 1"),
        ({"grid": (3, 14)}, r"grid is \(3, 14\)"),
        ({"grid": (14, 3)}, r"grid is \(14, 3\); it must be of one, two or three axes: length from 4 to 65536; rows from 4 to"),
        ({"grid": (2, 4, 4, 4)}, r"grid is \(2, 4, 4, 4\)"),
        ({"grid": (3,)}, r"grid is \(3,\)"),
        (
            {"grid": (2, 14, 14), "mode": "reference", "context_patches": 48},
            r"mode 'reference' is for grids of two axes, not \(2,",
        ),
        ({"mask_ratio": 1.0, "strategy": "random"}, r"mask_ratio is 1.0; it must be between 0 and 1"),
        ({"mask_ratio": 0.002, "strategy": "random"}, r"mask_ratio is 0.002, which hides none of 196 patches"),
        (
            {"mask_ratio": 0.99, "strategy": "random"},
            r"mask_ratio 0.99 can leave 2 context patches on a 14x14 grid; at least 4",
        ),
        (
            {"mask_ratio": 0.9, "strategy": "block", "grid": (16,)},
            r"mask_ratio 0.9 can leave 2 context patches on a grid of 16;",
        ),
        ({"target_duration": (0.0, 1.0), "grid": (4, 8, 8)}, r"target_duration is \(0.0, 1.0\); it must be"),
        (
            {"target_duration": (0.5, 1.0)},
            r"target_duration is \(0.5, 1.0\), and acts only on blocks, on grids with steps",
        ),
        (
            {"tubes": True},
            r"tubes is True, and acts only with the strategy 'random', on grids with steps of time: leave it",
        ),
        ({"mask_ratio": 0.7}, r"mask_ratio is 0.7, and acts only with the strategies 'random' and 'block': leave it 0.6"),
        ({"keep_rounds_down": True, "strategy": "block"}, r"keep_rounds_down is True, and acts only with the strategy"),
        (
            {"target_aspect": (0.1, 0.2), "grid": (64,)},
            r"target_aspect is \(0.1, 0.2\), and acts only on grids with rows",
        ),
        ({"num_targets": 0}, r"num_targets is 0; it must be at least 1"),
        ({"tries": 0}, r"tries is 0"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"num_context_blocks": 0}, r"num_context_blocks is 0"),
        ({"target_scale": (0.3, 0.2)}, r"target_scale is \(0.3, 0.2\)"),
        ({"target_scale": (0.001, 0.2)}, r"target_scale is \(0.001, 0.2\).*1/196"),
        ({"context_scale": (0.9, 1.2)}, r"context_scale is \(0.9, 1.2\)"),
        ({"target_aspect": (0.0, 1.5)}, r"target_aspect is \(0.0, 1.5\)"),
        ({"target_scale": (0.9, 1.0), "target_aspect": (1.0, 1.0)}, r"masks.target_scale.*at least 4 are needed"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        MaskSampler(**({"grid": (14, 14)} | settings))
    assert "\n" not in str(error.value)


def test_wrong_index_is_refused():
    sampler = MaskSampler((14, 14), context_patches=48)
    for index in (np.zeros(3), np.int64(3), np.zeros((2, 2), int)):
        with pytest.raises(ValueError, match="index must be a one-dimensional array of integers"):
            sampler(index)


def statistics(*arguments: str) -> dict:
    root = Path(__file__).parents[1]
    command = [sys.executable, "tests/mask_statistics.py", *arguments]
    return json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(
    ("grid", "batch", "before", "after", "union"),
    [(14, 128, 81.6, 50.3, 87.4), (16, 128, 110.1, 68.8, 114.9), (28, 64, 360, 245, 354)],
)
def test_reference_statistics(grid, batch, before, after, union):
    """Means of long runs of the released code; sizes shared by a batch make short runs scatter by a few per cent."""
    found = statistics("--grid", str(grid), "--batch", str(batch), "--batches", "300", "--mode", "reference")
    assert found["context_before_cut_mean"] == pytest.approx(before, rel=0.03)
    assert found["context_after_cut_mean"] == pytest.approx(after, rel=0.06)
    assert found["union_of_targets_mean"] == pytest.approx(union, rel=0.03)
    for coverage in (np.array(found["coverage_context"]), np.array(found["coverage_target"])):
        assert coverage[-1].max() == 0 == coverage[:, -1].max()
        assert coverage[:-1, :-1].min() > 0


def test_statistics_tool_reports_every_cell_covered():
    found = statistics("--grid", "14", "--batch", "64", "--batches", "40")
    assert set(found) == {
        "context_before_cut_mean",
        "context_after_cut_mean",
        "target_lengths",
        "union_of_targets_mean",
        "coverage_context",
        "coverage_target",
        "microseconds_per_image",
    }
    assert found["context_after_cut_mean"] == 48
    assert sum(found["target_lengths"].values()) == pytest.approx(1)
    assert np.shape(found["coverage_context"]) == np.shape(found["coverage_target"]) == (14, 14)
    assert np.min(found["coverage_context"]) > 0.02 and np.min(found["coverage_target"]) > 0.02
