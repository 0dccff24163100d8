"""Crops of files: exactly torchvision's where asked for, else within a stated error of them, for every kind of file."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ijepa_jax.data import crops, images

PHOTOGRAPHS = load_sample_images().images  # two, 427x640


def _encode(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    image = Image.fromarray(pixels.squeeze()) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"quality": 92} | options)
    return buffer.getvalue()


def _crop(data, box, size=(224, 224), channels=3, exact=False, seen=None) -> np.ndarray:
    def choose(height: int, width: int) -> images.Box:
        if seen is not None:
            seen.append((height, width))
        return box or (0, 0, height, width)

    out = np.full((*size, channels), 77, np.uint8)
    crops.crop_into(out, data, choose, exact)
    return out


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.astype(int) - theirs).mean())


def _boxes(height: int, width: int, count: int, scale=(0.3, 1.0)) -> list[images.Box]:
    uniforms = np.random.default_rng(0).random((count, images.CROP_UNIFORMS))
    return [images.random_resized_crop_box(height, width, u, scale, (3 / 4, 4 / 3)) for u in uniforms.tolist()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exact_crops_are_pillows_to_the_bit(kind, channels):
    data = _encode(PHOTOGRAPHS[0][:, :, :channels], kind)
    for top, left, height, width in [(0, 0, 427, 640), (3, 5, 300, 401), (100, 7, 64, 80), (426, 639, 1, 1)]:
        with Image.open(io.BytesIO(data)) as image:
            cut = image.crop((left, top, left + width, top + height))
            expected = np.asarray(cut.resize((96, 64), Image.Resampling.BILINEAR)).reshape(64, 96, channels)
        np.testing.assert_array_equal(_crop(data, (top, left, height, width), (64, 96), channels, exact=True), expected)


def test_exact_crops_are_torchvisions_to_the_bit():
    try:
        from torchvision.transforms import functional
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit its torch raises RuntimeError
        pytest.skip(f"needs a torchvision that works: {error}")
    data = _encode(PHOTOGRAPHS[1])
    for box in _boxes(427, 640, 20):
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(functional.resized_crop(image, *box, size=[224, 224]))
        np.testing.assert_array_equal(_crop(data, box, exact=True), expected)


@pytest.mark.parametrize("size", [(224, 224), (112, 112), (64, 96), (32, 32), (448, 448)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fast_crops_are_within_two_grey_levels_on_average(size, channels):
    """From enlarging, over the three taps, to files decoded at a quarter of their size."""
    errors = []
    for photograph in PHOTOGRAPHS:
        for kind in ("JPEG", "PNG"):
            data = _encode(photograph, kind)
            for box in _boxes(427, 640, 10):
                exact = _crop(data, box, size, channels, exact=True)
                errors.append(_error(_crop(data, box, size, channels), exact))
    assert np.mean(errors) < 1.5 and max(errors) < 2.5


def test_large_files_are_decoded_small_with_the_box_in_place():
    """A ramp tells positions: its crop is a ramp between the edges of the box, whatever the DCT scale and the odd numbers."""
    y, x = np.mgrid[:1501, :2003]
    ramp = np.stack([y * 255 / 1500, x * 255 / 2002, np.full(y.shape, 128.0)], -1).astype(np.uint8)
    data = _encode(ramp, quality=100, subsampling=0)
    for top, left, height, width in [(0, 0, 1501, 2003), (333, 777, 701, 903), (901, 1103, 600, 900), (5, 3, 1001, 777)]:
        for size in ((224, 224), (64, 64)):
            ours = _crop(data, (top, left, height, width), size).astype(float)
            middle_y = (top + (np.arange(size[0]) + 0.5) * height / size[0]) * 255 / 1501
            middle_x = (left + (np.arange(size[1]) + 0.5) * width / size[1]) * 255 / 2003
            assert np.abs(ours[2:-2, :, 0].mean(1) - middle_y[2:-2]).max() < 1.2
            assert np.abs(ours[:, 2:-2, 1].mean(0) - middle_x[2:-2]).max() < 1.2


def test_the_box_is_cut_before_it_is_resized():
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[100:400, 100:400] = 255  # black all around the box must not shine in
    for kind, exact in (("PNG", False), ("PNG", True)):
        assert (_crop(_encode(pixels, kind), (100, 100, 300, 300), exact=exact) == 255).all()


@pytest.mark.parametrize("exact", [False, True])
def test_every_kind_of_file_is_cropped(exact):
    photograph = Image.fromarray(PHOTOGRAPHS[1])
    plain = _crop(_encode(photograph), None, exact=exact)
    assert _error(_crop(_encode(photograph.convert("CMYK")), None, exact=exact), plain) < 6
    assert _error(_crop(_encode(photograph, progressive=True), None, exact=exact), plain) < 1e-9
    assert _error(_crop(_encode(photograph.quantize(256), "PNG"), None, exact=exact), plain) < 12
    assert _error(_crop(_encode(photograph, "WEBP"), None, exact=exact), plain) < 4
    grey = np.asarray(photograph.convert("L"))
    for data in (_encode(grey), _encode(photograph)):
        assert _error(_crop(data, None, channels=1, exact=exact)[..., 0], _crop(grey, None, channels=1)[..., 0]) < 2
    assert np.ptp(_crop(_encode(grey), None, exact=exact), axis=-1).max() == 0
    deep = _encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    assert _error(_crop(deep, None, channels=1, exact=exact), _crop(grey, None, channels=1)) < 2


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_the_box_is_chosen(orientation, exact):
    upright = PHOTOGRAPHS[1][:, :300]
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = []
    ours = _crop(_encode(np.ascontiguousarray(stored), exif=exif), (0, 0, 427, 300), exact=exact, seen=seen)
    assert set(seen) == {(427, 300)}
    assert _error(ours, _crop(upright, (0, 0, 427, 300))) < 2


@pytest.mark.parametrize("exact", [False, True])
def test_damaged_files_are_refused(exact):
    data = _encode(PHOTOGRAPHS[0])
    for broken in (data[: len(data) // 2], data[:200], data[:2], b"", b"GIF89a", b"\xff\xd8\xff\xe1\x00\x00"):
        with pytest.raises(images.BadImage, match="cannot decode the image"):
            _crop(broken, (0, 0, 10, 10), exact=exact)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_of_other_formats_and_of_too_many_pixels_are_refused(exact):
    with pytest.raises(images.BadImage, match="none of JPEG, PNG"):
        _crop(_encode(PHOTOGRAPHS[0], "EPS"), None, exact=exact)
    data = _encode(PHOTOGRAPHS[0][:8, :8, :1])
    size = data.index(b"\xff\xc0") + 5
    huge = data[:size] + (20000).to_bytes(2, "big") + (7000).to_bytes(2, "big") + data[size + 4 :]
    with pytest.raises(images.BadImage, match="7000x20000 pixels is too large"):
        _crop(huge, None, (8, 8), exact=exact)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1), (1, 1)])
def test_thin_files_are_cropped(shape, exact):
    """Whole, and as a random crop takes them; a JPEG file, too, and of one colour, so that it is that to the level."""
    for kind in ("JPEG", "PNG"):
        data = _encode(Image.fromarray(np.full((*shape, 3), 90, np.uint8)), kind)
        for box in (None, images.random_resized_crop_box(*shape, [0.5] * images.CROP_UNIFORMS, (0.3, 1.0), (3 / 4, 4 / 3))):
            assert (_crop(data, box, exact=exact) == 90).all()


@pytest.mark.parametrize("exact", [False, True])
def test_files_cut_anywhere_are_refused_or_read(exact):
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}, {"progressive": True}):
        data = _encode(PHOTOGRAPHS[0][:40, :48], **options)
        for length in range(len(data) - 2):
            with pytest.raises(images.BadImage):
                _crop(data[:length], (0, 0, 10, 10), (8, 8), exact=exact)


def test_fill_bytes_do_not_hide_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encode(PHOTOGRAPHS[1], exif=exif)
    start = data.index(b"\xff\xe1")
    filled = data[:start] + b"\xff\xff" + data[start:]
    np.testing.assert_array_equal(_crop(filled, None), _crop(data, None))


def test_odd_files_that_pillow_reads_are_read():
    data = _encode(PHOTOGRAPHS[0])
    trailing = data + b"trailing bytes that some cameras write"
    np.testing.assert_array_equal(_crop(trailing, None), _crop(data, None))
    start = data.index(b"\xff\xdb")
    filled = data[:start] + b"\xff\xff" + data[start:]  # fill bytes before a marker are allowed
    np.testing.assert_array_equal(_crop(filled, None), _crop(data, None))


def test_arrays_are_cropped_exactly():
    pixels = PHOTOGRAPHS[0][:100, :120]
    np.testing.assert_array_equal(
        _crop(pixels, (3, 4, 90, 100), (48, 40)), images.crop_resize(pixels, (3, 4, 90, 100), (48, 40))
    )
    many = np.concatenate([pixels, pixels], -1)
    assert _crop(many, None, (10, 10), channels=6).shape == (10, 10, 6)


def test_threads_do_not_disturb_each_other():
    data = [_encode(photograph) for photograph in PHOTOGRAPHS]
    boxes = _boxes(427, 640, 40)
    alone = [_crop(data[i % 2], box) for i, box in enumerate(boxes)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: _crop(data[i % 2], boxes[i]), range(len(boxes))))
    np.testing.assert_array_equal(alone, together)
