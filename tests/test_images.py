"""Decoding of every kind of file, and crops that are Pillow's and torchvision's to the pixel."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

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


def _png(pixels: np.ndarray, depth: int, transparent: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A grey [H, W] or RGB [H, W, 3] PNG of 1 to 16 bits, with the colour that is transparent, or saying another size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = (pixels.reshape(len(pixels), -1, 1) >> np.arange(depth)[::-1] & 1).reshape(len(pixels), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits.astype(np.uint8), axis=1))
    height, width = size or pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _by_pillow(image: Image.Image, mode: str) -> np.ndarray:
    """Pillow's own conversion of an upright 8-bit image."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert(mode)).reshape(*image.size[::-1], -1)


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


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_png_is_white_where_it_has_the_transparent_colour(depth):
    top = 2**depth - 1
    for key in {0, top // 3, 0x1234 & top, top}:
        grey = np.random.default_rng(0).integers(0, top + 1, (19, 23))
        grey[:4] = key
        expected = np.where(grey == key, 255, (grey * 255 + top // 2) // top)[..., None]
        data = _png(grey, depth, struct.pack(">H", key))
        again = Image.open(io.BytesIO(data))
        again.load()
        for channels in (1, 3):
            for given in (data, Image.open(io.BytesIO(data)), again):
                np.testing.assert_array_equal(images.decode(given, channels), expected.repeat(channels, -1))


@pytest.mark.parametrize("depth", [8, 16])
def test_an_rgb_png_is_white_where_it_has_the_transparent_colour(depth):
    top = 2**depth - 1
    for key in ((0, 0, 0), (1, 2, 200), (0x1234 & top, 0x4321 & top, 77), (top, top, top)):
        rgb = np.random.default_rng(0).integers(0, top + 1, (19, 23, 3))
        rgb[:4] = key
        shown = np.where((rgb == key).all(-1, keepdims=True), 255, rgb >> depth - 8).astype(np.uint8)
        data = _png(rgb, depth, struct.pack(">HHH", *key))
        opened = Image.open(io.BytesIO(data))
        tells = depth == 8 or max(key) > 255  # of how many bits the key is, when the pixels have been read
        for given in (data, opened, *([opened] if tells else [])):
            np.testing.assert_array_equal(images.decode(given, 3), shown)
        np.testing.assert_array_equal(images.decode(data, 1)[..., 0], np.asarray(Image.fromarray(shown).convert("L")))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "F"])
def test_pillow_images_and_files_of_them_are_converted_as_pillow_does(mode, channels):
    image = Image.fromarray(_picture(20, 31, 4)).convert("RGBA" if mode in ("LA", "La", "PA", "RGBA", "RGBa") else "RGB")
    image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    target = "L" if channels == 1 else "RGB"
    expected = _by_pillow(image.convert("LA") if mode == "La" else image, target)
    np.testing.assert_array_equal(images.decode(image, channels), expected)
    for kind in images.FORMATS:
        try:
            data = _encode(image, kind)
        except (OSError, ValueError, KeyError):
            continue  # the format has no such mode
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            if opened.mode != "F":
                np.testing.assert_array_equal(images.decode(data, channels), _by_pillow(opened, target))
            np.testing.assert_array_equal(images.decode(data, channels), images.decode(opened, channels))


def test_16_bits_are_scaled_in_files_and_pillow_images_of_any_byte_order():
    deep = np.random.default_rng(0).integers(0, 65536, (9, 13), np.uint16)
    expected = ((deep.astype(np.int64) * 255 + 32767) // 65535)[..., None]
    for image in (
        Image.fromarray(deep), Image.fromarray(deep.astype(">u2")), Image.fromarray(deep.astype(np.int32)),
        *(Image.frombytes(mode, (13, 9), deep.astype("<u2").tobytes()) for mode in ("I;16", "I;16L")),
    ):  # fmt: skip
        np.testing.assert_array_equal(images.decode(image, 1), expected)
        for data in (_encode(image, "TIFF"), _png(deep, 16)):
            np.testing.assert_array_equal(images.decode(data, 3), expected.repeat(3, -1))


def _tiff(data: bytes, width: int, height: int, bits: int, white_is_zero: bool) -> bytes:
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, not white_is_zero),
        (273, 8),
        (277, 1),
        (279, len(data)),
    ]
    packed = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value) for tag, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + packed + bytes(4)


def test_tiff_files_of_12_bits_and_of_white_that_is_zero():
    assert images.decode(_tiff(bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10]), 4, 1, 12, False), 1).ravel().tolist() == [
        0,
        128,
        255,
        1,
    ]
    for bits, data in ((8, [0, 100, 255]), (16, [0, 0, 0, 100, 255, 255])):
        assert images.decode(_tiff(bytes(data), 3, 1, bits, True), 1).ravel().tolist() == [255, 155, 0]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.float32([[0, 0.5, 1]]), r"float pixels of 0 \.\. 1 have no certain range"),
        (np.float32([[0, 1000]]), r"float pixels of 0 \.\. 1000 "),
        (np.float32([[-1, 1]]), r"float pixels of -1 \.\. 1 "),
        (np.float32([[np.nan, 3]]), "float pixels of nan"),
        (np.int32([[0, 70000]]), r"whole numbers of 0 \.\. 70000 are no pixels: scale them to 0 \.\. 65535"),
        (np.int32([[-5, 70]]), r"whole numbers of -5 \.\. 70 "),
    ],
)
def test_pixels_of_no_known_range_are_refused(pixels, message):
    image = Image.fromarray(pixels)
    for given in (image, _encode(image, "TIFF")):
        with pytest.raises(images.BadImage, match=message):
            images.decode(given, 3)


