"""The authors' training checkpoints: every tensor and moment read, continued, written back to the bit; others refused."""

import copy
import os
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from ijepa_jax import build
from ijepa_jax.interop import convert, layout, pretrained, reference
from ijepa_jax.interop.weights import WeightsError
from ijepa_jax.methods import optim
from ijepa_jax.train import checkpoint, step
from tests import small

TRAINED, MODULES = ("encoder", "predictor"), ("encoder", "predictor", "target_encoder")
WIDTH, NARROW, PATCH, GRID = 16, 8, 4, 6
SETTINGS = {
    "model__width": WIDTH, "model__depth": 2, "model__heads": 2, "model__patch": PATCH, "model__positions": "table",
    "predictor__width": NARROW, "predictor__depth": 1, "data__image_size": (24, 24), "masks__context_patches": 9,
    "optim__clip": None,
}  # fmt: skip
KINDS = ("weight", "bias")
LAYERS = {"norm1": (1,), "attn.qkv": (3, 1), "attn.proj": (1, 1), "norm2": (1,), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}


def _block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    sizes = {layer: tuple(width * factor for factor in factors) for layer, factors in LAYERS.items()}
    return {f"{name}.{layer}.{kind}": size if kind == "weight" else size[:1] for layer, size in sizes.items() for kind in KINDS}


ENCODER = {
    "pos_embed": (1, GRID**2, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,),
    **_block("blocks.0", WIDTH), **_block("blocks.1", WIDTH), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
}  # fmt: skip
SHALLOW = {name: shape for name, shape in ENCODER.items() if "blocks.1" not in name}
PREDICTOR = {
    "mask_token": (1, 1, NARROW), "predictor_pos_embed": (1, GRID**2, NARROW),
    "predictor_embed.weight": (NARROW, WIDTH), "predictor_embed.bias": (NARROW,), **_block("predictor_blocks.0", NARROW),
    "predictor_norm.weight": (NARROW,), "predictor_norm.bias": (NARROW,),
    "predictor_proj.weight": (WIDTH, NARROW), "predictor_proj.bias": (WIDTH,),
}  # fmt: skip


def _module(shapes: dict[str, tuple[int, ...]], prefix: str) -> nn.Module:
    """Nested modules with random parameters of these names, each after the prefix."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = f"{prefix}{name}".split(".")
        node = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(torch.randn(shape), requires_grad="pos_embed" not in leaf))
    return root


class Theirs:
    """A run as the authors' code has it: three modules, and AdamW with four groups of parameters."""

    def __init__(self, prefix: str = "module.", seed: int = 0):
        torch.manual_seed(seed)
        self.encoder, self.predictor, self.target_encoder = (_module(s, prefix) for s in (ENCODER, PREDICTOR, ENCODER))
        self.groups = [
            [(module, n) for n, p in getattr(self, module).named_parameters() if ("bias" in n or p.ndim == 1) == plain]
            for plain in (False, True)
            for module in TRAINED
        ]
        groups = [{"params": [getattr(self, module).get_parameter(n) for module, n in group]} for group in self.groups]
        for group in groups[2:]:
            group |= {"WD_exclude": True, "weight_decay": 0}
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.04)
        self.scaler = torch.amp.GradScaler("cpu")

    def step(self, seed: int, lr: float = 1e-3, weight_decay: float = 0.04) -> None:
        draw = torch.Generator().manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, 0 if group.get("WD_exclude") else weight_decay
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=draw) if p.requires_grad else None
        self.optimizer.step()

    def saved(self) -> dict:
        modules = {name: getattr(self, name).state_dict() for name in MODULES}
        numbers = {"epoch": 3, "loss": 0.25, "batch_size": 8, "world_size": 2, "lr": 1e-3}
        return {**modules, "opt": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), **numbers}

    def load(self, saved: dict) -> int:
        """As their `load_checkpoint` does; returns the epoch to go on from."""
        for name in MODULES:
            getattr(self, name).load_state_dict(saved[name])
        self.optimizer.load_state_dict(saved["opt"])
        self.scaler.load_state_dict(saved["scaler"])
        return saved["epoch"]


