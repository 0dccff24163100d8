"""Decoding of every kind of file, and crops that are Pillow's and torchvision's to the pixel."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ijepa_jax.data import images

ASPECT = (3 / 4, 4 / 3)


def _picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth picture, so that JPEG and WebP keep it nearly as it is."""
    y, x, c = np.mgrid[:height, :width, :channels]
    return (128 + 100 * np.sin(x / 9 + c) * np.cos(y / 7 - c)).astype(np.uint8)


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("JPEG", 3), ("WEBP", 4)])
def test_rgb_and_grey_files_become_as_many_channels_as_asked(kind, tolerance):
    rgb = _picture(30, 41)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    for pixels in (rgb, grey):
        data = _encode(Image.fromarray(pixels), kind, quality=98)
        for channels, expected in ((1, grey[..., None]), (3, rgb if pixels is rgb else np.repeat(grey[..., None], 3, -1))):
            decoded = images.decode(data, channels)
            assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
            assert np.abs(decoded.astype(int) - expected).mean() <= tolerance


def test_transparent_images_stand_on_white():
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (200, 100, 50, 255)
    rgba[:, 3:] = (7, 8, 9, 0)
    decoded = images.decode(_encode(Image.fromarray(rgba), "PNG"), 3)
    assert (decoded[:, :3] == (200, 100, 50)).all() and (decoded[:, 3:] == 255).all()
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert (images.decode(_encode(grey_alpha, "PNG"), 1)[:, 3:] == 255).all()
    np.testing.assert_array_equal(images.decode(rgba, 3), decoded)


def test_palette_images_take_their_colours_and_transparency():
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    assert (images.decode(_encode(palette, "PNG"), 3) == (10, 20, 30)).all()
    assert (images.decode(_encode(palette, "PNG", transparency=1), 3) == 255).all()


def test_cmyk_jpeg_and_16_bit_png():
    cmyk = Image.fromarray(_picture(16, 16)).convert("CMYK")
    decoded = images.decode(_encode(cmyk, "JPEG", quality=98), 3)
    assert np.abs(decoded.astype(int) - np.asarray(cmyk.convert("RGB"))).mean() < 4
    deep = np.array([[0, 257, 32768], [65535, 514, 1000]], np.uint16)
    assert images.decode(_encode(Image.fromarray(deep), "PNG"), 1)[..., 0].tolist() == [[0, 1, 128], [255, 2, 4]]


