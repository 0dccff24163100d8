"""Methods of one's own: found by file or module, with settings of their own, through every command; refusals by name."""

import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ijepa_jax
from ijepa_jax import build, methods
from ijepa_jax import cli as commandline
from ijepa_jax.evaluate import suite
from ijepa_jax.evaluate.extract import extract
from ijepa_jax.interop import card, convert
from ijepa_jax.interop.weights import Architecture, Weights, WeightsError, architecture_of, settings_for
from ijepa_jax.methods import IJepa, Method, config
from ijepa_jax.methods.optim import Optimizer, warmup_cosine
from ijepa_jax.pretrain import command
from ijepa_jax.settings import plain
from ijepa_jax.settings.evaluation import default
from ijepa_jax.train import checkpoint, digests, warm_start
from ijepa_jax.train.step import init, train_step
from ijepa_jax.visualize.explore import explore
from tests import small

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "variants.md").read_text()
SEEDS = itertools.count()  # of the order of sets, another in each process
FILES = {name: block for block, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", PAGE, re.DOTALL)}
# A method that shares nothing with I-JEPA: no target, no masks, and an encoder that is no ViT.
DENOISE = '''
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from ijepa_jax.model.encoder import Encoder
from ijepa_jax.methods import Method
from ijepa_jax.model.vit import normalise


class Patches(nn.Module):
    """Patches, each by itself through two layers."""

    patch: int
    width: int

    @nn.compact
    def __call__(self, images, layers=False):
        x = rearrange(images, "b (r p) (c q) ch -> b (r c) (p q ch)", p=self.patch, q=self.patch)
        hidden = nn.relu(nn.Dense(self.width, name="first")(x))
        last = nn.Dense(self.width, name="second")(hidden)
        return [hidden, last] if layers else last


@dataclasses.dataclass(frozen=True)
class Denoise(Method):
    """Patches drawn again from noisy ones."""

    network: Encoder
    noise: float = 0.5
    words: str = "plain"

    @classmethod
    def from_settings(cls, config):
        encoder = Encoder.from_settings(config)
        network = Patches(config.model.patch, config.model.width)
        return cls(dataclasses.replace(encoder, network=network), **cls.custom(config))

    def init(self, key):
        width = self.network.network.patch ** 2 * 3
        head = {"kernel": jnp.zeros((self.network.network.width, width))}
        return {"encoder": self.network.init(key), "head": head}

    def backbone(self):
        return self.network

    def loss(self, params, target, batch, key):
        images = normalise(batch["image"], self.network.mean, self.network.std)
        noisy = images + self.noise * jax.random.normal(key, images.shape)
        tokens = self.network.network.apply({"params": params["encoder"]}, noisy)
        p = self.network.network.patch
        goal = rearrange(images, "b (r p) (c q) ch -> b (r c) (p q ch)", p=p, q=p)
        return jnp.square(tokens @ params["head"]["kernel"] - goal).mean(), {}
'''


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def read(*arguments: str):
    return commandline.read(["pretrain", f"--config={ROOT}/configs/tiny.py", *arguments]).config


# settings


def test_fields_that_a_class_adds_are_settings_of_the_section_custom(tmp_path):
    place = write(tmp_path, "variance.py", FILES["variance.py"])
    given = read(f"--config.method={place}:Variance", "--config.custom.strength=0.25", "--config.predictor.depth=2")
    assert given.custom.to_dict() == {"strength": 0.25} and given.model.width == 32
    made = build.method(given)
    assert type(made).__name__ == made.title == "Variance" and made.strength == 0.25 and made.predictor.depth == 2
    assert IJepa.title == "I-JEPA" and not made.additive and made.masks.context_patches == 16
    with pytest.raises(commandline.UsageError, match=r"unknown setting --config\.custom\.strenght: did you mean .*strength"):
        read(f"--config.method={place}:Variance", "--config.custom.strenght=1")
    with pytest.raises(commandline.UsageError, match=r"--config\.custom\.strength=high must be a number from"):
        read(f"--config.method={place}:Variance", "--config.custom.strength=high")
    with pytest.raises(commandline.UsageError, match=r"unknown setting --config\.custom\.strength"):
        read("--config.custom.strength=1")  # of I-JEPA


def test_a_method_of_a_module_and_a_relative_file_are_found_from_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours", "__init__.py", "")
    write(tmp_path / "ours", "parts.py", FILES["variance.py"])
    write(
        tmp_path / "ours", "random.py", "from ours.parts import Variance as Base\n\n\nclass Plain(Base):\n    title = 'plain'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    of = methods.find("ours.random:Plain")
    assert of.title == "plain" and methods.find("ours/random.py:Plain").title == "plain"
    found = methods.identity("ours.random:Plain")
    assert found["class"] == "Plain" and found["file"] == str(tmp_path / "ours" / "random.py")
    assert methods.identity("ijepa") == {}
    with pytest.raises(ValueError, match=r"relative import .*; a file of a package is named package\.module:CLASS"):
        methods.find(f"{write(tmp_path / 'ours', 'near.py', 'from .parts import Variance')}:Variance")


PLAIN = "from {} import loss\nfrom ijepa_jax.methods import IJepa\n\n\nclass Plain(IJepa):\n    pass\n"
IDENTITY = "import sys; from ijepa_jax import methods; print(methods.identity(sys.argv[1])['source'])"


def source(place: Path, reference: str) -> str:
    """The digest of a method's source, as a process tells it that starts in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(next(SEEDS))}
    command = [sys.executable, "-c", IDENTITY, reference]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_the_digest_of_a_source_is_of_all_that_is_the_user_s_and_the_same_in_every_process(tmp_path):
    """Also of files of the same name, imports by name of a package, relative ones, and packages without __init__."""
    for name in ("mine/a", "mine/b", "ns"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name, "loss.py", f"loss = '{name}'\n")
    for name in ("mine", "mine/a", "mine/b"):
        write(tmp_path / name, "__init__.py", "")
    write(tmp_path / "mine", "both.py", "from mine.a import loss\n" + PLAIN.format(".b"))
    write(tmp_path / "mine", "apart.py", PLAIN.format("ns"))
    both, apart = (source(tmp_path, f"mine.{name}:Plain") for name in ("both", "apart"))
    write(tmp_path / "mine" / "b", "loss.py", "loss = 'changed'\n")
    changed = source(tmp_path, "mine.both:Plain")
    assert changed != both and source(tmp_path, "mine.both:Plain") == changed
    write(tmp_path / "ns", "loss.py", "loss = 'changed'\n")
    assert source(tmp_path, "mine.apart:Plain") != apart


def test_fields_of_every_kind_are_settings_of_that_kind(tmp_path):
    text = """
import dataclasses
from ijepa_jax.methods import IJepa, Method

@dataclasses.dataclass(frozen=True)
class Mine(IJepa):
    _: dataclasses.KW_ONLY
    span: tuple[float, float] = (0, 1)
    steps: tuple[int, ...] = (1, 2)
    scale: float = 1
    on: bool = False
    word: str = "a"
    made: float = dataclasses.field(init=False, default=2.0)
    none: tuple = ()
    mixed: tuple = (1, "a")
"""
    place = write(tmp_path, "mine.py", text)
    given = read(
        f"--config.method={place}:Mine", "--config.custom.span=(0.5, 1)", "--config.custom.on", "--config.custom.scale=2"
    )
    assert given.custom.to_dict() == {"span": (0.5, 1.0), "steps": (1, 2), "scale": 2.0, "on": True, "word": "a"}
    made = build.method(given)
    assert (made.span, made.steps, made.scale, made.on, made.made) == ((0.5, 1.0), (1, 2), 2.0, True, 2.0)
    same = config.with_method(given, f"{tmp_path}/../{tmp_path.name}/mine.py:Mine")  # the same class by another path
    assert same.custom.scale == 2.0
    with pytest.raises(ValueError, match=r"has a setting custom\.keys: a configuration has a function of that name"):
        config.default(f"{write(tmp_path, 'keys.py', text.replace('steps', 'keys'))}:Mine")
    with pytest.raises(ValueError, match=r"weight of Mine hides a member of the contract: rename it"):
        methods.find(f"{write(tmp_path, 'weight.py', text.replace('scale', 'weight'))}:Mine")
    with_init = text.replace("word: str", "word: dataclasses.InitVar[str]")
    assert methods.find(f"{write(tmp_path, 'init.py', with_init)}:Mine").title == "Mine"
    required = config.default(f"{write(tmp_path, 'required.py', text.replace('scale: float = 1', 'scale: float'))}:Mine")
    with pytest.raises(ValueError, match=r"required\.py:Mine' cannot be made: .*TypeError: .*missing 1 required .*'scale'"):
        build.method(required)


def test_settings_may_have_ranges_and_sections_of_other_methods(tmp_path):
    text = FILES["tokens.py"].replace(
        "    def target(self",
        "    @classmethod\n    def settings(cls):\n        from ijepa_jax.settings.ranges import number\n"
        "        return {**super().settings(), 'custom': {'variance': number(1.0, 0, 10), 'covariance': 0.04}}\n\n"
        "    def target(self",
    )
    place = write(tmp_path, "tokens.py", text)
    with pytest.raises(ValueError, match=r"custom\.variance 11\.0 must be a number from 0 to 10"):
        build.method(read(f"--config.method={place}:Tokens", "--config.custom.variance=11"))
    given = config.with_method(small.config(), f"{place}:Tokens")
    assert given.custom.to_dict() == {"variance": 1.0, "covariance": 0.04} and given.masks.context_patches == 16
    assert config.fixed_on_resume("custom.covariance", given.method)
    assert not config.fixed_on_resume("custom.variance", given.method)
    back = config.with_method(given, "ijepa")
    assert "custom" not in back and plain.flatten(back) == plain.flatten(small.config())
    assert plain.flatten(config.from_plain(plain.to_plain(given))) == plain.flatten(given)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1\n", "Mine", r"the class Mine is not there"),
        ("class Mine:\n    pass\n", "Mine", r"Mine is no subclass of ijepa_jax\.methods\.Method"),
        ("from ijepa_jax.methods import Method\nclass Mine(Method):\n    pass\n", "Mine", r"Mine lacks init and loss"),
        (FILES["variance.py"], "Variants", r"the class Variants is not there; methods there: Variance"),
        (
            FILES["variance.py"].replace("@dataclasses.dataclass(frozen=True)\n", ""),
            "Variance",
            r"strength are no fields of Var",
        ),
        ("import nowhere_at_all\n", "Mine", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def broken(:\n", "Mine", r"mine\.py, line 1: SyntaxError"),
        ("y = 1\n1 / 0\n", "Mine", r"mine\.py, line 2: ZeroDivisionError"),
        ("import sys\nsys.exit('not so')\n", "Mine", r"mine\.py, line 2: SystemExit: not so"),
    ],
)
def test_what_is_no_method_is_said_in_one_line(text, name, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        methods.find(f"{write(tmp_path, 'mine.py', text)}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mae_of_mine", r"method 'mae_of_mine' must be one of ijepa, lejepa, mae, pixels, rcdm, salt, or FILE\.py:CLASS"),
        ("nowhere.py:Mine", r"there is no file nowhere\.py \(looked for at /"),
        ("no.such.module:Mine", r"there is no module 'no' here or installed"),
        (":Mine", r"must be one of ijepa"),
        ("mine.py:", r"must be one of ijepa"),
    ],
)
def test_a_reference_to_nothing_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        methods.find(reference)
    with pytest.raises(commandline.UsageError, match=message):
        read(f"--config.method={reference}")


def test_settings_that_all_runs_have_are_not_one_s_own(tmp_path):
    text = (
        "from ijepa_jax.methods import IJepa\nclass Mine(IJepa):\n    @classmethod\n    def settings(cls):\n        return {}\n"
    )
    place = write(tmp_path, "mine.py", text.replace("{}", "{'data': {'size': 3}}"))
    with pytest.raises(ValueError, match="has settings of its own named data, as all runs have"):
        config.default(f"{place}:Mine")
    place = write(tmp_path, "odd.py", text.replace("{}", "{'custom': {'size': object()}}"))
    with pytest.raises(ValueError, match="size <object .* is no default of a setting"):
        config.default(f"{place}:Mine")


# through the harness


@pytest.fixture(scope="module")
def denoised(tmp_path_factory):
    """A run of a method that shares nothing with I-JEPA: (workdir, report, settings)."""
    folder = tmp_path_factory.mktemp("denoised")
    place = write(folder, "denoise.py", DENOISE)
    settings = config.with_method(small.config(), f"{place}:Denoise")
    settings.probe.every, settings.data.workers = 6, 1  # a loader process of its own
    return folder / "run", command.pretrain(settings, folder / "run"), settings


def test_a_method_of_one_s_own_is_trained_probed_and_reported_under_its_name(denoised):
    workdir, report, settings = denoised
    assert report["name"] == "Denoise" and report["method"] == settings.method and report["compilations"] == 1
    assert report["probes"]["count"].keys() >= {"trained", "random_init", "pixels"}
    assert report["pictures"] == ["curves.png", "probes.png", "pca.png", "neighbours.png"]  # it has no masks to draw
    assert (workdir / "report" / "report.md").read_text().startswith("# Denoise pretraining report")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert "momentum" not in lines[-1] and any("probe/linear/count" in line for line in lines)
    saved = checkpoint.restore_parts(str(workdir), -1, ("params", "target"))
    assert saved.trees.get("target") is None and saved.trees["params"].keys() == {"encoder", "head"}
    assert saved.notes["settings"]["method_code"]["class"] == "Denoise"


def test_it_is_evaluated_written_as_features_drawn_and_loaded(denoised, tmp_path):
    workdir, report, _ = denoised
    settings = default("knn")
    settings.data.train_images = settings.data.test_images = 32
    last = workdir / "checkpoints" / str(report["steps"])
    result = suite.evaluate(settings, str(last), out=str(tmp_path))
    assert result["name"] == "Denoise" and result["baselines"].keys() == {"random_init", "pixels"}
    assert "| task | Denoise |" in next(tmp_path.glob("*.md")).read_text()
    assert result["encoder_digest"] == report["encoder_digest"]
    written = extract(str(workdir), str(tmp_path / "f.npz"), split="test", display=command.Display(quiet=True))
    assert written["features"] == [32, 32]
    assert extract(str(workdir), str(tmp_path / "four.npz"), split="test", kind="last4", display=command.Display(quiet=True))
    encoder = ijepa_jax.load(workdir, step=-1)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert encoder(images).shape == (2, 32) and encoder.patches(images).shape == (2, 64, 32) and "depth" not in repr(encoder)
    drawn = explore(str(workdir), out=str(tmp_path / "look"), images=2, bank=16, display=command.Display(quiet=True))
    assert drawn["pictures"][0] == "pca.png" and "prediction.png" not in drawn["pictures"]
    page = (tmp_path / "look" / "index.md").read_text()
    assert page.startswith("# What the encoder of Denoise sees")
    assert "Left out: Denoise does not predict tokens of blocks from contexts." in page


def test_what_it_cannot_give_is_said_by_name(denoised, tmp_path):
    workdir, _, settings = denoised
    with pytest.raises(WeightsError, match="the encoder of Denoise is a Patches: only our ViT has a form elsewhere"):
        convert.export_weights(str(workdir), str(tmp_path / "out"), "huggingface")
    assert not (tmp_path / "out").exists()
    finetune = default("finetune")
    finetune.data.train_images = finetune.data.test_images = 32
    with pytest.raises(ValueError, match="finetune is for our ViT: this encoder is another network"):
        suite.evaluate(finetune, str(workdir), out=str(tmp_path))
    with pytest.raises(ValueError, match=r"the loss of Denoise is not known to be the mean .*additive"):
        command.pretrain(config.with_method(_changed(settings, optim__accumulation=2), settings.method), tmp_path / "parts")
    (tmp_path / "variance.py").write_text(FILES["pixels.py"])
    other = config.with_method(small.config(optim__steps=4), f"{tmp_path}/variance.py:Pixels")
    command.pretrain(other, tmp_path / "pixels")
    with pytest.raises(ValueError, match=r"is of pixel targets, which has its own init, target: a decoder reads I-JEPA's"):
        methods.find("rcdm").completed(
            _changed(config.default("rcdm"), decoder__checkpoint=f"{tmp_path}/pixels", data__name="")
        )
    with pytest.raises(ValueError, match=r"decoder\.checkpoint .* is of Denoise, not of I-JEPA's kind"):
        methods.find("rcdm").completed(_changed(config.default("rcdm"), decoder__checkpoint=str(workdir), data__name=""))


def _changed(settings, **changes):
    settings = settings.copy_and_resolve_references()
    settings.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return settings


def test_a_continued_run_says_that_its_code_changed_and_refuses_another_method(denoised, tmp_path, capfd):
    _, _, settings = denoised
    place = Path(write(tmp_path, "mine.py", DENOISE))
    mine = _changed(config.with_method(settings, f"{place}:Denoise"), probe__every=0, data__workers=0, optim__steps=4)
    command.pretrain(mine, tmp_path / "run")
    longer = _changed(mine, optim__steps=6)
    place.write_text(DENOISE.replace("jnp.square(", "2.0 * jnp.square("))
    command.pretrain(longer, tmp_path / "run")
    assert (
        "continuing with changed settings: the method's code is not what it was; optim.steps was 4, now 6"
        in capfd.readouterr()[0]
    )
    with pytest.raises(ValueError, match=r"checkpoints of other settings: custom\.noise was 0\.5, now 0\.7"):
        command.pretrain(_changed(longer, custom__noise=0.7), tmp_path / "run")
    with pytest.raises(ValueError, match=r"another method: method was '.*mine\.py:Denoise', now 'ijepa'"):
        command.pretrain(small.config(), tmp_path / "run")
    place.write_text(DENOISE.replace('"head": head}', '"head": head, "more": {"bias": jnp.zeros(3)}}'))
    with pytest.raises(checkpoint.CheckpointError, match=r"in 3 arrays: .*params/more/bias is missing there"):
        command.pretrain(_changed(longer, optim__steps=8), tmp_path / "run")
    place.write_text(DENOISE.replace("    words: str", "    text: str"))
    with pytest.raises(checkpoint.CheckpointError, match=r"unknown settings custom\.words='plain': use .* or of /.*mine\.py"):
        command.pretrain(_changed(config.with_method(small.config(), longer.method), optim__steps=8), tmp_path / "run")
    with pytest.raises(ValueError, match=r"unknown settings custom\.words: method '.*mine\.py:Denoise' has noise, text"):
        command.pretrain(longer, tmp_path / "run")


def test_a_file_that_moved_is_the_same_method_and_one_that_is_gone_is_named(denoised, tmp_path, monkeypatch):
    _, _, settings = denoised
    (tmp_path / "here").mkdir()
    write(tmp_path / "here", "mine.py", DENOISE)
    monkeypatch.chdir(tmp_path / "here")
    mine = _changed(config.with_method(settings, "mine.py:Denoise"), probe__every=0, data__workers=0, optim__steps=4)
    command.pretrain(mine, tmp_path / "run")
    monkeypatch.chdir(tmp_path)  # from elsewhere, the file is found where it was
    assert checkpoint.restore_encoder(str(tmp_path / "run"))[1].method().title == "Denoise"
    write(tmp_path, "mine.py", FILES["variance.py"])  # another file of that name is not taken for it
    assert checkpoint.restore_encoder(str(tmp_path / "run"))[1].method().title == "Denoise"
    write(tmp_path / "here", "mine.py", DENOISE + "\n# changed\n")
    said = []
    checkpoint.restore_encoder(str(tmp_path / "run"), log=said.append)
    assert len(said) == 1 and "the code of method 'mine.py:Denoise' is not what it was trained with" in said[0]
    (tmp_path / "mine.py").unlink()
    (tmp_path / "here" / "mine.py").rename(tmp_path / "moved.py")
    with pytest.raises(checkpoint.CheckpointError, match=r"method 'mine\.py:Denoise': there is no file mine\.py"):
        checkpoint.restore_encoder(str(tmp_path / "run"))


# what the contract allows


@dataclasses.dataclass(frozen=True)
class Taught(IJepa):
    """I-JEPA's students of a frozen teacher of another size, whose patches a linear layer brings to the student's width."""

    teacher_width: int = 24

    def _teacher(self):
        return dataclasses.replace(self.network, width=self.teacher_width)

    def init_target(self, params, key):
        images = jnp.zeros((1, *self.image_size, self.channels))
        return {"teacher": self._teacher().init(jax.random.fold_in(key, 1), images)["params"], "map": jnp.eye(24, 16)}

    def update_target(self, target, params, momentum):
        return target

    def target(self, params):
        return None

    def encoder(self, params, target):
        return params["encoder"]

    def encode_target(self, target, images, wanted=None):
        tokens = self._teacher().apply({"params": target["teacher"]}, images).astype(jnp.float32) @ target["map"]
        return jax.lax.stop_gradient(jax.nn.standardize(tokens, epsilon=1e-5))

    def optimiser(self, **settings):
        """Networks clipped each by itself, schedules counted from 0, decay of what lies in the predictor only."""
        counted = warmup_cosine(
            settings["start_lr"], settings["peak_lr"], settings["final_lr"], settings["warmup_steps"], settings["total_steps"]
        )
        rate = lambda step: counted(step - 1)  # noqa: E731
        decayed = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "predictor", params)  # noqa: E731
        clipped = optax.partition(
            {name: optax.clip_by_global_norm(1e-6) for name in ("encoder", "predictor")},
            lambda params: {name: name for name in params},
        )
        adamw = optax.adamw(rate, weight_decay=settings["weight_decay"], mask=decayed)
        return Optimizer(optax.chain(clipped, adamw), rate, lambda step: settings["weight_decay"], lambda step: 1.0)


def test_a_frozen_teacher_of_another_size_and_an_optimiser_of_one_s_own():
    plain = small.method()
    of = Taught(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    optimizer = of.optimiser(
        start_lr=0.0, peak_lr=1e-2, final_lr=1e-5, warmup_steps=10, total_steps=100, weight_decay=0.5, clip=None
    )
    state = jax.jit(lambda: init(of, optimizer, 0))()
    step = jax.jit(lambda state, batch: train_step(state, batch, method=of, optimizer=optimizer, seed=0))
    first, metrics = step(state, small.batch(of))
    assert float(metrics["learning_rate"]) == 0.0  # counted from 0, the first step changes nothing
    jax.tree.map(np.testing.assert_array_equal, first.params, state.params)
    second, _ = step(first, small.batch(of, start=4))
    jax.tree.map(np.testing.assert_array_equal, second.target, state.target)
    assert state.target["teacher"]["norm"]["scale"].shape == (24,) and state.params["encoder"]["norm"]["scale"].shape == (16,)
    norms = lambda state: optax.tree.get(state.opt_state, "mu")  # noqa: E731
    assert float(optax.tree.norm(norms(first)["encoder"])) == pytest.approx(1e-7, rel=1e-3)  # 0.1 of what is left of it
    assert float(optax.tree.norm(norms(first)["predictor"])) == pytest.approx(1e-7, rel=1e-3)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), second.params, first.params)
    assert moved["encoder"]["blocks"]["0"]["qkv"]["kernel"] > 0


def test_an_edit_during_a_run_neither_ends_it_nor_gets_into_its_checkpoints(denoised, tmp_path, monkeypatch):
    _, _, settings = denoised
    place = Path(write(tmp_path, "mine.py", DENOISE))
    mine = _changed(config.with_method(settings, f"{place}:Denoise"), probe__every=0, data__workers=0, optim__steps=8)
    before, save = methods.identity(mine.method)["source"], checkpoint.Checkpoints.save

    def edited(self, state, step, settings, *given, **notes):
        place.write_text("class Broken(:\n")
        save(self, state, step, settings, *given, **notes)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", edited)
    command.pretrain(mine, tmp_path / "run")
    notes = json.loads((tmp_path / "run" / "checkpoints" / "8" / "notes" / "metadata").read_text())
    assert notes["settings"]["method_code"]["source"] == before


BETWEEN = """
import jax
from ijepa_jax.methods import IJepa, Method


class Between(IJepa):
    def encoder(self, params, target):
        return jax.tree.map(lambda new, old: (new + old) / 2, params["encoder"], target)
"""


def test_an_encoder_that_is_computed_is_probed_restored_and_evaluated(tmp_path):
    place = write(tmp_path, "between.py", BETWEEN)
    mine = config.with_method(small.config(optim__steps=4, probe__every=2, checkpoint__every=2), f"{place}:Between")
    report = command.pretrain(mine, tmp_path / "run")
    encoder, _ = checkpoint.restore_encoder(str(tmp_path / "run"), 4)
    trees = checkpoint.restore_parts(str(tmp_path / "run"), 4, ("params", "target")).trees
    both = trees["params"]["encoder"]["norm"]["bias"], trees["target"]["norm"]["bias"]
    np.testing.assert_allclose(encoder["norm"]["bias"], sum(both) / 2, rtol=1e-6)
    method = build.trained_method(mine)
    assert report["encoder_digest"] == digests.encoder_digest(encoder, method.backbone()) and report["probes"]
    with pytest.raises(ValueError, match="the encoder of Between is computed, so there is no place for weights"):
        command.pretrain(_changed(mine, warm_start=str(tmp_path / "run")), tmp_path / "warm")


def test_an_encoder_in_a_list_is_picked_too(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    nets = [{"a": np.zeros(2, np.float32)}, {"a": np.ones(2, np.float32)}]
    checkpoints.save({"params": {"nets": nets}, "step": np.int32(1)}, 1, plain.to_plain(config.default()))
    checkpoints.wait()
    assert checkpoints.encoder(1, lambda params, _: params["nets"][1])["a"].tolist() == [1, 1]
    checkpoints.close()


class Structured(Method):
    """What is kept beside the parameters is more than what is followed."""

    def init(self, key):
        return {"encoder": {"a": jnp.zeros(2)}, "head": {"b": jnp.zeros(3)}}

    def target(self, params):
        return params["encoder"]

    def init_target(self, params, key):
        return {"average": super().init_target(params, key), "teacher": {"t": jnp.ones(4)}}

    def update_target(self, target, params, momentum):
        return {**target, "average": super().update_target(target["average"], params, momentum)}

    def encoder(self, params, target):
        return target["average"]

    def loss(self, params, target, batch, key):
        return jnp.square(params["encoder"]["a"] - batch["image"].mean()).sum(), {}


def test_weights_to_start_from_go_to_the_average_and_to_what_it_follows():
    of = Structured()
    state = init(of, small.optimizer(), 0)
    started = warm_start._with_encoder(of, state, {"a": np.array([3.0, 4.0], np.float32)})
    for tree in (started.target["average"], started.params["encoder"]):
        assert tree["a"].tolist() == [3, 4]
    assert started.target["teacher"]["t"].tolist() == [1] * 4 and started.params["head"]["b"].tolist() == [0] * 3
    after, _ = train_step(started, {"image": jnp.ones((2, 2, 2, 3))}, method=of, optimizer=small.optimizer(), seed=0)
    assert after.target["teacher"]["t"].tolist() == [1] * 4 and after.target["average"]["a"].tolist() != [3, 4]


def test_an_imported_encoder_is_read_whatever_the_predictor_of_its_settings():
    """It came without one: five heads do not divide the default width."""
    given = Architecture(320, 3, 5, 1280, 16, 3, (32, 32))
    assert architecture_of(settings_for(given, "bicubic")) == given


def test_an_encoder_that_computes_is_restored_too(tmp_path):
    """One that only picks reads no more than it needs; one that computes gets all there is."""
    trees = {
        "params": {"encoder": {"a": np.arange(3, dtype=np.float32)}, "other": {"b": np.ones(2, np.float32)}},
        "target": {"a": np.full(3, 2, np.float32)},
    }
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save({**trees, "step": np.int32(1)}, 1, plain.to_plain(config.default()))
    checkpoints.wait()
    read_parts = []
    parts = checkpoints.parts
    checkpoints.parts = lambda step, wanted: read_parts.append([*wanted]) or parts(step, wanted)
    picked = checkpoints.encoder(1, lambda params, target: {"x": params["other"]["b"], "y": target["a"]})
    assert (
        picked["x"].tolist() == [1, 1] and picked["y"].tolist() == [2, 2, 2] and read_parts == [["params/other/b", "target/a"]]
    )
    computed = checkpoints.encoder(1, lambda params, target: {"mean": (params["encoder"]["a"] + target["a"]) / 2})
    assert computed["mean"].tolist() == [1.0, 1.5, 2.0] and read_parts[1] == ["params", "target"]
    checkpoints.close()


def test_no_other_module_compares_a_method_s_name():
    """The table knows names; all else asks the class."""
    names = "|".join(methods.TABLE)
    for path in (ROOT / "ijepa_jax").rglob("*.py"):
        if path.name not in ("table.py", "huggingface.py"):  # whose model_type is transformers'
            assert not re.search(rf"""[=!]= *["']({names})["']|in \(["']({names})""", path.read_text()), path


# the page


def test_a_card_speaks_of_a_target_where_the_encoder_is_the_target_s(tmp_path):
    """The method's own name is its tag."""
    place = write(tmp_path, "pixels.py", FILES["pixels.py"])
    for method, kind, tag in (("ijepa", "The target encoder", "ijepa"), (f"{place}:Pixels", "The encoder", "pixeltargets")):
        settings = config.with_method(small.config(), method)
        weights = Weights({}, settings, {"format": "ijepa_jax", "file": "x"})
        facts = {"format": "timm", "encoder": "target", "step": 3, "encoder_digest": "0"}
        text = card.model_card(str(tmp_path), weights, facts, "load()", "")
        assert f"{kind} of " in text and f"tags: [{tag}, " in text


@pytest.mark.slow
def test_the_page_s_files_run_as_they_stand(tmp_path):
    """Every command of docs/variants.md, in its order, but those for hardware that is not here."""
    for name, text in FILES.items():
        write(tmp_path, name, text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = [line.split(" #")[0].strip() for line in re.findall(r"^python (.*)$", PAGE, re.MULTILINE)]
    assert len(lines) == 16
    smaller = {
        "pretrain": ["--config.optim.steps=4", "--config.optim.warmup=1", "--config.probe.every=0", "--config.data.size=64"],
        "benchmark": ["--steps=2", "--warmup=1", "--cpu"],
        "tests/killed.py": ["--kills=1", "--config.probe.every=0"],
        "tests/equivalence.py": ["--steps=2", "--cells", "2 processes: 2x2"],
    }
    for line in lines:
        words = shlex.split(line)
        if "v5e:2x2" in words:
            continue
        name = words[1] if words[0] == "launch.py" else words[0]
        command = [sys.executable, str(ROOT / words[0]), *words[1:], *smaller.get(name, ())]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{line}: {done.stdout[-1000:]} {done.stderr[-3000:]}"
        if name == "benchmark":
            assert json.loads(done.stdout)["method"] == "Variance"
    card = (tmp_path / "exported" / "variance" / "README.md").read_text()
    assert "# Variance encoder" in card and "custom.strength 0.1" in card