def trained(prefix: str = "module.", steps: int = 3) -> Theirs:
    theirs = Theirs(prefix)
    for seed in range(steps):
        theirs.step(seed)
    return theirs


@pytest.fixture(scope="module", params=["module.", ""], ids=["data parallel", "alone"])
def run(request, tmp_path_factory):
    """(their run, its file, our workdir imported from it)."""
    folder = tmp_path_factory.mktemp("run")
    theirs, file = trained(request.param), folder / "jepa-ep3.pth.tar"
    torch.save(theirs.saved(), file)
    read = convert.import_weights(str(file), str(folder / "ours"), base=small.config(**SETTINGS))
    assert read["continues"] and read["step"] == 3 and read["epoch"] == 3
    return theirs, file, folder / "ours"


def _ours(tensors: dict) -> dict:
    return layout.from_reference({name.removeprefix("module."): t.detach().numpy() for name, t in tensors.items()})


def _assert_same(ours, theirs) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_tensor_and_moment_lands_where_it_must(run):
    theirs, file, workdir = run
    weights = convert.read_foreign(str(file), heads=2)
    assert weights.step == weights.training.step == 3 and weights.training.batch_size == weights.settings.optim.batch_size == 16
    kept = convert.from_workdir(str(workdir), training=True)
    for found in (weights, kept):
        _assert_same(found.encoder, _ours(theirs.target_encoder.state_dict()))
        for name in TRAINED:
            parameters = dict(getattr(theirs, name).named_parameters())
            _assert_same(found.training.params[name], _ours(parameters))
            for moment, key in zip(found.training.moments, ("exp_avg", "exp_avg_sq"), strict=True):
                state = {n: theirs.optimizer.state.get(p, {}).get(key, torch.zeros_like(p)) for n, p in parameters.items()}
                _assert_same(moment[name], _ours(state))


def test_layouts_are_those_of_the_layers_that_they_belong_to(run):
    """Once by hand, since elsewhere both sides use the same table of names."""
    theirs, file, _ = run
    encoder = convert.read_foreign(str(file), heads=2).encoder
    image = np.random.default_rng(0).normal(size=(PATCH, PATCH, 3)).astype(np.float32)
    named = {name.removeprefix("module."): p.detach().numpy() for name, p in theirs.target_encoder.named_parameters()}
    wanted = np.einsum("dchw,hwc->d", named["patch_embed.proj.weight"], image)
    np.testing.assert_allclose(image.reshape(-1) @ encoder["patch_embed"]["kernel"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(encoder["blocks"]["1"]["qkv"]["kernel"].T, named["blocks.1.attn.qkv.weight"])


def test_the_groups_are_theirs_and_weight_decay_acts_on_the_mask_token(run):
    theirs, _, workdir = run
    modules = {name: dict(getattr(theirs, name).named_parameters()) for name in TRAINED}
    assert reference.parameter_groups(modules) == theirs.groups and theirs.groups[1][0][1].endswith("mask_token")
    mask = optim.decay_mask(checkpoint.restore_parts(str(workdir), parts=["params"]).trees["params"])
    for decayed, group in zip((True, True, False, False), theirs.groups, strict=True):
        for module, name in group:
            path = layout.parameter_path(name.removeprefix("module."))
            assert path == ("positions",) or reduce(getitem, path, mask[module]) == decayed, name


def test_one_more_step_in_torch_is_one_more_step_here(run):
    """Equal but for the rounding of single operations: moments, bias correction and weight decay go on where they were."""
    theirs, _, workdir = run
    config = small.config(**SETTINGS)
    optimizer = build.optimizer(config, build.method(config), 64)
    shapes = jax.eval_shape(partial(step.init, build.method(config), optimizer, 0))
    state = checkpoint.Checkpoints(workdir, read_only=True).restore(shapes, print).state
    assert int(state.step) == 3
    other = Theirs("module." if "module." in next(iter(theirs.saved()["encoder"])) else "")
    other.load(copy.deepcopy(theirs.saved()))
    other.step(9, float(optimizer.learning_rate(3)), float(optimizer.weight_decay(3)))
    gradients = {
        name: _ours({n: p.grad if p.requires_grad else torch.zeros_like(p) for n, p in getattr(other, name).named_parameters()})
        for name in TRAINED
    }
    updates, _ = jax.jit(optimizer.transformation.update)(gradients, state.opt_state, state.params)
    params = jax.jit(optax.apply_updates)(state.params, updates)
    for name in TRAINED:
        wanted = _ours(dict(getattr(other, name).named_parameters()))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7), dict(params[name]), wanted)
        _assert_same(params[name]["positions"], wanted["positions"])
    moved = params["predictor"]["mask_token"] - state.params["predictor"]["mask_token"]
    assert float(jnp.abs(moved).min()) > 0


