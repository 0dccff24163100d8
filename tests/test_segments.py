"""The class of a patch is that of most of its pixels."""

import numpy as np
import pytest

from ijepa_jax.data import segments


def test_patches_have_the_class_of_most_of_their_pixels_and_the_lowest_of_equals():
    image = np.array([[2, 2, 1, 0, 7, 7], [2, 0, 0, 1, 7, 3], [0, 1, 5, 4, 3, 3], [2, 3, 4, 5, 255, 255]], np.uint8)
    found = segments.patch_classes(image[None], (2, 3))
    assert found.dtype == np.int64 and found.tolist() == [[2, 0, 7, 0, 4, 3]]
    assert segments.patch_classes(image[None], (1, 1)).tolist() == [[0]]
    np.testing.assert_array_equal(segments.patch_classes(image[None], (4, 6)), image.reshape(1, 24))


def test_patches_are_in_the_order_of_tokens_for_any_grid_and_any_number_of_images():
    classes = np.random.default_rng(0).integers(0, 200, (7, 3, 5))
    masks = classes.repeat(4, 1).repeat(2, 2)
    masks[:, ::4, ::2] = 0  # an eighth of each patch
    np.testing.assert_array_equal(segments.patch_classes(masks.astype(np.uint8), (3, 5)), classes.reshape(7, 15))
    assert segments.patch_classes(masks[:0], (3, 5)).shape == (0, 15)


@pytest.mark.parametrize("grid", [(5, 4), (4, 5), (24, 12)])
def test_grids_that_do_not_divide_the_image_are_refused(grid):
    with pytest.raises(ValueError, match=f"12 x 12 pixels do not divide into {grid[0]} x {grid[1]} patches"):
        segments.patch_classes(np.zeros((2, 12, 12), np.uint8), grid)
