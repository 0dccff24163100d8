"""Examples by their number of axes."""

import pytest

from ijepa_jax.settings.axes import each_axis, modality, patch_grid


def test_the_number_of_axes_tells_what_examples_are():
    assert [modality(sizes) for sizes in ((256,), (32, 64), (8, 32, 48))] == ["signal", "image", "video"]
    with pytest.raises(ValueError, match=r"sizes \(1, 2, 3, 4\) have 4 axes: there are signals \(length\), images \(height"):
        modality((1, 2, 3, 4))


def test_one_value_is_for_all_axes():
    assert each_axis(4, 3) == each_axis((4,), 3) == (4, 4, 4) and each_axis((2, 4, 8), 3) == (2, 4, 8)
    with pytest.raises(ValueError, match=r"\(2, 8\) are 2 values for 3 axes: give one for all, or one for each"):
        each_axis((2, 8), 3)


@pytest.mark.parametrize(
    ("sizes", "patch", "grid"),
    [((256,), 16, (16,)), ((32, 64), 8, (4, 8)), ((32, 64), (4, 16), (8, 4)), ((8, 32, 48), (2, 8, 12), (4, 4, 4))],
)
def test_a_grid_has_as_many_patches_along_an_axis_as_it_divides_into(sizes, patch, grid):
    assert patch_grid(sizes, patch) == grid


@pytest.mark.parametrize(
    ("sizes", "patch", "words"),
    [
        ((250,), 16, "signal of 250 values does not divide into patches of 16"),
        ((32, 60), (4, 16), "image of 32x60 pixels does not divide into patches of 4x16"),
        ((7, 32, 32), (2, 8, 8), "video of 7x32x32 frames and pixels does not divide into patches of 2x8x8"),
        ((1, 32, 32), (2, 8, 8), "video of 1x32x32 frames and pixels"),
    ],
)
def test_sizes_that_do_not_divide_are_named(sizes, patch, words):
    with pytest.raises(ValueError, match=words):
        patch_grid(sizes, patch)