def test_what_is_written_back_loads_in_their_code_to_the_bit(run, tmp_path):
    theirs, file, workdir = run
    written = convert.export_weights(str(workdir), str(tmp_path / "out"), "reference")
    assert written["files"] == ["README.md", "checkpoint.pth.tar"]
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    other = Theirs("module.", seed=1)
    assert other.load(saved) == 3 and saved["batch_size"] * saved["world_size"] == 16
    for name in MODULES:
        pairs = zip(getattr(theirs, name).parameters(), getattr(other, name).parameters(), strict=True)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    before, after = theirs.optimizer.state_dict(), other.optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys()
    for index, kept in before["state"].items():
        assert kept.keys() == after["state"][index].keys()
        assert all(torch.equal(kept[key], after["state"][index][key]) for key in kept)
    assert [group.get("WD_exclude", False) for group in after["param_groups"]] == [False, False, True, True]
    twin = copy.deepcopy(theirs)
    for one in (twin, other):
        one.step(7)
    assert all(torch.equal(a, b) for a, b in zip(twin.encoder.parameters(), other.encoder.parameters(), strict=True))
    again, first = (convert.read_foreign(str(path), heads=2) for path in (tmp_path / "out" / "checkpoint.pth.tar", file))
    _assert_same((again.encoder, again.training.params), (first.encoder, first.training.params))


@pytest.mark.parametrize("kept", [("target_encoder",), ("encoder", "predictor", "target_encoder", "epoch")], ids=str)
def test_without_the_optimiser_there_is_an_encoder_and_no_run_to_continue(tmp_path, kept):
    theirs = Theirs()
    torch.save({key: value for key, value in theirs.saved().items() if key in kept}, tmp_path / "x.pth.tar")
    read = convert.import_weights(str(tmp_path / "x.pth.tar"), str(tmp_path / "ours"), heads=2)
    assert not read["continues"] and read["step"] == 0
    images = np.zeros((2, 24, 24, 3), np.uint8)
    features = [pretrained.load(str(tmp_path / name), heads=2)(images) for name in ("x.pth.tar", "ours")]
    np.testing.assert_array_equal(*features)
    assert features[0].shape == (2, WIDTH) and np.isfinite(features[0]).all()


