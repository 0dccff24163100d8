"""Encoders for notebooks: what `load` finds, what the calls give of whatever images, and what `preprocess` makes of files."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ijepa_jax
from ijepa_jax.data.images import BadImage, center_crop
from ijepa_jax.model.vit import normalise
from ijepa_jax.pretrain import command
from ijepa_jax.train.checkpoint import CheckpointError
from tests import small

# The same numbers computed in batches of another size are summed in another order: float32 rounding of features of size 1.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Of a finished run: a target encoder 32 wide and 2 deep, for images of 32x32 in patches of 4."""
    folder = tmp_path_factory.mktemp("runs")
    pixels = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), np.uint8)
    np.savez(folder / "unlabelled.npz", train_images=pixels[:64], test_images=pixels[64:])  # no labels, no probes: quicker
    data = {"data__name": f"arrays:{folder / 'unlabelled.npz'}", "probe__lidar_images": 0}
    command.pretrain(small.config(optim__momentum=0.5, optim__steps=8, **data), folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def encoder(workdir) -> ijepa_jax.Pretrained:
    return ijepa_jax.load(workdir)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Wider than high, and different at each edge."""
    rows, columns = np.mgrid[0:40, 0:60]
    return np.stack([6 * rows, 4 * columns, 255 - 6 * rows], -1).clip(0, 255).astype(np.uint8)


def test_a_call_gives_the_average_of_the_target_encoders_last_patches(encoder, images):
    features, patches = encoder(images), encoder.patches(images)
    assert features.shape == (7, encoder.width) == (7, 32) and features.dtype == jnp.float32
    assert patches.shape == (7, 64, 32) and patches.dtype == jnp.float32
    np.testing.assert_allclose(features, patches.mean(1), **ROUNDING)
    given = normalise(jnp.asarray(images), encoder.encoder.mean, encoder.encoder.std)
    np.testing.assert_allclose(patches, encoder.encoder.network.apply({"params": encoder.params}, given), **ROUNDING)


def test_layers_are_the_outputs_of_every_block(encoder, images):
    layers = encoder.layers(images)
    assert [layer.shape for layer in layers] == [(7, 64, 32)] * encoder.encoder.network.depth
    given = normalise(jnp.asarray(images), encoder.encoder.mean, encoder.encoder.std)
    *blocks, last = encoder.encoder.network.apply({"params": encoder.params}, given, layers=True)
    for layer, block in zip(layers, blocks, strict=True):
        np.testing.assert_allclose(layer, block, **ROUNDING)
    norm = jax.device_get(encoder.params["norm"])
    normed = np.asarray(jax.nn.standardize(layers[-1], epsilon=1e-6, algorithm="stable")) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(normed, last, atol=1e-4)


def test_uint8_and_normalised_float_numpy_and_jax_give_the_same(encoder, images):
    expected = encoder(images)
    normalised = (images / np.float32(255) - np.float32(encoder.encoder.mean)) / np.float32(encoder.encoder.std)
    assert normalised.dtype == np.float32
    for given in (normalised, normalised.astype(np.float64), jnp.asarray(normalised)):
        np.testing.assert_allclose(encoder(given), expected, **ROUNDING)
    np.testing.assert_array_equal(encoder(jnp.asarray(images)), expected)
    np.testing.assert_array_equal(encoder(list(images)), expected)


def test_a_single_image_gives_what_it_gives_in_a_batch(encoder, images):
    assert encoder(images[0]).shape == (32,) and encoder.patches(images[0]).shape == (64, 32)
    assert [layer.shape for layer in encoder.layers(jnp.asarray(images[0]))] == [(64, 32)] * 2
    np.testing.assert_allclose(encoder(images[0]), encoder(images)[0], **ROUNDING)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_parts_make_up_the_whole(encoder, images, batch_size):
    for represent in (encoder, encoder.patches, encoder.layers):
        for part, whole in zip(
            jax.tree.leaves(represent(images, batch_size=batch_size)), jax.tree.leaves(represent(images)), strict=True
        ):
            np.testing.assert_allclose(part, whole, **ROUNDING)


def test_each_shape_is_compiled_once(workdir, images):
    encoder = ijepa_jax.load(workdir)
    programs = []

    def compiled() -> int:
        """How many programs JAX has made of the encoder's functions since the last time."""
        programs.append(sum(function._cache_size() for function in encoder._compiled.values()))
        return programs[-1] - (programs[-2] if len(programs) > 1 else 0)

    encoder(images, batch_size=3)  # two whole parts, and a third that is filled up
    assert compiled() == 1
    encoder(images[:3]), encoder(images[::-1][:3]), encoder(images[:6], batch_size=3)
    assert compiled() == 0
    encoder(images[0])
    assert compiled() == 1
    encoder.patches(images[:3])
    assert compiled() == 1


def test_images_of_another_size_than_the_trained_one(encoder):
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (2, 24, 48, 3), np.uint8)
    assert encoder.image_size == (32, 32)
    assert encoder.patches(wide).shape == (2, 6 * 12, 32) and encoder(wide).shape == (2, 32)
    assert np.isfinite(encoder(wide)).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 32, 32, 1), np.uint8), r"shape \[2, 32, 32, 1\] must be \[B, H, W, 3\]"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"shape \[0, 32, 32, 3\]"),
        (np.zeros((32, 32), np.uint8), r"shape \[32, 32\]"),
        (np.zeros((2, 32, 32, 3), np.int32), "int32 must be uint8"),
        (np.zeros((2, 32, 32, 3), bool), "bool must be uint8"),
        (np.zeros((2, 30, 32, 3), np.uint8), "30x32 pixels does not divide into patches of 4x4"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)], "ijepa_jax.preprocess"),
    ],
)
def test_what_are_no_images_is_refused(encoder, bad, message):
    for represent in (encoder, encoder.patches, encoder.layers):
        with pytest.raises(ValueError, match=message):
            represent(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels: pixels, r"of 0 \.\. 255 are beyond what the encoder's mean and std give"),
        (lambda pixels: pixels / 255, r"of 0 \.\. 1 look like pixels of 0 \.\. 1"),
        (
            lambda pixels: pixels / 255 * 1.1 - 0.05,
            r"of -0\.05 \.\. 1\.05 look like pixels of 0 \.\. 1",
        ),  # as a sharp filter overshoots
        (lambda pixels: pixels / 127.5, r"of 0 \.\. 2 look like pixels of 0 \.\. 2"),
        (lambda pixels: pixels / 127.5 - 1, r"of -1 \.\. 1 look like pixels scaled to -1 \.\. 1"),
        (lambda pixels: (pixels / 127.5 - 1) * 0.97, r"of -0\.97 \.\. 0\.97 look like pixels scaled to -1 \.\. 1"),
        (lambda pixels: (pixels / 25.5 - 2) / 0.5, r"of -4 \.\. 16 are beyond"),  # twice normalised
        (lambda pixels: pixels / 51, r"of 0 \.\. 5 are beyond"),
        (lambda pixels: pixels - 127.5, r"of -127\.5 \.\. 127\.5 are beyond"),
        (lambda pixels: np.where(pixels == 7, np.nan, pixels / 128 - 0.9), "hold NaN or infinity"),
        (lambda pixels: np.where(pixels == 7, np.inf, pixels / 128 - 0.9), "hold NaN or infinity"),
    ],
)
def test_floats_that_are_not_normalised_are_refused_unless_told_otherwise(encoder, images, change, message):
    wrong = change(images.astype(np.float32)).astype(np.float32)
    for given in (wrong, jnp.asarray(wrong), wrong.astype(np.float64), list(wrong)):
        with pytest.raises(ValueError, match=f"^float images {message}.*: give uint8, 0 .. 255, or floats .*check=False"):
            encoder(given)
    one = np.concatenate([images / 64 - 2.2, wrong[-1:]]).astype(np.float32)  # among images as they should be
    for represent, given in ((encoder.patches, wrong), (encoder.layers, wrong), (encoder, one)):
        with pytest.raises(ValueError, match="check=False"):
            represent(given)
    for represent in (encoder.patches, encoder.layers):
        with pytest.raises(ValueError, match="check=False"):
            represent(wrong)
        represent(wrong, check=False)
    expected = encoder.encoder.represent(encoder.params, jnp.asarray(wrong))["last"]
    np.testing.assert_allclose(encoder(wrong, check=False), expected, rtol=1e-4, atol=1e-5)


