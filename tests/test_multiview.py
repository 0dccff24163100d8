"""Several views of an image: their pixels and distributions against torchvision's, and that they are what was drawn."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data import changes, crops, images, pipeline
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.multiview import PARAMETERS, Views
from ijepa_jax.data.open import open_source
from ijepa_jax.data.views import View
from tests import small
from tests.loader_speed import picture

PLAIN = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
PHOTOGRAPH = picture(0)
SMALL = Views("global", 2, (24, 20), keep_drawn=True), Views("local", 3, (8, 8), scale=(0.05, 0.3))


@pytest.fixture(scope="module")
def functional():
    pytest.importorskip("torch")
    from tests import partners  # noqa: F401 - before torchvision, which may be one for another torch

    try:
        from torchvision.transforms.v2 import functional as found
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs a torchvision that works: {error}")
    return found


def drawn(**given):
    same = {"flip": False, "jitter": (1.0, 1.0, 1.0, 0.0), "order": (0, 1, 2, 3), "grey": False, "sigma": 0.0}
    return changes.Drawn(box=(0, 0, 1, 1), **{**same, "solarised": False, **given})


CHANGES = {
    "flip": ({"flip": True}, lambda f, x: f.horizontal_flip(x), 0),
    "brighter": ({"jitter": (1.37, 1.0, 1.0, 0.0)}, lambda f, x: f.adjust_brightness(x, 1.37), 0.01),
    "darker": ({"jitter": (0.61, 1.0, 1.0, 0.0)}, lambda f, x: f.adjust_brightness(x, 0.61), 0.01),
    "contrast": ({"jitter": (1.0, 0.63, 1.0, 0.0)}, lambda f, x: f.adjust_contrast(x, 0.63), 0.01),
    "more contrast": ({"jitter": (1.0, 1.4, 1.0, 0.0)}, lambda f, x: f.adjust_contrast(x, 1.4), 0.01),
    "saturation": ({"jitter": (1.0, 1.0, 1.2, 0.0)}, lambda f, x: f.adjust_saturation(x, 1.2), 1),
    "hue": ({"jitter": (1.0, 1.0, 1.0, 0.1)}, lambda f, x: f.adjust_hue(x, 0.1), 2),
    "hue back": ({"jitter": (1.0, 1.0, 1.0, -0.07)}, lambda f, x: f.adjust_hue(x, -0.07), 2),
    "grey": ({"grey": True}, lambda f, x: f.rgb_to_grayscale(x, 3), 0),
    "little blur": ({"sigma": 0.4}, lambda f, x: f.gaussian_blur(x, [23, 23], [0.4, 0.4]), 0.6),
    "blur": ({"sigma": 1.9}, lambda f, x: f.gaussian_blur(x, [23, 23], [1.9, 1.9]), 0.6),
    "solarise": ({"solarised": True}, lambda f, x: f.solarize(x, 128), 0),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_torchvisions(functional, name, channels):
    given, theirs, bar = CHANGES[name]
    if channels == 1 and name == "grey":
        pytest.skip("is not drawn of grey images")
    if channels == 1 and name in ("saturation", "hue", "hue back"):
        theirs = lambda f, x: x  # noqa: E731 - there is no colour to change
    pixels = PHOTOGRAPH[:224, :224, :channels].copy()
    wanted = np.asarray(theirs(functional, Image.fromarray(pixels[..., 0] if channels == 1 else pixels)))
    for exact in (False, True):
        of = Views("v", 1, (224, 224), channels, exact=exact)
        found = changes.change(of, pixels, drawn(**given))
        assert found.dtype == np.uint8 and found.shape == pixels.shape
        apart = np.abs(found.astype(int) - wanted.reshape(pixels.shape))
        assert apart.mean() <= (bar if not exact or "blur" in name else 0), (name, exact, apart.mean())


def test_jitter_in_any_order_is_near_the_exact_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        given = drawn(jitter=(*rng.uniform(0.6, 1.4, 3), rng.uniform(-0.1, 0.1)), order=tuple(rng.permutation(4)))
        fast, exact = (changes.change(Views("v", 1, (1, 1), exact=e), PHOTOGRAPH[:96, :96], given) for e in (False, True))
        assert np.abs(fast.astype(int) - exact).mean() < 2.5


def test_what_is_drawn_has_the_distribution_it_says(functional):
    of = Views("v", 1, (32, 32))
    rng = np.random.default_rng(0)
    found = [changes.draw(of, 300, 400, u) for u in rng.random((4000, changes.UNIFORMS)).tolist()]
    for name, share in (("flip", 0.5), ("grey", 0.2), ("solarised", 0.2)):
        assert np.mean([getattr(each, name) for each in found]) == pytest.approx(share, abs=0.03)
    sigmas = np.array([each.sigma for each in found])
    assert np.mean(sigmas > 0) == pytest.approx(0.5, abs=0.03) and sigmas[sigmas > 0].mean() == pytest.approx(1.05, abs=0.05)
    factors = np.array([each.jitter for each in found])
    changed = factors[:, 0] != 1
    assert changed.mean() == pytest.approx(0.8, abs=0.03)
    for column, strength in enumerate((0.4, 0.4, 0.2)):
        values = factors[changed, column]
        assert 1 - strength <= values.min() < 1 - 0.95 * strength and 1 + 0.95 * strength < values.max() <= 1 + strength
        assert values.mean() == pytest.approx(1, abs=0.02)
    hue = factors[changed, 3]
    assert -0.1 <= hue.min() < -0.095 and 0.095 < hue.max() <= 0.1
    assert len({each.order for each in found}) == 24
    from torchvision.transforms import RandomResizedCrop

    image = Image.new("L", (400, 300))
    theirs = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([each.box for each in found])
    shares = np.linspace(0.05, 0.95, 10)
    for column in range(4):  # top, left, height, width
        np.testing.assert_allclose(*(np.quantile(boxes[:, column], shares) for boxes in (ours, theirs)), atol=14)


def test_the_pieces_are_drawn_apart():
    """A flip does not come with a grey image: no two changes read the same number."""
    of = Views("v", 1, (32, 32))
    u = np.full(changes.UNIFORMS, 0.99)
    changed = set()
    for place in range(images.CROP_UNIFORMS, changes.UNIFORMS):
        low = u.copy()
        low[place] = 0.0
        one, other = changes.draw(of, 300, 400, u.tolist()), changes.draw(of, 300, 400, low.tolist())
        apart = {name for name, a, b in zip(one._fields, one, other, strict=True) if a != b}
        assert len(apart) <= 1
        changed |= apart
    assert changed >= {"flip", "grey", "sigma", "solarised"}


def encoded(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "pixels"])
def test_an_image_is_decoded_once_and_views_are_its_crops(monkeypatch, kind, bicubic):
    data = PHOTOGRAPH if kind == "pixels" else encoded(PHOTOGRAPH, kind)
    decoded, decode, fast = [], images.decode, crops.simplejpeg.decode_jpeg
    monkeypatch.setattr(images, "decode", lambda *given: decoded.append(0) or decode(*given))
    monkeypatch.setattr(crops.simplejpeg, "decode_jpeg", lambda *given, **how: decoded.append(0) or fast(*given, **how))
    views = [dataclasses.replace(of, bicubic=bicubic, keep_drawn=True, **PLAIN) for of in SMALL]
    rooms = changes.shown(views, data, 0, 7)
    assert len(decoded) == 1
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    with Image.open(io.BytesIO(encoded(PHOTOGRAPH, "PNG") if kind == "pixels" else data)) as image:
        height, width = image.height, image.width
        for of, room in zip(views, rooms, strict=True):
            for view, told in zip(room[of.name], room[f"{of.name}_drawn"], strict=True):
                top, left, h, w = np.round(told[:4] * [height, width, height, width]).astype(int).tolist()
                wanted = image.crop((left, top, left + w, top + h)).resize(of.size[::-1], resample)
                apart = np.abs(np.asarray(wanted).astype(int) - view).mean()
                assert apart <= (0 if kind == "pixels" else 3)
                assert told[4:].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]


def test_exact_views_are_torchvisions_pixels(functional):
    of = dataclasses.replace(SMALL[0], exact=True, bicubic=True, flip=1.0, jitter=1.0, grey=0.0, blur=0.0, solarise=1.0)
    (room,) = changes.shown([of], encoded(PHOTOGRAPH), 3, 1)
    u = changes.uniforms([of], 3, 1)[0].tolist()
    given = changes.draw(of, *PHOTOGRAPH.shape[:2], u)
    with Image.open(io.BytesIO(encoded(PHOTOGRAPH))) as image:
        view = functional.resized_crop(image, *given.box, size=list(of.size), interpolation=3)
        view = functional.horizontal_flip(view)
        steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue)
        for k in given.order:
            view = steps[k](view, given.jitter[k])
        view = functional.solarize(view, 128)
    np.testing.assert_array_equal(room["global"][0], np.asarray(view))
    beside = changes.shown([of, dataclasses.replace(SMALL[1], exact=True)], encoded(PHOTOGRAPH), 3, 1)
    np.testing.assert_array_equal(beside[0]["global"], room["global"])  # whatever other views ask of the file
    told = dict(zip(PARAMETERS, room["global_drawn"][0].tolist(), strict=True))
    assert told["brightness"] == np.float32(given.jitter[0]) and told["hue"] == np.float32(given.jitter[3])


def source(channels=3, count=40):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 30, 28, channels), np.uint8)
    return ArraySource(pixels, {}, "noise")


def taken(views, steps, **settings):
    with contextlib.closing(small.stream(source(), views=views, channels=3, **settings)) as stream:
        return [next(stream) for _ in range(steps)]


def test_batches_hold_the_views_and_nothing_depends_on_who_makes_them():
    wanted = taken(SMALL, 4)
    assert {name: array.shape for name, array in wanted[0].items()} == {
        "global": (8, 2, 24, 20, 3), "global_drawn": (8, 2, 12), "local": (8, 3, 8, 8, 3), "index": (8,), "source": (8,),
        "bad": (8,),
    }  # fmt: skip
    assert wanted[0]["global"].dtype == np.uint8 and wanted[0]["global"].std() > 10
    assert not np.array_equal(wanted[0]["global"][:, 0], wanted[0]["global"][:, 1])
    late = taken(SMALL, 2, start_step=2)
    threads, workers = taken(SMALL, 4, threads=3), taken(SMALL, 2, workers=2)
    fewer = taken((SMALL[0], dataclasses.replace(SMALL[1], count=1)), 4)
    for step in range(4):
        for name, array in wanted[step].items():
            np.testing.assert_array_equal(threads[step][name], array)
            if step >= 2:
                np.testing.assert_array_equal(late[step - 2][name], array)
            else:
                np.testing.assert_array_equal(workers[step][name], array)
        np.testing.assert_array_equal(fewer[step]["local"], wanted[step]["local"][:, :1])
    again = changes.shown(SMALL, source()[int(wanted[1]["source"][3])], 3, int(wanted[1]["index"][3]))
    np.testing.assert_array_equal(again[1]["local"], wanted[1]["local"][3])


def test_processes_make_their_own_rows():
    wanted = taken(SMALL, 2)
    for index in (0, 1):
        share = pipeline.Share(index, 2)
        with contextlib.closing(
            pipeline.train_batches(source(), None, pipeline.View((16, 16)), seed=3, batch_size=8, share=share, views=SMALL)
        ) as stream:
            for step in range(2):
                np.testing.assert_array_equal(next(stream)["local"], wanted[step]["local"][4 * index : 4 * index + 4])


def test_a_bad_image_is_replaced_as_for_one_view(tmp_path):
    for i in range(12):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{i:02d}.jpg").write_bytes(
            encoded(PHOTOGRAPH[: 60 + i, :80]) if i != 5 else b"\xff\xd8 no image"
        )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.jpg").write_bytes(encoded(PHOTOGRAPH[:60, :80]))
    found = open_source(f"folder:{tmp_path}", "train", size=0, seed=0)
    with contextlib.closing(
        pipeline.train_batches(found, None, pipeline.View((16, 16)), seed=0, batch_size=12, views=SMALL)
    ) as stream:
        batch = next(stream)
    assert (batch["bad"] >= 0).sum() == 1 and (batch["global"].std(axis=(2, 3, 4)) > 1).all()


@pytest.mark.parametrize(
    "change, match",
    [
        ({"count": 0}, r"views 'v': count 0 and size \(32, 32\) must be whole numbers, 1 or more"),
        ({"size": (0, 32)}, "must be whole numbers, 1 or more"),
        ({"size": (256, 32)}, "views 'v' of 256x32 are over 4 times data.image_size 32x32, which is probed"),
        ({"size": 32}, "views 'v': size 32 must be a tuple of 2 numbers"),
        ({"strengths": (0.4, 0.4, 0.2)}, "strengths .* must be a tuple of 4 numbers"),
        ({"threshold": 300}, "threshold 300 must be from 0 to 255"),
        ({"name": ""}, "the name must be a text"),
        ({"name": "context"}, "views 'context': batches hold something else"),
        ({"channels": 4}, "views 'v': channels 4 must be 1 or 3"),
        ({"flip": 1.5}, "scale and probabilities must be from 0 to 1"),
        ({"scale": (0.9, 0.3)}, r"scale \(0.9, 0.3\) must rise from above 0"),
        ({"kernel": 4}, "kernel 4 must be odd, 3 or more"),
        ({"strengths": (0.4, 0.4, 0.2, 0.6)}, "of hue to 0.5"),
        ({"name": "image"}, "views 'image': batches hold something else by this name, give another"),
        ({"name": "other_drawn"}, "views 'other_drawn': batches hold something else"),
        ({"exact": True}, "crops of one decoded image: all must be exact, or none"),
        ({"channels": 1}, "these of 1 do not fit data.image_size .* and data.channels 3"),
    ],
    ids=str,
)
def test_views_that_no_batch_can_hold_are_one_line(change, match):
    other = Views("other", 2, (16, 16), keep_drawn=True)
    with pytest.raises(ValueError, match="views must be a tuple of Views, not "):
        View((32, 32)).check_views(other)
    with pytest.raises(ValueError, match=match) as found:
        views = (dataclasses.replace(Views("v", 1, (32, 32)), **change), other)
        View((32, 32)).check_views(views, ["context", "target"])
    assert "\n" not in str(found.value)


def test_grey_images_have_views_too():
    views = [dataclasses.replace(of, channels=1, grey=1.0, jitter=1.0) for of in SMALL]
    rooms = changes.shown(views, PHOTOGRAPH[..., :1], 0, 0)
    assert rooms[0]["global"].shape == (2, 24, 20, 1) and rooms[0]["global"].std() > 1