NAN, MASK, EMBED = torch.full((1, 1, NARROW), float("nan")), "module.mask_token", "module.predictor_embed.weight"
STATE = ("opt", "state")  # of parameter 1, the encoder's patch embedding, and of 10, the predictor's mask token
BROKEN = [  # the line, what is changed, and to what: None deletes it
    ("(opt) has groups of [10, 7, 19, 12] parameters; those of this model are [10, 8, 19, 12]",
     ("opt", "param_groups", 1, "params"), [*range(7)]),
    ("(opt): parameters were stepped [3, 7] times: not the same number, from 0 up", (*STATE, 2, "step"), 7.0),
    ("(opt): exp_avg_sq of encoder's patch_embed.proj.weight has shape [3], not [16, 3, 4, 4]",
     (*STATE, 1, "exp_avg_sq"), torch.zeros(3)),
    ("(opt) has no moments of encoder's patch_embed.proj.weight", (*STATE, 1), None),
    ("(opt) has what AdamW's state has not: max_exp_avg_sq", (*STATE, 1, "max_exp_avg_sq"), NAN),
    ("(opt) has what AdamW's state has not: 99", (*STATE, 99), {}),
    ("(opt) is not the state of a torch optimiser: AttributeError", (*STATE, 1), 5),
    ("(opt) is not the state of a torch optimiser: TypeError", ("opt",), []),
    ("(opt) is not the state of a torch optimiser: IndexError", ("opt",), torch.zeros(())),
    ("(opt) (step) is not a number: x", (*STATE, 1, "step"), "x"),
    ("(moments of predictor): tensor mask_token holds NaN", (*STATE, 10, "exp_avg"), NAN),
    ("(predictor) lacks mask_token", ("predictor", MASK), None),
    ("(predictor): tensor mask_token has shape [1, 1, 9], not [1, 1, 8]", ("predictor", MASK), torch.zeros(1, 1, 9)),
    ("(predictor): tensor predictor_embed.weight has shape [], not [8, 16]", ("predictor", EMBED), torch.zeros(())),
    ("(predictor): tensor mask_token holds NaN or infinite values", ("predictor", MASK), NAN),
    ("(encoder) has tensors twice, with and without 'module.': norm.bias", ("encoder", "norm.bias"), torch.zeros(16)),
    ("(encoder) is not a module's tensors by name", ("encoder", "module.extra"), "x"),
    ("(encoder) has tensors that this network has not: extra", ("encoder", "module.extra"), torch.zeros(3)),
    ("(encoder) is not a module's tensors by name", ("encoder", 3), torch.zeros(3)),
    ("encoder and target_encoder are of different architectures", ("encoder",), _module(SHALLOW, "module.").state_dict()),
    ("(target_encoder) lacks norm.bias", ("target_encoder", "module.norm.bias"), None),
    ("(target_encoder): tensor norm.bias has shape [5], not [16]", ("target_encoder", "module.norm.bias"), torch.zeros(5)),
    ("is no I-JEPA training checkpoint: it holds encoder, predictor", ("target_encoder",), None),
    ("(epoch) is not a number: [3]", ("epoch",), [3]),
]  # fmt: skip
SAVED = trained().saved()


@pytest.mark.parametrize(("line", "path", "value"), BROKEN, ids=[line for line, *_ in BROKEN])
def test_what_does_not_fit_is_refused_with_one_line(tmp_path, line, path, value):
    saved = copy.deepcopy(SAVED)
    node = reduce(getitem, path[:-1], saved)
    node[path[-1]] = value
    if value is None:
        del node[path[-1]]
    _refused(tmp_path, saved, line)


def _refused(folder: Path, saved: Any, line: str) -> None:
    torch.save(saved, folder / "x.pth.tar")
    with pytest.raises(WeightsError) as caught:
        convert.import_weights(str(folder / "x.pth.tar"), str(folder / "ours"), heads=2)
    message = str(caught.value)
    assert line in message and message.startswith(f"{folder}/x.pth.tar") and "\n" not in message and len(message) < 500
    assert not (folder / "ours").exists()


def test_the_number_of_heads_must_be_known_and_fit(tmp_path):
    torch.save(SAVED, tmp_path / "x.pth.tar")
    for heads, line in ((None, "give --heads"), (3, "width 16 does not divide into 3 heads")):
        with pytest.raises(WeightsError, match=line):
            convert.read(str(tmp_path / "x.pth.tar"), heads=heads)


def test_a_configuration_of_another_architecture_is_refused(tmp_path):
    torch.save(SAVED, tmp_path / "x.pth.tar")
    for change, line in (
        ({"model__depth": 3}, "its depth 3 is 2 in the weights"),
        ({"data__image_size": (32, 32)}, "its image_size .32, 32. is .24, 24. in the weights"),
        ({"predictor__width": 12}, r"\(predictor\) is 8 wide and 1 deep; the configuration's is 12 and 1"),
    ):
        with pytest.raises(WeightsError, match=line):
            convert.read_foreign(str(tmp_path / "x.pth.tar"), base=small.config(**{**SETTINGS, **change}))