def test_exif_orientation_is_applied_and_a_damaged_block_ignored():
    pixels = _picture(20, 36)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = images.decode(_encode(Image.fromarray(pixels), "PNG", exif=exif), 3)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))
    damaged = _encode(Image.fromarray(pixels), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00")
    assert images.decode(damaged, 3).shape == (20, 36, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_data_raise_one_line(kind):
    data = _encode(Image.fromarray(_picture(64, 64)), kind)
    for broken in (data[: len(data) // 2], data[:20], b"", b"no image at all"):
        with pytest.raises(images.BadImage) as caught:
            images.decode(broken, 3)
        assert "\n" not in str(caught.value)


def test_arrays_pass_through_or_are_converted():
    rgb, many = _picture(5, 6), _picture(5, 6, 7)
    assert images.decode(rgb, 3) is rgb
    assert images.decode(many, 7) is many
    assert images.decode(rgb[..., 0], 1).shape == (5, 6, 1)
    assert images.decode(rgb[..., :1], 3).shape == (5, 6, 3)
    np.testing.assert_array_equal(images.decode(rgb, 1)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
    for wrong, channels in ((rgb / 255, 3), (many, 3), (rgb, 2), (rgb[:0], 3), (rgb[0, 0], 3)):
        with pytest.raises(images.BadImage):
            images.decode(wrong, channels)


def test_crop_boxes_have_the_area_aspect_and_place_of_random_resized_crop():
    uniforms = np.random.default_rng(0).random((4000, images.CROP_UNIFORMS)).tolist()
    height, width = 300, 400
    boxes = np.array([images.random_resized_crop_box(height, width, u, (0.3, 1.0), ASPECT) for u in uniforms])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    area = h * w / (height * width)
    assert 0.298 < area.min() < 0.31 and area.max() > 0.9
    assert 0.74 < (w / h).min() < 0.76 and 1.32 < (w / h).max() < 1.35
    # Small crops fit at any aspect, so that their log aspect is uniform, and their place too.
    u = np.random.default_rng(1).random((4000, images.CROP_UNIFORMS)).tolist()
    top, left, h, w = np.array([images.random_resized_crop_box(999, 999, row, (0.05, 0.1), ASPECT) for row in u]).T
    assert abs(np.log(w / h).mean()) < 0.01 and abs(np.log(w / h).std() - np.log(16 / 9) / 12**0.5) < 0.01
    assert abs((h * w / 999**2).mean() - 0.075) < 0.001
    assert abs((top / (999 - h)).mean() - 0.5) < 0.02 and abs((left / (999 - w)).mean() - 0.5) < 0.02
    corners = [images.random_resized_crop_box(50, 50, [0.0, 0.5] * 10 + [end, end], (0.25, 1), (1, 1)) for end in (0, 1 - 1e-9)]
    assert corners == [(0, 0, 25, 25), (25, 25, 25, 25)]


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 1000, (0, 493, 10, 13)), (1000, 12, (492, 0, 16, 12)), (1, 1, (0, 0, 1, 1))]
)
def test_crop_falls_back_to_the_largest_central_box(height, width, box):
    too_large = [0.999] * images.CROP_UNIFORMS
    assert images.random_resized_crop_box(height, width, too_large, (1.0, 1.1), ASPECT) == box


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_resize_equals_pillow(channels):
    picture = _picture(75, 100, channels)
    pillow = Image.fromarray(picture.squeeze())
    for top, left, h, w in ((0, 0, 75, 100), (3, 7, 60, 51), (10, 20, 9, 13), (74, 99, 1, 1)):
        for size in ((32, 32), (24, 48), (h, w)):
            expected = np.asarray(pillow.crop((left, top, left + w, top + h)).resize(size[::-1], Image.Resampling.BILINEAR))
            ours = images.crop_resize(picture, (top, left, h, w), size)
            np.testing.assert_array_equal(ours, expected.reshape(*size, channels))


def test_resize_treats_further_channels_one_by_one():
    picture = _picture(20, 30, 4)
    resized = images.resize(picture, (8, 8))
    for c in range(4):
        np.testing.assert_array_equal(resized[..., c], images.resize(picture[..., c : c + 1], (8, 8))[..., 0])


def test_center_crop_is_resize_short_side_and_crop():
    picture = _picture(375, 500)
    ours = images.center_crop(picture, (224, 224), 0.875)
    resized = Image.fromarray(picture).resize((341, 256), Image.Resampling.BILINEAR)
    expected = resized.crop((58, 16, 282, 240))  # round((341 - 224) / 2) is 58
    np.testing.assert_array_equal(ours, np.asarray(expected))
    assert images.center_crop(picture, (96, 200), 0.9).shape == (96, 200, 3)
    assert images.center_crop(picture.transpose(1, 0, 2), (96, 200)).shape == (96, 200, 3)
    np.testing.assert_array_equal(images.center_crop(picture, (75, 100)), images.resize(picture, (75, 100)))
    assert images.resize(picture, (375, 500)) is picture
    np.testing.assert_array_equal(images.center_crop(picture, (375, 500)), picture)


def test_flip_mirrors_the_columns():
    picture = _picture(4, 5)
    np.testing.assert_array_equal(images.flip(picture)[:, 0], picture[:, -1])


def test_color_jitter_follows_its_uniforms():
    picture = _picture(16, 16)
    middle, order = [0.5] * 4, [0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(images.color_jitter(picture, middle + order, 0.4, 0.4, 0.4, 0.0), picture, atol=1)
    bright = images.color_jitter(picture, [1.0, 0.5, 0.5, 0.5] + order, 0.5, 0, 0, 0)
    np.testing.assert_array_equal(bright, np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(1.5)))
    both = [0.9, 0.1, 0.5, 0.5]
    forward = images.color_jitter(picture, both + order, 0.8, 0.8, 0, 0)
    backward = images.color_jitter(picture, both + order[::-1], 0.8, 0.8, 0, 0)
    assert (forward != backward).any()
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    turned = images.color_jitter(red, [0.5, 0.5, 0.5, 1.0] + order, 0, 0, 0, 1 / 3)
    assert turned[0, 0].argmax() == 1 and turned[0, 0, 0] < 10  # a third of the circle from red is green
    assert images.color_jitter(picture[..., :1], [0.9] * 8, 0.4, 0.4, 0.4, 0.1).shape == (16, 16, 1)
    with pytest.raises(ValueError, match="2 channels"):
        images.color_jitter(picture[..., :2], [0.5] * 8, 0.1, 0, 0, 0)