def test_whole_numbers_up_to_255_in_memory_are_of_8_bits_or_of_16_and_refused():
    for kind in (np.int32, np.uint16):
        with pytest.raises(images.BadImage, match="up to 200 may be of 8 bits or of 16"):
            images.decode(Image.fromarray(np.full((4, 4), 200, kind)), 3)
        assert not images.decode(Image.fromarray(np.zeros((4, 4), kind)), 3).any()
        with pytest.raises(images.BadImage, match="up to 200 may be of 8 bits or of 16"):
            images.decode(_encode(Image.fromarray(np.full((4, 4), 200, kind)), "TIFF"), 3)


def test_strips_of_a_transparent_image_are_composed_as_a_whole(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 20, 4), np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("LA"), Image.fromarray(pixels).quantize(64)):
        expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        for strip in (1, 20 * 5, 1 << 20):
            monkeypatch.setattr(images, "_STRIP", strip)
            for channels, mode in ((3, "RGB"), (1, "L")):
                found = images.decode(image, channels).squeeze()
                np.testing.assert_array_equal(found, np.asarray(expected.convert("RGB").convert(mode)))


def test_of_several_pictures_the_first_is_taken():
    first, second = Image.fromarray(_picture(20, 31)), Image.fromarray(255 - _picture(20, 31))
    for kind in ("MPO", "GIF", "PNG", "WEBP"):
        data = _encode(first, kind, save_all=True, append_images=[second])
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.n_frames == 2
            np.testing.assert_array_equal(images.decode(data, 3), np.asarray(opened.convert("RGB")))


def test_other_formats_are_refused_with_those_that_are_read():
    for kind in ("EPS", "PPM", "TGA", "ICO"):
        with pytest.raises(images.BadImage, match="none of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
            images.decode(_encode(Image.fromarray(_picture(16, 16)), kind), 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_of_too_many_pixels_are_refused_before_they_are_read():
    for size in ((16000, 8001), (13300, 13300)):
        data = _png(np.zeros((1, 1), int), 8, size=size)
        for given in (data, Image.open(io.BytesIO(data))):
            with pytest.raises(images.BadImage, match=f"{size[1]}x{size[0]} pixels is too large: up to 110,000,000"):
                images.decode(given, 1)
    with pytest.raises(images.BadImage, match="10000000000 pixels"):
        images.decode(_png(np.zeros((1, 1), int), 8, size=(100000, 100000)), 1)


def test_only_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert images.read(tmp_path / "file") == images.read(str(tmp_path / "file")) == b"content"
    for name, message in (("link", "a device or pipe"), ("sparse", "1,073,741,825 bytes"), (".", "a folder")):
        with pytest.raises(images.BadImage, match=message):
            images.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        images.read(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "P", "RGBA", "CMYK"])
def test_every_orientation_is_applied_once(kind, mode):
    rgb = Image.fromarray(_picture(20, 36))
    image = Image.fromarray(np.asarray(rgb)[..., 0].astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        try:
            data = _encode(image, kind, exif=exif)
        except (OSError, ValueError):
            pytest.skip(f"no {kind} files of {mode}")
        loaded = Image.open(io.BytesIO(data))
        loaded.load()
        upright = ImageOps.exif_transpose(
            Image.open(io.BytesIO(data)) if kind != "TIFF" else loaded
        )  # Pillow turns TIFF by itself
        expected = np.asarray(upright)[..., None] // 257 if upright.mode == "I;16" else _by_pillow(upright, "L")
        for given in (data, Image.open(io.BytesIO(data)), loaded):
            np.testing.assert_array_equal(images.decode(given, 1), expected)


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


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("height", "width", "size", "fraction"),
    [
        (1, 40, (8, 8), 1.0),
        (1, 700, (28, 28), 0.875),
        (3, 500, (24, 31), 0.9),
        (5, 333, (30, 17), 0.77),
        (2, 900, (31, 11), 0.4),
    ],
)
def test_a_thin_image_is_cropped_as_if_all_of_it_were_enlarged(height, width, size, fraction, channels):
    picture = np.random.default_rng(channels).integers(0, 256, (height, width, channels), np.uint8)
    cover = round(size[0] / fraction)
    long = int(width * cover / height)
    top, left = round((cover - size[0]) / 2), round((long - size[1]) / 2)
    window = slice(top, top + size[0]), slice(left, left + size[1])
    expected = images.resize(picture, (cover, long))[window]
    np.testing.assert_array_equal(images.center_crop(picture, size, fraction), expected)
    high = picture.swapaxes(0, 1)
    expected = images.resize(high, (long, cover))[window[::-1]]
    np.testing.assert_array_equal(images.center_crop(high, size[::-1], fraction), expected)


def test_a_crop_of_a_thin_image_needs_no_more_memory_than_the_crop():
    line = np.repeat(np.arange(60000, dtype=np.uint16)[None, :, None] % 251, 3, axis=-1).astype(np.uint8)
    crop = images.center_crop(line, (224, 224), 0.875)  # of 256x15,360,000 pixels
    assert crop.shape == (224, 224, 3)
    assert crop.min() == 29999 % 251 and crop.max() == 30000 % 251
    np.testing.assert_array_equal(images.center_crop(line.swapaxes(0, 1), (224, 224), 0.875), crop.swapaxes(0, 1))


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


def test_a_damaged_exif_block_is_ignored_also_where_it_says_to_turn():
    width, turned = struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0"), struct.pack("<HHII", 0x0112, 3, 1, 6)  # a text for a width
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + width + turned + bytes(4)
    encoded = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(encoded, "JPEG", exif=exif)
    assert images.decode(encoded.getvalue(), 3).shape == (20, 30, 3)