def test_load_reads_the_target_encoder_only(tmp_path):
    file, saved = tmp_path / "x.pth.tar", copy.deepcopy(SAVED)
    torch.save(saved, file)
    wanted = pretrained.load(file, heads=2)
    for tensor in (saved["encoder"]["module.norm.bias"], saved["predictor"][MASK], saved["opt"]["state"][1]["exp_avg"]):
        record = tensor.numpy().tobytes()
        assert file.read_bytes().count(record) == 1
        file.write_bytes(file.read_bytes().replace(record, bytes(len(record))))
    found = pretrained.load(file, heads=2)
    _assert_same(found.params, wanted.params)
    assert found.origin == {"format": "reference", "file": str(file), "epoch": 3}
    with pytest.raises(WeightsError, match="Bad CRC-32"):
        convert.import_weights(str(file), str(tmp_path / "ours"), heads=2)
    assert not (tmp_path / "ours").exists()


def test_what_a_file_repeats_without_end_is_not_shown_nor_hashed(tmp_path):
    lists, tuples = ["x"], ("x",)
    for _ in range(60):
        lists, tuples = [lists, lists], (tuples, tuples)
    for key, value, line in (
        ("epoch", lists, "(epoch) is not a number: [["),
        ("ijepa_jax", {"heads": lists}, "(ijepa_jax) is damaged: {'heads': [["),
        (
            "opt",
            {"state": {}, "param_groups": [{"params": [tuples]}]},
            "(opt) is not the state of a torch optimiser: TypeError",
        ),
    ):
        _refused(tmp_path, {**SAVED, key: value}, line)


def _with_class(tensors):
    """An encoder's tensors with a class token, which has a row of the position table."""
    width = tensors["module.norm.bias"].shape[0]
    positions = torch.cat([torch.zeros(1, 1, width), tensors["module.pos_embed"]], dim=1)
    return {**tensors, "module.pos_embed": positions, "module.cls_token": torch.zeros(1, 1, width)}


def test_checkpoints_of_other_methods_are_refused_by_name(tmp_path):
    names = ("patch_embed.proj.weight", "pos_embed")
    frames = {f"module.backbone.{name}": torch.zeros(16, 3, 2, 4, 4) for name in names}
    _refused(tmp_path, {"encoder": frames, "predictor": {}, "target_encoder": frames, "opt": {}}, "V-JEPA")
    bare = {name.replace("backbone.", ""): torch.zeros(tensor.shape) for name, tensor in frames.items()}
    _refused(tmp_path, {"encoder": bare, "target_encoder": bare}, "V-JEPA")
    plain = {name.removeprefix("module."): tensor for name, tensor in SAVED["encoder"].items()}
    masked = {"cls_token": torch.zeros(1, 1, 16), **plain, "decoder_embed.weight": torch.zeros(8, 16)}
    for saved in (masked, {"model": masked}):
        _refused(tmp_path, saved, "patches is not square")
    del masked["cls_token"]
    _refused(tmp_path, {"model": masked}, "MAE")
    _refused(tmp_path, {**SAVED, "target_encoder": _with_class(SAVED["target_encoder"])}, "has a class token, which I-JEPA's")
    _refused(tmp_path, {"epoch": 3}, "is no I-JEPA training checkpoint: it holds epoch")
    _refused(tmp_path, [1, 2], "is no I-JEPA training checkpoint: it holds list")


class _Malicious:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    _refused(tmp_path, {**SAVED, "opt": _Malicious(f"touch {tmp_path / 'marker'}")}, "nothing was executed")
    assert not (tmp_path / "marker").exists()


def test_a_truncated_file_is_refused(tmp_path):
    file = tmp_path / "x.pth.tar"
    torch.save(SAVED, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="truncated"):
        convert.import_weights(str(file), str(tmp_path / "ours"), heads=2)


def test_a_predictor_that_theirs_is_not_is_not_written_as_theirs(tmp_path):
    weights = SimpleNamespace(training=object(), settings=small.config(predictor__context="alone"))
    with pytest.raises(WeightsError, match="predictor.context 'joint'"):
        reference.write_reference(weights, tmp_path)
    assert not any(tmp_path.iterdir())
