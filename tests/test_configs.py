"""Every configuration: full size by shapes alone, shrunk by one real step, documented."""

import importlib
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from configs import folder_small
from ijepa_jax import build, cli
from ijepa_jax.data.source import DataError
from ijepa_jax.evaluate import protocols
from ijepa_jax.methods import config as settings
from ijepa_jax.model import vit
from ijepa_jax.model.vit import parameter_count
from ijepa_jax.settings import architectures, evaluation, plain
from ijepa_jax.train.step import init, train_step
from tests import small

NAMES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py") if path.stem != "__init__")
# METHOD section 3: encoder parameters, batch, epochs, warm-up epochs, start of the learning rate
PUBLISHED = {
    "in1k_vitb16": (85_646_592, 600, 15, 1e-4), "in1k_vitl16": (303_098_880, 600, 15, 1e-4),
    "in1k_vith14": (630_434_560, 300, 40, 2e-4), "in1k_vith16_448": (None, 300, 40, 2e-4),
    "in22k_vith14": (630_434_560, 66, 3, 2e-4), "in22k_vitg16": (1_011_092_608, 44, 3, 2e-4),
}  # fmt: skip
IMAGENET = 1_281_167


def load(name: str):
    module = importlib.import_module(f"configs.{name}")
    return module, module.get_config()