def test_normalised_floats_of_plain_and_of_sharpened_images_and_normal_ones_are_taken(encoder, images):
    assert np.isfinite(encoder(np.random.default_rng(0).normal(size=images.shape))).all()
    mean, std = np.float32(encoder.encoder.mean), np.float32(encoder.encoder.std)
    for level in (0.0, 0.5, 1.0):  # of one colour, of which nothing can be told
        assert np.isfinite(encoder(np.full(images.shape, level, np.float32))).all()
    for pixels in (images * 0, images * 0 + 255, images * 0 + 90, images // 4, 255 - images // 8):
        np.testing.assert_allclose(encoder((pixels / np.float32(255) - mean) / std), encoder(pixels), **ROUNDING)
    overshoot = (images / np.float32(255) * 1.3 - 0.15 - mean) / std
    assert np.isfinite(encoder(overshoot)).all()
    assert np.isfinite(encoder(overshoot.astype(jnp.bfloat16))).all()


def test_the_check_is_of_the_encoders_own_mean_and_std(encoder, images):
    pixels = images.astype(np.float32)
    for mean, std, right, wrong in (
        (0.0, 1.0, pixels / 255, pixels), (0.0, 1 / 255, pixels, pixels * 9), (0.5, 0.5, pixels / 127.5 - 1, pixels / 255)
    ):  # fmt: skip
        settings = dataclasses.replace(encoder.encoder, mean=(mean,) * 3, std=(std,) * 3)
        made = ijepa_jax.Pretrained(settings, encoder.params)
        np.testing.assert_allclose(made(right), made(images), rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="check=False"):
            made(wrong)


def test_under_jit_nothing_is_checked(encoder, images):
    np.testing.assert_allclose(jax.jit(encoder.__call__)(jnp.asarray(images)), encoder(images), **ROUNDING)
    floats = jnp.asarray(images, jnp.float32)
    np.testing.assert_allclose(jax.jit(encoder.__call__)(floats), encoder(floats, check=False), **ROUNDING)


def test_pillow_images_of_the_encoders_size_are_taken_and_others_refused(encoder, images):
    pillow = [Image.fromarray(pixels) for pixels in images]
    np.testing.assert_array_equal(encoder(pillow), encoder(images))
    np.testing.assert_array_equal(encoder(pillow[0]), encoder(images[0]))
    grey = pillow[0].convert("L")
    np.testing.assert_array_equal(encoder(grey), encoder(np.asarray(grey.convert("RGB"))))
    for wrong in (pillow[0].resize((64, 32)), [*pillow, pillow[0].resize((64, 32))]):
        with pytest.raises(ValueError, match=r"32x64 pixels .* not of the encoder's size, 32x32: give ijepa_jax\.preprocess"):
            encoder.patches(wrong)
    for wrong in ("photo.jpg", Path("photo.jpg"), b"bytes", ["a.png", "b.png"], io.BytesIO(b"bytes")):
        with pytest.raises(ValueError, match=r"files are no pixels: give ijepa_jax\.preprocess\(files"):
            encoder(wrong)
    with pytest.raises(ValueError, match=r"images.transpose\(0, 2, 3, 1\) puts channels last"):
        encoder(images.transpose(0, 3, 1, 2))


def test_a_batch_size_below_one_is_refused(encoder, images):
    with pytest.raises(ValueError, match="batch_size 0"):
        encoder(images, batch_size=0)


def test_without_a_classifier_classify_says_so(encoder, images):
    with pytest.raises(ValueError, match="no classifier"):
        encoder.classify(images)


def test_a_classifier_acts_on_the_pooled_features(encoder, images):
    head = {"kernel": np.eye(32, 5, dtype=np.float32), "bias": np.arange(5, dtype=np.float32)}
    classifier = ijepa_jax.Pretrained(encoder.encoder, encoder.params, head, "abcde")
    assert classifier.labels == tuple("abcde")
    np.testing.assert_allclose(classifier.classify(images), encoder(images)[:, :5] + np.arange(5)[None], **ROUNDING)
    np.testing.assert_allclose(classifier.classify(images[0]), encoder(images)[0, :5] + np.arange(5), **ROUNDING)


def test_several_devices_share_the_work_and_agree_with_one(workdir, encoder, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    script = """
import json, sys
import jax, numpy as np
import ijepa_jax
encoder, images = ijepa_jax.load(sys.argv[1]), np.load(sys.argv[2] + "/images.npy")
shares = []
represent = type(encoder.encoder).represent
def spied(self, params, images, kinds):
    jax.debug.inspect_array_sharding(images, callback=lambda found: shares.append(found.shard_shape(images.shape)))
    return represent(self, params, images, kinds)
type(encoder.encoder).represent = spied
whole, parts, single = encoder(images), encoder.patches(images, batch_size=3), encoder(images[0])
np.savez(sys.argv[2] + "/found.npz", whole=whole, parts=parts, single=single)
print(json.dumps({"devices": len(whole.sharding.device_set), "replicated": whole.is_fully_replicated, "shares": shares}))
"""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, str(workdir), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["devices"] == 4 and said["replicated"]
    # seven images fill eight places, parts of three four of them, one image one of four: each device has a fourth
    assert [tuple(share) for share in said["shares"]] == [(2, 32, 32, 3), (1, 32, 32, 3), (1, 32, 32, 3)]
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["whole"], encoder(images), **ROUNDING)
    np.testing.assert_allclose(found["parts"], encoder.patches(images), **ROUNDING)
    np.testing.assert_allclose(found["single"], encoder(images[0]), **ROUNDING)


def test_bfloat16_on_request_gives_float32_near_the_exact_features(workdir, encoder, images):
    half = ijepa_jax.load(workdir, dtype="bfloat16")
    assert half.encoder.network.dtype == jnp.bfloat16
    found, exact = half(images), encoder(images)
    assert found.dtype == jnp.float32
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05  # bfloat16 keeps 8 bits: 0.4% an operation, of which a few add up
    with pytest.raises(ValueError, match="dtype 'float16' must be one of float32, bfloat16"):
        ijepa_jax.load(workdir, dtype="float16")


def test_load_takes_workdirs_steps_and_checkpoints(workdir, encoder, images):
    steps = sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())
    assert len(steps) > 1
    first, newest = ijepa_jax.load(workdir, step=steps[0]), ijepa_jax.load(str(workdir), step=-1)
    np.testing.assert_array_equal(newest(images), encoder(images))  # no probes while training: the best is the newest
    assert np.abs(first(images) - newest(images)).max() > 1e-3
    by_path = ijepa_jax.load(workdir / "checkpoints" / str(steps[0]))
    np.testing.assert_array_equal(by_path(images), first(images))


