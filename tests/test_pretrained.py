"""Encoders for notebooks: what `load` finds, what the calls give of whatever images, and what `preprocess` makes of files."""

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
from ijepa_jax import train
from ijepa_jax.checkpoint import CheckpointError
from ijepa_jax.data.images import BadImage, center_crop
from ijepa_jax.vit import normalise
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
    train.pretrain(small.config(optim__momentum=0.5, optim__steps=8, **data), folder / "tiny")
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
    norm = encoder.params["norm"]
    normed = jax.nn.standardize(layers[-1], epsilon=1e-6, algorithm="stable") * norm["scale"] + norm["bias"]
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
    np.testing.assert_allclose(classifier.classify(images), encoder(images)[:, :5] + np.arange(5), **ROUNDING)
    np.testing.assert_allclose(classifier.classify(images[0]), encoder(images)[0, :5] + np.arange(5), **ROUNDING)


def test_several_devices_share_the_work_and_agree_with_one(workdir, encoder, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    script = """
import json, sys
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
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