@pytest.mark.parametrize("name", NAMES)
def test_documented_and_consistent(name):
    module, config = load(name)
    assert f"configs/{name}.py" in module.__doc__ or name == "quickstart"
    for word in ("launch.py", "Hardware"):
        assert word in module.__doc__
    settings.check(config)
    build.method(config)
    assert plain.differences(plain.to_plain(config), plain.to_plain(settings.from_plain(plain.to_plain(config)))) == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_at_full_size(name):
    count, epochs, warmup, start_lr = PUBLISHED[name]
    _, config = load(name)
    config.model.scan = True  # dozens of blocks are traced once
    method = build.method(config)
    optimizer = build.optimizer(config, method, IMAGENET)
    state = jax.eval_shape(partial(init, method, optimizer, 0))
    if count:
        assert parameter_count(state.params["encoder"]) == count
    assert state.params["predictor"]["mask_token"].shape == (384,)
    optim = config.optim
    assert (optim.batch_size, optim.epochs, optim.warmup, optim.start_lr) == (2048, epochs, warmup, start_lr)
    assert (optim.peak_lr, optim.final_lr, optim.weight_decay, optim.final_weight_decay) == (1e-3, 1e-6, 0.04, 0.4)
    assert (optim.momentum, optim.final_momentum, optim.schedule_scale) == (0.996, 1.0, 1.25)
    assert build.total_steps(config, IMAGENET) == epochs * 625
    masks = method.prepare()(jax.numpy.arange(4).__array__())
    batch = {"image": jax.ShapeDtypeStruct((4, *method.image_size, 3), "uint8"), **masks}
    after, metrics = jax.eval_shape(partial(train_step, method=method, optimizer=optimizer, seed=0), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()


@pytest.mark.parametrize(
    "name", ["in1k_vitb16", "in1k_vith14", "in1k_vith16_448", "in22k_vitg16"]
)  # others differ in size only
def test_published_runs_shrunk_train_a_step(name):
    _, config = load(name)
    config.model.width, config.model.depth, config.model.heads = 32, 2, 2
    config.predictor.width, config.predictor.depth = 16, 1
    method = build.method(config)
    optimizer = build.optimizer(config, method, IMAGENET)
    state = jax.jit(partial(init, method, optimizer, 0))()
    _, metrics = jax.jit(partial(train_step, method=method, optimizer=optimizer, seed=0))(state, small.batch(method, size=2))
    assert 0 < float(metrics["loss"]) < 2


def test_unknown_names_are_named():
    for change, message in (
        ({"model__size": "vit_medium"}, "model.size 'vit_medium' must be one of vit_pico"),
        ({"model__patch": 0}, "model.patch 0 must be a whole number from 1"),
        ({"model__attention": "flash"}, "model.attention 'flash' must be one of auto, xla, cudnn"),
        ({"method": "beit"}, "method 'beit' must be one of ijepa, lejepa, mae, pixels, rcdm, salt"),
        (
            {"optim__warmup": 11.2, "optim__schedule_scale": 0.95},
            "optim.warmup 11.2 steps must be shorter than the schedule, 11.4",
        ),
        ({"mesh__data": -1, "mesh__fsdp": -1}, "mesh.data and mesh.fsdp are both -1"),
        ({"model__dtype": "float16"}, "model.dtype 'float16' must be one of"),
        ({"optim__epochs": 3.0}, "give either optim.epochs or optim.steps"),
        ({"masks__context_patches": 60}, "context_patches"),
        (
            {"data__image_size": (30, 32)},
            "data.image_size, model.patch: image of 30x32 pixels does not divide into patches of 4x4",
        ),
        ({"data__image_size": (8, 8)}, "grid"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.check_run(config := small.config(**change))
            build.method(config)


def test_a_run_too_short_for_its_warm_up_or_for_a_step_is_refused_when_its_data_are_known():
    config = small.config(optim__steps=0, optim__epochs=1.0, optim__warmup=1.1, optim__batch_size=16)
    config.optim.schedule_scale = 1.25
    method = build.method(config)
    assert build.total_steps(config, 160) == 10 and build.optimizer(config, method, 160)
    with pytest.raises(
        ValueError, match=r"optim.epochs 1 of 16 images are 1 steps, and optim.warmup 1.1 of them 1, which must be"
    ):
        build.optimizer(config, method, 16)
    config.optim.epochs, config.optim.warmup = 0.01, 0.0
    with pytest.raises(ValueError, match=r"optim.epochs 0.01 of 160 images are 0 steps"):
        build.optimizer(config, method, 160)


def test_arrays_that_cannot_have_the_channels_are_refused_where_they_are_opened(tmp_path):
    for shape, message in (
        ((9, 3, 8, 8), r"cannot become one of 3.*\(data.channels\)"),
        ((9, 0, 8, 3), "images must be uint8"),
    ):
        np.savez(tmp_path / "x.npz", images=np.zeros(shape, np.uint8))
        with pytest.raises(DataError, match=message):
            build.loader(small.config(data__name=f"arrays:{tmp_path / 'x.npz'}")).open("train")


def test_the_names_that_settings_have_are_those_of_what_there_is():
    assert tuple(protocols.BY_NAME) == evaluation.PROTOCOLS and tuple(vit.POLICIES) == architectures.REMAT


def test_settings_can_be_had_without_networks_or_data():
    script = "import sys, ijepa_jax.settings.run, ijepa_jax.settings.evaluation; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"jax", "flax", "optax", "grain"} & {*run.stdout.split()}


def derived(*overrides: str, dry_run: bool = False):
    given = cli.parse(["pretrain", "--config", "configs/folder_small.py", *overrides, *["--dry-run"] * dry_run])
    cli.configure(given, None if dry_run else launch.training_images)
    return given.config


def test_the_small_configuration_follows_from_the_images_size_and_number(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.zeros((4000, 8, 8, 3), np.uint8))  # nine tenths of them for training
    data = f"--config.data.name=arrays:{tmp_path / 'x.npz'}"
    config = derived(data, "--config.data.image_size=96,96")
    assert (config.model.patch, config.data.image_size) == (12, (96, 96))
    steps = 60 * len(build.loader(config).open("train")) // 32
    assert 6600 < steps < 6900 and config.optim.steps == steps
    assert (config.optim.warmup, config.probe.every, config.checkpoint.every) == (steps / 10, steps // 6, steps // 10)
    assert build.method(config).masks.context_length == 64 - 38
    config = derived(
        data, "--config.optim.steps=50", "--config.probe.every=7", "--config.model.patch=16"
    )  # the reader's own stay
    assert (config.optim.steps, config.probe.every, config.model.patch) == (50, 7, 16)
    assert (config.optim.warmup, config.checkpoint.every) == (5, 5)
    config = derived(
        "--config.data.name=folder:missing", "--config.data.image_size=28,28", dry_run=True
    )  # data are not looked at
    assert (config.model.patch, config.optim.steps) == (7, folder_small.MOST)
    with pytest.raises(ValueError, match=r"data.image_size \(97, 64\) is not of patches of about 10 pixels: give \(100, 60\)"):
        derived(data, "--config.data.image_size=97,64")
    with pytest.raises(ValueError, match=r"must be \(height, width\)"):
        derived("--config.data.image_size=8,32,32", dry_run=True)
    with pytest.raises(DataError, match="missing"):
        derived("--config.data.name=folder:missing")
    assert derived("--config.data.name=folder:missing", "--config.optim.steps=9").optim.steps == 9  # no number is wanted
    config = derived(data, "--config.optim.epochs=20")
    assert (config.optim.epochs, config.optim.steps, config.optim.warmup) == (20, 0, 2)
    settings.check_run(config)
    for wrong in ("optim.batch_size=0", "data.image_size=-64,64"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            derived(data, f"--config.{wrong}")


def test_images_are_counted_before_any_device_is_touched(tmp_path):
    """As what starts several processes has to come first."""
    np.savez(tmp_path / "x.npz", images=np.zeros((40, 8, 8, 3), np.uint8))
    arguments = ["pretrain", "--config", "configs/folder_small.py", f"--config.data.name=arrays:{tmp_path / 'x.npz'}"]
    script = f"""
from ijepa_jax import cli
import launch
given = cli.parse({arguments})
cli.configure(given, launch.training_images)
from jax._src import xla_bridge
assert given.config.optim.steps == {folder_small.FEWEST} and not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parent.parent)


@pytest.mark.parametrize("images, steps", [(10, folder_small.FEWEST), (10**6, folder_small.MOST), (3200, 6000)])
def test_steps_of_few_and_of_many_images(images, steps):
    config = folder_small.get_config()
    folder_small.derive(config, count=lambda: images)
    assert config.optim.steps == steps


def test_every_size_makes_a_grid_that_is_neither_coarse_nor_slow_or_is_told_one_that_does():
    squares, others = [(side, side) for side in range(1, 257)], np.random.default_rng(0).integers(1, 400, (500, 2)).tolist()
    for height, width in squares + others + [(16, 268), (97, 64), (160, 120), (1, 400)]:
        try:
            patch = folder_small.patch_of(height, width)
        except ValueError as error:
            height, width = map(int, re.findall(r"give \((\d+), (\d+)\)", str(error))[0])
            patch = folder_small.patch_of(height, width)
        assert height % patch == width % patch == 0 and 16 <= height // patch * (width // patch) <= 140


def test_the_page_on_small_data_tells_what_follows():
    page = (Path(__file__).resolve().parent.parent / "docs" / "small_data.md").read_text()
    sizes = re.findall(r"^\| (\d+)x(\d+) \| (\d+) \| (\d+)x(\d+) \| (\d+), (\d+) \|$", page, re.M)
    steps = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \|$", page, re.M)
    assert len(sizes) == 8 and len(steps) == 5
    for *told, context, hidden in (map(int, row) for row in sizes):
        config = folder_small.get_config()
        config.data.image_size = tuple(told[:2])
        folder_small.derive(config)
        masks = build.method(config).masks
        assert [config.model.patch, *masks.grid, masks.context_length, masks.target_length] == [*told[2:], context, hidden]
    for images, told in ([int(number.replace(",", "")) for number in row] for row in steps):
        config = folder_small.get_config()
        folder_small.derive(config, count=lambda images=images: images)
        assert config.optim.steps == told