def test_load_takes_either_encoder(workdir, encoder, images):
    context = ijepa_jax.load(workdir, encoder="context")
    assert np.abs(context(images) - encoder(images)).max() > 1e-3
    with pytest.raises(ValueError, match="encoder 'teacher' is not known: it must be one of target, context"):
        ijepa_jax.load(workdir, encoder="teacher")


def test_load_takes_a_path_from_home(workdir, encoder, images, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    np.testing.assert_array_equal(ijepa_jax.load(f"~/{workdir.name}")(images), encoder(images))


def test_load_says_what_is_not_there(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nothing"):
        ijepa_jax.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        ijepa_jax.load(workdir, step=5)
    with pytest.raises(ValueError, match="neither a workdir .* nor a model's folder"):
        ijepa_jax.load(tmp_path)


def test_parameters_that_are_given_stay_as_they_are(encoder, images):
    params = jax.tree.map(np.array, encoder.params)
    made = ijepa_jax.Pretrained(encoder.encoder, params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(made(images), encoder(images))


def test_repr_tells_size_and_origin(workdir, encoder):
    assert repr(encoder) == f"Pretrained(width 32, depth 2, patch 4, 32x32 pixels, ijepa_jax {workdir})"
    made = ijepa_jax.Pretrained(encoder.encoder, encoder.params)
    assert repr(made) == "Pretrained(width 32, depth 2, patch 4, 32x32 pixels)"


def test_preprocess_takes_files_pillow_images_and_arrays(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = center_crop(photo, (32, 32), 0.875)
    several = [str(tmp_path / "photo.png"), tmp_path / "photo.png", Image.fromarray(photo), photo, jnp.asarray(photo)]
    found = ijepa_jax.preprocess(several, (32, 32))
    assert found.shape == (5, 32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([expected] * 5))
    for one in several:
        np.testing.assert_array_equal(ijepa_jax.preprocess(one, (32, 32)), expected[None])
    np.testing.assert_array_equal(ijepa_jax.preprocess(np.stack([photo] * 2), (32, 32)), np.stack([expected] * 2))
    np.testing.assert_array_equal(ijepa_jax.preprocess(tmp_path.glob("*.png"), (32, 32)), expected[None])


def test_preprocess_makes_jpegs_as_pillow_does(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=95)
    found = ijepa_jax.preprocess(tmp_path / "photo.jpg", (24, 32), crop=1.0)
    with Image.open(tmp_path / "photo.jpg") as opened:
        np.testing.assert_array_equal(found[0], center_crop(np.asarray(opened), (24, 32), 1.0))


def test_preprocess_turns_files_and_pillow_images_upright(photo, tmp_path):
    image = Image.fromarray(photo)
    exif = image.getexif()
    exif[ORIENTATION] = 6  # to be shown turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    expected = center_crop(np.rot90(photo, -1), (32, 32), 0.875)
    np.testing.assert_array_equal(ijepa_jax.preprocess(tmp_path / "turned.png", (32, 32))[0], expected)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(ijepa_jax.preprocess(opened, (32, 32))[0], expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "L", "LA", "P", "1", "F", "RGBA"])
def test_preprocess_takes_pillow_images_of_any_mode(photo, mode):
    image = Image.fromarray(photo).convert(mode)
    found = ijepa_jax.preprocess(image, (32, 32))
    np.testing.assert_array_equal(found[0], center_crop(np.asarray(image.convert("RGB")), (32, 32), 0.875))


@pytest.mark.parametrize("kind", [np.uint16, ">u2", np.int32])
def test_preprocess_makes_the_same_of_deep_pillow_images_and_their_files(tmp_path, kind):
    image = Image.fromarray(np.tile(np.arange(0, 65536, 1024), (64, 1)).astype(kind))
    image.save(tmp_path / "deep.tif")
    found = ijepa_jax.preprocess([image, tmp_path / "deep.tif"], (64, 64), crop=1.0)
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0, 0, :, 0].tolist() == [round(1024 * column * 255 / 65535) for column in range(64)]


def test_preprocess_takes_the_bytes_of_files(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    expected = ijepa_jax.preprocess(photo, (32, 32))
    for given in (data, bytearray(data), memoryview(data), [data], io.BytesIO(data), [io.BytesIO(data)]):
        np.testing.assert_array_equal(ijepa_jax.preprocess(given, (32, 32)), expected)


def test_preprocess_takes_tensors_whose_channels_come_last(photo):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(photo)
    expected = ijepa_jax.preprocess(photo, (32, 32))
    for given in (tensor, tensor[None], [tensor]):
        np.testing.assert_array_equal(ijepa_jax.preprocess(given, (32, 32)), expected)
    first = tensor.permute(2, 0, 1)
    for given in (first, first[None]):
        with pytest.raises(BadImage, match=r"\[3, 40, 60\] must be \[H, W, C\], as transpose or permute\(1, 2, 0\) makes it"):
            ijepa_jax.preprocess(given, (32, 32))
    for given, advice in (
        (tensor / 255, "float32.*scale and round them"),
        (tensor > 9, "bool.*multiply"),
        (tensor.int(), "cast"),
    ):
        with pytest.raises(BadImage, match=rf"must be uint8 \(0 .. 255\).*{advice}"):
            ijepa_jax.preprocess(given, (32, 32))
    for odd in (tensor.bfloat16(), tensor.float().requires_grad_()):
        with pytest.raises(ValueError, match=r"tensor\.detach\(\)\.cpu\(\)\.float\(\)"):
            ijepa_jax.preprocess(odd, (32, 32))


def test_preprocess_takes_one_number_for_a_square_and_refuses_what_is_no_size(photo):
    for size in (32, np.int64(32), [32, 32], np.array([32, 32])):
        np.testing.assert_array_equal(ijepa_jax.preprocess(photo, size), ijepa_jax.preprocess(photo, (32, 32)))
    for size in (0, -3, 32.5, (32,), (32, 0), (32, 32, 3), "32", None, True, {"height": 32}):
        with pytest.raises(ValueError, match="must be a whole number of pixels, or two"):
            ijepa_jax.preprocess(photo, size)
    for crop in (0, 2, -0.5, 87.5, float("nan"), "0.5", None):
        with pytest.raises(ValueError, match=f"crop {crop!r} must be a number above 0 and at most 1"):
            ijepa_jax.preprocess(photo, 32, crop=crop)


def test_preprocess_crops_thin_images_and_refuses_what_is_no_file(tmp_path):
    Image.new("RGB", (60000, 1), "red").save(tmp_path / "thin.png")
    assert (ijepa_jax.preprocess(tmp_path / "thin.png") == (255, 0, 0)).all()
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    with pytest.raises(BadImage, match=r"endless\.jpg: a device or pipe"):
        ijepa_jax.preprocess(tmp_path / "endless.jpg")
    for given in (None, 3, [None], [object()]):
        with pytest.raises(BadImage, match="must be a path, a file's bytes, a Pillow image or an array, not"):
            ijepa_jax.preprocess(given)


def test_preprocess_converts_between_grey_and_colour(photo):
    grey = photo[..., 0]
    assert ijepa_jax.preprocess(photo, (32, 32), channels=1).shape == (1, 32, 32, 1)
    found = ijepa_jax.preprocess([grey, grey[..., None]], (32, 32))
    np.testing.assert_array_equal(found, np.stack([center_crop(grey[..., None].repeat(3, -1), (32, 32), 0.875)] * 2))


def test_preprocess_names_what_is_no_image(photo, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"broken\.jpg: cannot decode the image"):
        ijepa_jax.preprocess([photo, tmp_path / "broken.jpg"], (32, 32))
    Image.fromarray(photo).resize((600, 400)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-500])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(BadImage, match=r"cut\.png: "):
        ijepa_jax.preprocess(opened, (32, 32))
    with pytest.raises(BadImage, match="float32"):
        ijepa_jax.preprocess(photo.astype(np.float32), (32, 32))
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        ijepa_jax.preprocess(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="no images"):
        ijepa_jax.preprocess([])


def test_what_preprocess_makes_is_what_an_encoder_takes(encoder, photo):
    assert encoder(ijepa_jax.preprocess([photo, Image.fromarray(photo)], encoder.image_size)).shape == (2, 32)
