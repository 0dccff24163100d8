"""RandAugment is Pillow's operations as often and as strong as the recipe says; mixed labels say which pixels are seen."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ijepa_jax.data import counter, pipeline
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.evaluate import augment
from tests import small

NAMES = list(augment._OPERATIONS)
ALMOST_ONE = 1 - 2.0**-53  # the largest number that `counter.uniform` makes


def _picture(height: int = 24, width: int = 31, channels: int = 3) -> np.ndarray:
    y, x, c = np.mgrid[:height, :width, :channels]
    return (128 + 90 * np.sin(x / 9 + c) * np.cos(y / 7 - c) + 20 * np.sin(5 * x * y)).astype(np.uint8)


def _one(image: np.ndarray, name: str, magnitude: float, positive: bool = True, **settings) -> np.ndarray:
    """One operation at exactly this magnitude."""
    u = [(NAMES.index(name) + 0.5) / len(NAMES), 0.0, 0.5, 0.25 if positive else 0.75]
    return augment.rand_augment(image, u, operations=1, magnitude=magnitude, spread=0, **settings)


def _pillow(image: Image.Image, name: str, m: float, sign: int, fill) -> Image.Image:
    """What the recipe asks for at magnitude `m`, by another way of writing it."""
    bicubic, (w, h) = Image.Resampling.BICUBIC, image.size
    signed = sign * m / 10
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(ImageOps, name)(image)
    if name == "rotate":
        return image.rotate(signed * 30, bicubic, fillcolor=fill)
    if name == "posterize":
        keep = {0: 4, 2.5: 3, 6: 2, 9: 1, 10: 0}[m]
        return ImageOps.posterize(image, keep) if keep else Image.new(image.mode, (w, h))
    pixels = np.asarray(image).astype(int)
    if name == "solarize":
        threshold = {0: 256, 2.5: 192, 6: 103, 9: 26, 10: 0}[m]
        return Image.fromarray(np.where(pixels < threshold, pixels, 255 - pixels).astype(np.uint8))
    if name == "solarize_add":
        added = {0: 0, 2.5: 27, 6: 66, 9: 99, 10: 110}[m]
        return Image.fromarray(np.where(pixels < 128, np.minimum(pixels + added, 255), pixels).astype(np.uint8))
    enhancers = ("color", "contrast", "brightness", "sharpness")
    if name in enhancers:
        return getattr(ImageEnhance, name.capitalize())(image).enhance(max(0.1, 1.0 + signed * 0.9))
    matrix = {
        "shear_x": (1, signed * 0.3, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, signed * 0.3, 1, 0),
        "translate_x": (1, 0, signed * 0.45 * w, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, signed * 0.45 * h),
    }[name]
    return image.transform((w, h), Image.Transform.AFFINE, matrix, bicubic, fillcolor=fill)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_pillows(name, channels):
    picture = _picture(channels=channels)
    pillow = Image.fromarray(picture.squeeze())
    fill = 7 if channels == 1 else (7, 80, 200)
    for magnitude, sign in itertools.product((0, 2.5, 6, 9, 10), (1, -1)):
        ours = _one(picture, name, magnitude, sign > 0, fill=fill)
        assert ours.shape == picture.shape and ours.dtype == np.uint8
        expected = np.asarray(_pillow(pillow, name, magnitude, sign, fill)).reshape(picture.shape)
        np.testing.assert_array_equal(ours, expected, err_msg=f"magnitude {magnitude}, sign {sign}")


def test_geometry_goes_the_way_and_as_far_as_it_says():
    """Against arithmetic on arrays: of 20 pixels, 0.45 are nine."""
    picture = _picture(20, 20)
    moved = _one(picture, "translate_x", 10)
    np.testing.assert_array_equal(moved[:, :11], picture[:, 9:])
    assert (moved[:, 11:] == 128).all()
    np.testing.assert_array_equal(_one(picture, "translate_y", 10, positive=False)[9:], picture[:11])
    assert (_one(picture, "translate_y", 10, fill=(1, 2, 3))[-1] == (1, 2, 3)).all()
    quarter = np.zeros((41, 41, 1), np.uint8)
    quarter[20, 21:] = 255  # a hand pointing right turns counter-clockwise, up
    tip = np.argwhere(_one(quarter, "rotate", 10, fill=0)[..., 0] > 100)[:, 0].min()
    assert tip == 20 - 10  # half the length, 20, as sin 30 is a half


def test_magnitude_zero_changes_little_and_greater_ones_more():
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    ramps = np.stack([2 * x + y, 255 - 2 * x - y, x + 2 * y], -1)
    picture = (ramps * 0.8 + 20 * np.sin(5 * x * y)[..., None] + 22).clip(0, 255).astype(np.uint8)
    for name in set(NAMES) - {"autocontrast", "equalize", "invert", "posterize"}:
        change = [np.abs(_one(picture, name, m, sign).astype(int) - picture).mean() for sign in (0, 1) for m in (0, 5, 10)]
        assert change[0] == change[3] == 0 and change[1] < change[2] and change[4] < change[5], name
    posterized = [np.abs(_one(picture, "posterize", m).astype(int) - picture).mean() for m in (0, 2.5, 5, 7.5)]
    assert posterized == sorted(posterized) and len(set(posterized)) == 4


def test_colour_does_nothing_to_grey():
    grey = _picture(channels=1)
    np.testing.assert_array_equal(_one(grey, "color", 9), grey)
    assert (_one(_picture(), "color", 9) != _picture()).any()


def _recorded(monkeypatch, count: int, **settings) -> list[list[tuple[str, float, float]]]:
    """What would be done to `count` images: lists of (name, level, signed level)."""
    done = []

    def record(name, image, level, signed, fill):
        done[-1].append((name, level, signed))
        return image

    recorders = {name: functools.partial(record, name) for name in NAMES}
    monkeypatch.setattr(augment, "_OPERATIONS", recorders)
    change = augment.RandAugment(**settings)
    image = np.zeros((1, 1, 1), np.uint8)
    for u in counter.uniform(1, np.arange(count)[:, None], np.arange(change.uniforms)).tolist():
        done.append([])
        change(image, u)
    return done


def test_operations_are_equally_frequent_and_done_half_the_time(monkeypatch):
    done = _recorded(monkeypatch, 15000)
    lengths = np.bincount([len(operations) for operations in done], minlength=3) / 15000
    np.testing.assert_allclose(lengths, [0.25, 0.5, 0.25], atol=0.015)  # four standard deviations, as below
    names, counts = np.unique([name for operations in done for name, *_ in operations], return_counts=True)
    assert sorted(names) == sorted(NAMES)
    np.testing.assert_allclose(counts, 1000, atol=4 * 1000**0.5)
    pairs = [operations for operations in done if len(operations) == 2]
    same = np.mean([first[0] == second[0] for first, second in pairs])
    assert abs(same - 1 / 15) < 4 * (1 / 15 / len(pairs)) ** 0.5  # drawn with replacement, independently


def test_magnitudes_are_normal_and_clipped(monkeypatch):
    applied = [operation for operations in _recorded(monkeypatch, 10000) for operation in operations]
    level, signed = np.array([operation[1:] for operation in applied]).T
    magnitude = 10 * level
    quantiles = np.quantile(magnitude, [0.02275, 0.15866, 0.5, 0.84134])  # at -2, -1, 0 and 1 standard deviations
    np.testing.assert_allclose(quantiles, [8, 8.5, 9, 9.5], atol=0.05)
    assert magnitude.max() == 10 and abs((magnitude == 10).mean() - 0.02275) < 0.006
    np.testing.assert_array_equal(np.abs(signed), level)
    assert abs((signed > 0).mean() - 0.5) < 0.02
    assert abs(np.corrcoef(level, signed > 0)[0, 1]) < 0.04
    wide = _recorded(monkeypatch, 2000, magnitude=1.0, spread=2.0)
    low = np.array([level for operations in wide for _, level, _ in operations])
    assert low.min() == 0 and abs((low == 0).mean() - 0.30854) < 0.05


@pytest.mark.parametrize("operations", [0, 1, 2, 3])
def test_extreme_uniforms(monkeypatch, operations):
    picture = _picture()
    count = augment.rand_augment_uniforms(operations)
    assert count == augment.RandAugment(operations).uniforms == 4 * operations
    for ends in itertools.product((0.0, ALMOST_ONE), repeat=4):
        changed = augment.rand_augment(picture, ends * operations, operations=operations)
        assert changed.shape == picture.shape and changed.dtype == np.uint8
        if not operations or ends[1]:
            np.testing.assert_array_equal(changed, picture)
    levels = []
    last = augment._OPERATIONS | {"translate_y": lambda image, level, signed, fill: levels.append(signed) or image}
    monkeypatch.setattr(augment, "_OPERATIONS", last)
    for deviate, direction in itertools.product((0.0, ALMOST_ONE), repeat=2):
        augment.rand_augment(picture, [ALMOST_ONE, 0.0, deviate, direction] * operations, operations=operations)
    # The last operation, more than eight standard deviations below nine and above.
    expected = np.repeat([9 - 0.5 * 8.2924, -9 + 0.5 * 8.2924, 10, -10], operations) / 10
    np.testing.assert_allclose(levels, expected, atol=1e-3)


def test_augmenting_is_pure_and_follows_its_settings():
    picture = _picture()
    kept = picture.copy()
    change = augment.RandAugment()
    for u in counter.uniform(0, np.arange(50)[:, None], np.arange(8)).tolist():
        first = change(picture, u)
        np.testing.assert_array_equal(first, change(picture[:, ::-1][:, ::-1], list(u)))
        np.testing.assert_array_equal(first, augment.rand_augment(picture, np.array(u)))
    np.testing.assert_array_equal(picture, kept)
    u = [(NAMES.index("rotate") + 0.5) / 15, 0.0, 0.9, 0.0]
    turned = augment.RandAugment(1, 3.0, 0.0, (9, 9, 9))(picture, u)
    np.testing.assert_array_equal(turned, _one(picture, "rotate", 3.0, fill=9))


def test_images_and_fills_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="2 channels"):
        augment.rand_augment(_picture(channels=2), [0.0] * 8)
    with pytest.raises(ValueError, match="shape"):
        augment.rand_augment(_picture(), [0.0] * 8, fill=(1, 2))


def _stream(steps: int, channels: int = 3, **settings) -> list[dict[str, np.ndarray]]:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 14, channels), np.uint8)
    source = ArraySource(pixels, {}, "arrays")
    shared = {"seed": 3, "batch_size": 8, "size": (16, 16), "channels": channels, "flip": True}
    stream = small.stream(source, **shared | settings)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def _assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stream_is_augmented_by_uniforms_of_the_global_index(channels):
    change = augment.RandAugment()
    jitter = {"channels": channels, "color_jitter": 0.5, "start_step": 2}
    plain, changed = _stream(2, **jitter), _stream(2, augment=change, **jitter)
    for before, after in zip(plain, changed, strict=True):
        u = counter.uniform(3, pipeline._AUGMENT, before["index"][:, None], np.arange(change.uniforms))
        expected = np.stack([change(*row) for row in zip(before["image"], u.tolist(), strict=True)])
        np.testing.assert_array_equal(after["image"], expected)
        assert (after["image"] != before["image"]).any()
        _assert_same([before | {"image": 0}], [after | {"image": 0}])


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 3}, {"workers": 1}])
def test_threads_and_workers_change_nothing(settings, monkeypatch):
    monkeypatch.setattr(pipeline, "_PART_BYTES", 3 * 16 * 16 * 3)  # three images of eight
    _assert_same(_stream(6, augment=augment.RandAugment(), **settings), _augmented_once())


@functools.cache
def _augmented_once():
    return _stream(6, augment=augment.RandAugment(), threads=0)


def test_a_resumed_stream_is_augmented_alike():
    _assert_same(_stream(4, augment=augment.RandAugment(), start_step=2), _augmented_once()[2:])


def test_processes_hold_their_rows():
    shards = [_stream(6, augment=augment.RandAugment(), index=p, count=2) for p in range(2)]
    merged = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*shards, strict=True)]
    _assert_same(merged, _augmented_once())


def test_smoothing():
    targets = np.asarray(augment.smooth(jnp.array([0, 3]), 4, 0.1))
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, [[0.925, 0.025, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]], rtol=1e-6)
    np.testing.assert_array_equal(augment.smooth(jnp.array([2]), 3, 0.0), [[0, 0, 1]])


@functools.partial(jax.jit, static_argnames=("count", "batch", "size", "settings"))
def _mixed(count: int, batch: int, size: tuple[int, int], settings: tuple):
    """`count` mixtures of a batch whose row i has label i and pixels i + 1, no smoothing unless asked for."""
    images = jnp.broadcast_to(jnp.arange(1.0, batch + 1)[:, None, None, None], (batch, *size, 2))
    settings = {"smoothing": 0.0, "classes": batch} | dict(settings)
    mixed = functools.partial(augment.mix, images, jnp.arange(batch), **settings)
    return jax.vmap(mixed)(jax.random.split(jax.random.key(0), count))


def _mix(count: int, batch: int = 4, size=(16, 16), **settings) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(_mixed(count, batch, size, tuple(settings.items())))


def test_mixup_blends_with_the_row_before_as_the_labels_say():
    images, targets = _mix(2000, cutmix=0.0)
    share = targets[:, 0, 0]
    for row in range(4):
        np.testing.assert_array_equal(targets[:, row, row], share)
        np.testing.assert_array_equal(targets[:, row, row - 1], 1 - share)
        expected = (row + 1) * share + ((row - 1) % 4 + 1) * (1 - share)
        np.testing.assert_allclose(images[:, row], np.broadcast_to(expected[:, None, None, None], (2000, 16, 16, 2)), rtol=1e-6)
    # Beta(a, a) has mean 1/2, variance 1 / (4 (2a + 1)) and fourth central moment 3 / (16 (2a + 1) (2a + 3)).
    assert abs(share.mean() - 0.5) < 4 * (0.0962 / 2000) ** 0.5
    assert abs(share.var() - 1 / 4 / 2.6) < 0.006
    assert abs(((share - 0.5) ** 4).mean() - 3 / 16 / 2.6 / 4.6) < 0.0015
    assert abs(_mix(2000, cutmix=0.0, mixup=0.1)[1][:, 0, 0].var() - 1 / 4 / 1.2) < 0.012


def test_cutmix_shares_of_pixels_and_labels_are_equal():
    images, targets = _mix(2000, mixup=0.0)
    for row in range(4):
        own, partner = images[:, row] == row + 1, images[:, row] == (row - 1) % 4 + 1
        assert (own ^ partner).all()
        np.testing.assert_array_equal(targets[:, row, row], own.mean((1, 2, 3)))  # 256 pixels: shares are exact
        np.testing.assert_array_equal(targets[:, row, row - 1], partner.mean((1, 2, 3)))
        np.testing.assert_array_equal(own, images[:, 0] == 1)  # one box for the batch
    assert (targets.sum(-1) == 1).all()


def test_cutmix_boxes_are_rectangles_of_the_right_size_and_place():
    images, _ = _mix(4000, 2, (24, 32), mixup=0.0)
    box = images[:, 0, :, :, 0] == 2
    rows, columns = box.any(2), box.any(1)
    np.testing.assert_array_equal(box, rows[:, :, None] & columns[:, None, :])
    assert (np.abs(np.diff(rows, axis=1)).sum(1) <= 2).all() and (np.abs(np.diff(columns, axis=1)).sum(1) <= 2).all()
    # With side s, s squared uniform, the clipped box has mean area E(s - s^2 / 4)^2 = 1/2 - 1/5 + 1/48, and covers the
    # corners with probability E(s / 2)^2 = 1/8, the centre with E s^2 = 1/2.
    area = box.mean((1, 2))
    assert abs(area.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 4 * area.std() / 4000**0.5
    covered = box.mean(0)
    for corner in (covered[0, 0], covered[0, -1], covered[-1, 0], covered[-1, -1]):
        assert abs(corner - 1 / 8) < 0.035  # half a pixel is another 1/24 of the side
    assert np.abs(covered[11:13, 15:17] - 1 / 2).max() < 0.035
    # A box that touches no edge keeps the shape of the image.
    whole = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & box.any((1, 2))
    assert whole.sum() > 200
    assert np.abs(rows[whole].sum(1) * 32 - columns[whole].sum(1) * 24).max() <= 32 + 24  # each edge is rounded


@pytest.mark.parametrize("sizes", [(24,), (3, 8, 12)], ids=["signals", "videos"])
def test_cutmix_pastes_a_span_or_the_same_box_of_all_frames(sizes):
    examples = jnp.broadcast_to(jnp.arange(1.0, 3).reshape(2, *[1] * (len(sizes) + 1)), (2, *sizes, 1))
    for key in jax.random.split(jax.random.key(0), 30):
        mixed, targets = augment.mix(examples, jnp.arange(2), key, classes=2, mixup=0.0, smoothing=0.0)
        pasted = np.asarray(mixed[0, ..., 0]) == 2
        np.testing.assert_allclose(targets[0, 1], pasted.mean(), atol=1e-6)
        if len(sizes) == 1:
            assert np.abs(np.diff(pasted)).sum() <= 2  # a span
        else:
            assert (pasted == pasted[:1]).all()
            np.testing.assert_array_equal(pasted[0], pasted[0].any(1)[:, None] & pasted[0].any(0)[None])


def test_cutmix_or_mixup_by_the_switch():
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @functools.partial(jax.vmap, in_axes=(0, None))
    def mixed(key, switch):
        images = jnp.broadcast_to(jnp.arange(1.0, 3)[:, None, None, None], (2, 4, 4, 1))
        return augment.mix(images, jnp.arange(2), key, classes=2, switch=switch)[0]

    switches = np.array([0.0, 0.25, 1.0])
    images = np.asarray(mixed(jax.random.split(jax.random.key(0), 2000), switches))
    cut = (images == np.round(images)).all((2, 3, 4, 5)).mean(1)
    np.testing.assert_allclose(cut, switches, atol=0.045)  # four standard deviations, and few blends that round to 0 or 1


def test_no_mixing_is_only_smoothing_and_negative_is_refused():
    images = jnp.ones((3, 4, 4, 1))
    same, targets = augment.mix(images, jnp.arange(3), jax.random.key(0), classes=5, mixup=0, cutmix=0)
    assert same is images
    np.testing.assert_array_equal(targets, augment.smooth(jnp.arange(3), 5, 0.1))
    with pytest.raises(ValueError, match="-1"):
        augment.mix(images, jnp.arange(3), jax.random.key(0), classes=5, mixup=-1)


def test_smoothed_targets_are_mixed_and_sum_to_one():
    images, targets = _mix(500, 4, (8, 8), smoothing=0.1, classes=10)
    assert images.shape == (500, 4, 8, 8, 2) and targets.shape == (500, 4, 10) and targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(-1), 1, atol=3e-7)  # sums of ten float32
    np.testing.assert_allclose(targets[:, :, 4:], 0.01, rtol=1e-6)
    labels = (targets[..., :4] - 0.01) / 0.9
    np.testing.assert_allclose(labels @ np.arange(1.0, 5), images.mean((2, 3, 4)), rtol=2e-6)


def test_mixing_compiles_once_is_a_function_of_its_key_and_keeps_the_dtype():
    traces = []

    @jax.jit
    def step(images, labels, seed):
        traces.append(1)
        return augment.mix(images, labels, jax.random.fold_in(jax.random.key(7), seed), classes=6)

    images = jax.random.normal(jax.random.key(1), (5, 8, 12, 3), jnp.bfloat16)
    labels = jnp.array([0, 5, 2, 2, 1], jnp.int32)
    results = [jax.device_get(step(images, labels, seed)) for seed in (0, 0, 1)]
    assert len(traces) == 1
    assert results[0][0].dtype == jnp.bfloat16 and results[0][0].shape == images.shape
    for first, again, other in zip(*results, strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
