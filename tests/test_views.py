"""What is shown of images, videos and signals."""

import contextlib
import dataclasses

import numpy as np
import pytest

from ijepa_jax.data import counter, images, pipeline
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.source import DataError
from ijepa_jax.data.views import UNIFORMS, View, examples

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (7, 20, 30, 3), np.uint8)
SIGNAL = RNG.normal(5, 3, (50, 2)).astype(np.float32)
U = counter.uniform(0, np.arange(6)[:, None], np.arange(UNIFORMS)).tolist()


def at_random(view: View, data, u) -> np.ndarray:
    (out,) = view.blank(1)
    view.shown_at_random(out, data, u)
    return out


@pytest.mark.parametrize("u", U)
def test_all_frames_of_a_video_are_cropped_alike(u):
    view = View((4, 8, 12))
    shown = at_random(view, VIDEO, u)
    assert shown.dtype == np.uint8 and shown.shape == (4, 8, 12, 3)
    start = int(u[-1] * 4)
    aspect = (3 / 4 * 12 / 8, 4 / 3 * 12 / 8)
    box = images.random_resized_crop_box(20, 30, u[:-1], (0.3, 1.0), aspect)
    for frame, of in zip(shown, VIDEO[start : start + 4], strict=True):
        np.testing.assert_array_equal(frame, images.crop_resize(of, box, (8, 12)))


def test_runs_begin_at_random_and_in_the_middle_of_evaluations():
    view = View((20,), channels=2, mean=(5.0, 5.0), std=(3.0, 3.0))
    numbered = np.arange(50, dtype=np.float32)[:, None] + np.zeros(2, np.float32)
    starts = {round(at_random(view, numbered, [0.0] * 22 + [u])[0, 0] * 3 + 5) for u in np.arange(0, 1, 0.01)}
    assert starts == {*range(31)}
    np.testing.assert_allclose(view.shown(numbered)[:, 0] * 3 + 5, np.arange(15, 35), atol=1e-5)
    assert view.shown(SIGNAL).dtype == np.float32
    np.testing.assert_allclose(view.shown(SIGNAL), (SIGNAL[15:35] - 5) / 3, atol=1e-6)
    frames = View((4, 20, 30)).shown(VIDEO)
    np.testing.assert_array_equal(frames, VIDEO[2:6])


@pytest.mark.parametrize("u", U)
def test_crops_of_wide_views_are_as_little_distorted_as_square_ones(u):
    """The aspect is relative to the view's: with (1, 1) a crop of a view twice as wide as high is so, too."""
    rows = np.arange(200, dtype=np.uint8)[:, None, None] + np.zeros((200, 200, 1), np.uint8)
    columns = rows.swapaxes(0, 1)
    view = View((32, 64), channels=1, crop_aspect=(1.0, 1.0), crop_scale=(0.3, 0.4))
    height, width = (np.ptp(at_random(view, part, u).astype(int)) for part in (rows, columns))
    np.testing.assert_allclose(width / height, 2, rtol=0.06)


def test_a_square_view_is_cropped_as_torchvision_crops():
    image = RNG.integers(0, 256, (40, 60, 3), np.uint8)
    for u in U:
        box = images.random_resized_crop_box(40, 60, u[:-1], (0.3, 1.0), (3 / 4, 4 / 3))
        np.testing.assert_array_equal(at_random(View((16, 16)), image, u), images.crop_resize(image, box, (16, 16)))


@pytest.mark.parametrize("data", [VIDEO[0], VIDEO, SIGNAL], ids=["image", "video", "signal"])
def test_without_crops_examples_are_shown_as_they_are(data):
    exact = View(data.shape[:-1], data.shape[-1], cropping="none", center=0.5)
    for u in U[:2]:
        np.testing.assert_array_equal(at_random(exact, data, u), data)
    np.testing.assert_array_equal(exact.shown(data), data)
    other = View((data.shape[0] - 1, *data.shape[1:-1]), data.shape[-1], cropping="none")
    with pytest.raises(DataError, match="data.cropping 'none'|which data.cropping 'none' does not cut"):
        other.shown(data)
    if data.ndim > 2:  # frames of another size
        with pytest.raises(DataError, match="20x30 pixels are not data.image_size 20x29"):
            View((*data.shape[:-2], 29), cropping="none").shown(data)


@pytest.mark.parametrize("data", [VIDEO[0], VIDEO, SIGNAL], ids=["image", "video", "signal"])
def test_with_central_crops_training_shows_what_evaluation_does(data):
    size = (3, 16, 16)[-(data.ndim - 1) :] if data.ndim > 2 else (30,)
    view = View(size, data.shape[-1], cropping="center", center=0.8)
    for u in U[:2]:
        np.testing.assert_array_equal(at_random(view, data, u), view.shown(data))


def test_what_is_too_short_or_has_other_channels_is_named():
    with pytest.raises(DataError, match="a video of frames 7 is no .* 8x16x16, frames first: there are but 7"):
        View((8, 16, 16)).shown(VIDEO)
    with pytest.raises(DataError, match="a signal of length 50 is no example for data.image_size 64, length first"):
        at_random(View((64,), channels=2), SIGNAL, U[0])
    with pytest.raises(images.BadImage, match="a signal of 2 channels is not one of 1"):
        View((16,), channels=1).shown(SIGNAL)
    assert View((16,), channels=1).shown(SIGNAL[:, 0]).shape == (16, 1)  # [L] has one


@dataclasses.dataclass(frozen=True)
class Darker:
    """An augmentation that halves what it is given."""

    uniforms: int = 1

    def __call__(self, image, u):
        return image // 2


def test_flips_and_changes_are_those_of_all_frames():
    source = ArraySource(VIDEO[None].repeat(40, axis=0), {}, "videos", "video")

    def shown(**changes):
        view = View((4, 8, 12), **changes)
        with contextlib.closing(pipeline.train_batches(source, None, view, seed=0, batch_size=40)) as stream:
            return next(stream)["video"]

    plain, flipped = shown(), shown(flip=True)
    mirrored = (plain != flipped).any(axis=(1, 2, 3, 4))
    assert 10 < mirrored.sum() < 30
    np.testing.assert_array_equal(flipped[mirrored], plain[mirrored][..., ::-1, :])
    np.testing.assert_array_equal(shown(augment=Darker()), plain // 2)
    jittered = shown(color_jitter=1.0).astype(int)
    assert (jittered != plain).any(axis=(2, 3, 4)).mean() > 0.9  # every frame of nearly all


def test_batches_hold_examples_by_their_modality():
    assert examples({"index": 1, "video": 2}) == 2 and examples({"signal": 3, "target": 1}) == 3
