"""timm's I-JEPA encoders: read as files and as folders, with timm's numbers, and written back bit for bit."""

import contextlib
import json
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.torch
from safetensors.numpy import load_file, save_file

import ijepa_jax
from ijepa_jax.interop import convert, layout, tensor_files
from ijepa_jax.interop import timm as timm_files
from ijepa_jax.interop.weights import Architecture, Weights, WeightsError, architecture_of, settings_for
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.positions import sincos
from ijepa_jax.model.stacks import stacked
from ijepa_jax.settings import plain
from ijepa_jax.settings.architectures import SIZES
from ijepa_jax.train import checkpoint
from tests import small
from tests.partners import timm, torch

save_for_hf = timm.models._hub.save_for_hf
NAME = "vit_huge_patch14_gap_224"
SIZE = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 56, "num_classes": 0}
NORM = "blocks.1.norm1.weight"
ZEROS = np.zeros((32,), np.float32)


def _model(name=NAME, **changes):
    """A random model of which no tensor is at its initial value."""
    model, generator = timm.create_model(name, **{**SIZE, **changes}).eval(), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = {1: 0.15, 3: 0.5}.get(parameter.ndim, (parameter.numel() / len(parameter)) ** -0.5)
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name and "weight" in name)
    return model


def _images(height, width, channels=3):
    return np.random.default_rng(0).uniform(-1.5, 1.5, (2, height, width, channels)).astype(np.float32)


def _assert_agree(ours, model, images):
    """Every layer and the patches, normed or averaged, within 1e-5 of numbers of the order of one."""
    with torch.no_grad():
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        layers = model.get_intermediate_layers(pixels, n=len(model.blocks))
        last = model.forward_features(pixels)
        pooled, logits = model.forward_head(last, pre_logits=True), model(pixels)
    assert len(layers) == len(model.blocks) == len(ours.layers(images))
    for found, wanted in zip(ours.layers(images), layers, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.patches(images), last, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(images), pooled, rtol=1e-5, atol=1e-5)
    if model.num_classes:
        np.testing.assert_allclose(ours.classify(images), logits, rtol=1e-5, atol=1e-5)


def _assert_same_bits(found, wanted):
    assert {*found} == {*wanted}
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


def _save(model, path):
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, path)


def _edit(folder, change):
    """Changes a folder's configuration."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and the folder that timm saves it in for the hub."""
    model, folder = _model(dynamic_img_size=True, num_classes=3), tmp_path_factory.mktemp("saved")
    save_for_hf(model, folder, safe_serialization=True)
    return model, folder


@pytest.mark.parametrize("size", [(56, 56), (84, 84), (28, 28), (42, 70), (28, 112)])
def test_every_layer_agrees_at_any_size(saved, size):
    ours = ijepa_jax.load(saved[1])
    _assert_agree(ours, saved[0], _images(*size))
    assert ours.encoder.network.interpolation == "bicubic_antialias"


@pytest.mark.parametrize(
    "changes",
    [
        {"img_size": (28, 56)},  # as many patches as the first training's 224 x 224 has not
        {"img_size": (28, 112), "dynamic_img_size": True},  # as many patches as a square of 56 x 56
        {"in_chans": 1},
        {"mlp_ratio": 48 / 11, "embed_dim": 44},
        {"mlp_ratio": 2.47, "num_heads": 1},
        {"patch_size": 28, "img_size": 84, "num_classes": 5},
    ],
)
def test_every_layer_agrees_for_other_architectures(tmp_path, changes):
    model = _model(**changes)
    save_for_hf(model, tmp_path, safe_serialization=True)
    ours = ijepa_jax.load(tmp_path)
    assert ours.image_size == model.patch_embed.img_size
    _assert_agree(ours, model, _images(*model.patch_embed.img_size, changes.get("in_chans", 3)))
    assert ours.origin["architecture"] == NAME


def test_a_file_alone_needs_its_heads(tmp_path):
    model = _model()
    _save(model, tmp_path / "x.safetensors")
    _assert_agree(ijepa_jax.load(tmp_path / "x.safetensors", heads=2), model, _images(56, 56))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    _assert_agree(ijepa_jax.load(tmp_path / "x.pth", heads=2), model, _images(56, 56))
    _refused(tmp_path / "x.safetensors", "does not tell how many heads its 2 blocks of width 32 have: give --heads")
    _refused(tmp_path / "x.safetensors", "width 32 does not divide into 3 heads", heads=3)
    _refused(tmp_path / "x.safetensors", "width 32 does not divide into 0 heads", heads=0)


def test_a_file_of_a_named_size_tells_its_heads_by_its_width_and_depth(tmp_path):
    model = _model(embed_dim=96, depth=4, num_heads=3)
    _save(model, tmp_path / "x.safetensors")
    _assert_agree(ijepa_jax.load(tmp_path / "x.safetensors"), model, _images(56, 56))
    _refused(tmp_path / "x.safetensors", "width 96 and depth 4 are vit_pico's, which has 3 heads, not 2", heads=2)


@pytest.mark.parametrize("name", [NAME, "vit_base_patch16_gap_224"])  # the latter has not the 12 heads of a base
def test_a_folder_tells_its_heads_by_its_name_where_its_arguments_are_silent(tmp_path, name):
    model = _model(name, embed_dim=96, depth=4, num_heads=16, patch_size=14)  # of this width and depth we have a size with 3
    save_for_hf(model, tmp_path, safe_serialization=True)
    _edit(tmp_path, lambda config: config["model_args"].pop("num_heads"))
    _assert_agree(ijepa_jax.load(tmp_path), model, _images(56, 56))
    _edit(tmp_path, lambda config: config.update(architecture="", model_args={**config["model_args"], "num_heads": 16}))
    _assert_agree(ijepa_jax.load(tmp_path), model, _images(56, 56))


@pytest.mark.parametrize("name", timm_files._HEADS)
def test_the_known_names_are_of_our_architecture(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=1, class_token=False, global_pool="avg", fc_norm=False, num_classes=0)
    assert model.blocks[0].attn.num_heads == timm_files._HEADS[name]
    assert type(model.blocks[0].mlp.act) is torch.nn.GELU and model.blocks[0].mlp.act.approximate == "none"
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    assert {*model.state_dict()} == {*layout.encoder_names(1)}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"epoch": 3, "arch": NAME, "state_dict": state},
        lambda state: {"state_dict": {}, "state_dict_ema": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_a_state_dict_is_found_as_training_keeps_it(saved, tmp_path, wrapped):
    state = saved[0].state_dict()
    torch.save(wrapped(state), tmp_path / "pytorch_model.bin")
    _assert_same_bits(tensor_files.read_folder(tmp_path), {name: tensor.numpy() for name, tensor in state.items()})


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ({"a": 1}, "is not a module's tensors by name"),
        ({3: torch.zeros(1)}, "is not a module's tensors by name"),
        ({"state_dict": [torch.zeros(1)]}, "is not a module's tensors by name"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "has tensors twice, with and without 'module.': a$"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, held, match):
    torch.save(held, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=match):
        tensor_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_are_read_without_devices_in_little_memory(tmp_path, monkeypatch, dtype):
    wanted, file = {name: torch.randn(2**18, dtype=dtype) for name in "abcd"}, tmp_path / "x.safetensors"
    safetensors.torch.save_file(wanted, file)
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("asked for devices"))
    tracemalloc.start()
    found = tensor_files.read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    _assert_same_bits(found, {name: tensor.float().numpy() for name, tensor in wanted.items()})
    assert peak < 1.25 * sum(tensor.nbytes for tensor in found.values())  # one of four is there twice while it is converted


def test_pixels_are_normalised_as_the_folder_says(saved, tmp_path):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    save_for_hf(saved[0], tmp_path, safe_serialization=True, data_config={"mean": mean, "std": std, "crop_pct": 0.7})
    images = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    found = ijepa_jax.load(tmp_path).patches(images)
    normalised = ((images / 255 - mean) / std).astype(np.float32)
    np.testing.assert_allclose(found, ijepa_jax.load(saved[1]).patches(normalised), rtol=1e-5, atol=1e-5)
    assert convert.read(str(tmp_path)).settings.data.eval_crop == 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 4},
        {"img_size": (28, 56), "in_chans": 1},
        {"mlp_ratio": 48 / 11, "embed_dim": 44},
        {"mlp_ratio": 2.47, "num_heads": 1, "patch_size": 28},
    ],
)
def test_theirs_to_ours_to_theirs_is_exact(tmp_path, changes):
    model = _model(**changes)
    save_for_hf(model, tmp_path / "first", safe_serialization=True)
    imported = convert.import_weights(str(tmp_path / "first"), str(tmp_path / "ours"))
    exported = convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "second"), "timm")
    assert exported["encoder_digest"] == imported["encoder_digest"]
    _assert_same_bits(*(load_file(tmp_path / folder / "model.safetensors") for folder in ("second", "first")))
    images = torch.tensor(_images(*model.patch_embed.img_size, changes.get("in_chans", 3))).permute(0, 3, 1, 2)
    by_file = eval(exported["load"], {"timm": timm}).eval()  # exactly what the model card says
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True).eval()
    for loaded in (by_file, by_folder):
        assert torch.equal(loaded(images), model(images))
    found, wanted = (convert.read(str(tmp_path / folder)) for folder in ("second", "first"))
    assert found.settings.to_dict() == wanted.settings.to_dict() and found.labels == wanted.labels


NAMES = ["cat", "dog", "a, b"]


@pytest.mark.parametrize(
    "place",
    [
        lambda **told: told,
        lambda **told: {"pretrained_cfg": {**told, "num_classes": len(NAMES)}},
        lambda label_names, **told: {"label_names": dict(enumerate(label_names)), **told},
    ],
)
def test_names_of_classes_and_their_descriptions_are_kept(saved, tmp_path, place):
    told = {"label_names": NAMES, "label_descriptions": {"cat": "a small carnivore"}}
    save_for_hf(saved[0], tmp_path / "first", safe_serialization=True, model_config=place(**told))
    assert ijepa_jax.load(tmp_path / "first").labels == tuple(NAMES)
    convert.import_weights(str(tmp_path / "first"), str(tmp_path / "ours"))
    convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "second"), "timm")
    written = json.loads((tmp_path / "second" / "config.json").read_text())
    assert {key: written[key] for key in told} == told
    loaded = timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True)
    assert {key: loaded.pretrained_cfg[key] for key in told} == told


@pytest.mark.parametrize("positions", ["sincos", "table"])
def test_ours_to_theirs_to_ours_is_exact(tmp_path, positions):
    settings = small.config(model__mlp_ratio=48 / 11, model__positions=positions, model__interpolation="bicubic_antialias")
    params = Encoder.from_settings(settings).init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.15 * jax.random.normal(jax.random.key(1), leaf.shape)), params)
    for name, scan in (("plain", False), ("scanned", True)):
        settings.model.scan = scan
        checkpoints = checkpoint.Checkpoints(tmp_path / name)
        checkpoints.save({"target": stacked(params) if scan else params}, 7, plain.to_plain(settings))
        checkpoints.close()
        convert.export_weights(str(tmp_path / name), str(tmp_path / f"{name} exported"), "timm")
    _assert_same_bits(*(load_file(tmp_path / f"{name} exported" / "model.safetensors") for name in ("scanned", "plain")))
    convert.import_weights(str(tmp_path / "plain exported"), str(tmp_path / "back"))
    found, wanted = (convert.read(str(tmp_path / name)) for name in ("back", "plain"))
    assert architecture_of(found.settings) == architecture_of(wanted.settings)
    jax.tree.map(np.testing.assert_array_equal, found.encoder, {"positions": sincos(32, (8, 8)), **wanted.encoder})
    theirs = timm.create_model(f"local-dir:{tmp_path / 'scanned exported'}", pretrained=True, dynamic_img_size=True).eval()
    _assert_agree(ijepa_jax.load(tmp_path / "back"), theirs, _images(24, 40, settings.data.channels))


@pytest.mark.parametrize("name", sorted(timm_files._PUBLISHED.values()))
def test_the_published_models_have_their_name_and_no_arguments(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    size, embed = SIZES["_".join(name.split("_")[:2])], model.patch_embed
    hidden = int(size.width * size.mlp_ratio)
    wanted = Architecture(size.width, size.depth, size.heads, hidden, embed.patch_size[0], 3, embed.img_size)
    settings = settings_for(wanted, "bicubic_antialias")
    shapes = {tensor: tuple(value.shape) for tensor, value in model.state_dict().items() if not tensor.startswith("head.")}
    shown = layout.architecture({tensor: np.broadcast_to(np.float32(0), shape) for tensor, shape in shapes.items()}, name)
    assert shown == wanted == architecture_of(settings) and shown.heads == model.blocks[0].attn.num_heads
    assert timm_files.model_call(Weights({}, settings, {})) == (name, {})


def test_other_epsilons_cannot_be_exported(saved, tmp_path):
    settings = small.config(model__epsilon=1e-12)
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "ours")) as checkpoints:
        params = Encoder.from_settings(settings).init(jax.random.key(0))
        checkpoints.save({"target": params}, 1, plain.to_plain(settings))
    with pytest.raises(WeightsError, match="layer norms have epsilon 1e-6, this encoder's 1e-12: export to huggingface"):
        convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "theirs"), "timm")
    assert not [*(tmp_path / "theirs").glob("*")]


def _refused(path, match, **options):
    with pytest.raises(WeightsError, match=match) as caught:
        ijepa_jax.load(str(path), **options)
    assert "\n" not in str(caught.value)


TENSORS = [  # what is taken out, what is put in, what the refusal says
    ([NORM], {}, f"lacks {NORM}"),
    (["blocks.0.attn.qkv.bias"], {}, "lacks blocks.0.attn.qkv.bias"),
    ([], {"cls_token": ZEROS}, r"cls_token has shape \[32\], not \[1, 1, 32\]"),
    ([], {"mask_token": ZEROS, "decoder_embed.bias": ZEROS}, r"has a decoder, as MAE's, and no class token \(cls_token\)"),
    ([], {"module.backbone.norm.bias": ZEROS}, r"has not: backbone.norm.bias \(these are weights of V-JEPA\)"),
    ([], {"teacher.head.mlp.0.weight": ZEROS}, "has not: teacher.head.mlp.0.weight"),
    ([], {"blocks.0.ls1.gamma": ZEROS}, "has not: blocks.0.ls1.gamma"),
    ([], {"blocks.3.norm1.weight": ZEROS}, "lacks blocks.2.attn.proj.bias"),
    ([], {"blocks.1000000000.norm1.weight": ZEROS}, "has not: blocks.1000000000.norm1.weight"),
    ([], {"head.weight": np.zeros((3, 31))}, r"classifier of shapes \[3, 31\] and \[3\] does not fit width 32"),
    (["head.bias"], {}, "has not: head.weight"),
    ([], {NORM: ZEROS[:31]}, rf"{NORM} has shape \[31\], not \[32\]"),
    ([], {"pos_embed": np.zeros((1, 17, 32))}, r"pos_embed has shape \[1, 17, 32\], not \[1, 16, 32\]"),
    ([], {"pos_embed": ZEROS}, r"pos_embed has shape \[32\], not 3"),
    ([], {"patch_embed.proj.weight": np.zeros((32, 3, 0, 0))}, r"shape \[32, 3, 0, 0\], not 4 positive dimensions"),
    ([], {"patch_embed.proj.weight": np.zeros((32, 588))}, r"patch_embed.proj.weight has shape \[32, 588\], not 4"),
    (
        [],
        {"patch_embed.proj.weight": np.zeros((32, 3, 2, 14, 14))},
        "patches of 2 frames: .* V-JEPA's",
    ),
    ([], {"patch_embed.proj.weight": np.zeros((32, 3, 14, 7))}, r"patch_embed.proj.weight has shape \[32, 3, 14, 7\], not"),
    ([], {NORM: ZEROS + np.inf}, f"{NORM} holds NaN or infinite values"),
]
CONFIGS = [
    ({"global_pool": "token"}, {}, "pools by 'token'"),
    ({}, {"class_token": True}, "its configuration has class_token True, its tensors False"),
    ({}, {"act_layer": "quick_gelu"}, "act_layer 'quick_gelu': I-JEPA's encoders have 'gelu'"),
    ({}, {"num_heads": 5}, "width 32 does not divide into 5 heads"),
    ({}, {"num_heads": "2"}, "num_heads '2' is not a whole number"),
    ({}, {"num_heads": True}, "num_heads True is not a whole number"),
    (
        {"architecture": "vit_large_patch16_siglip_gap_512"},  # has GELUTanh by its name
        {},
        "architecture 'vit_large_patch16_siglip_gap_512' is not one that I-JEPA encoders have: .*vit_huge_patch14_gap_224",
    ),
    ({"architecture": ["x"]}, {}, r"architecture \['x'\] is not one"),
    ({}, {"img_size": [56]}, r"image size \[56\] is not"),
    ({}, {"img_size": 112}, r"pos_embed has shape \[1, 16, 32\], not \[1, 64, 32\]"),
    ({"model_args": [1]}, {}, "model_args is not a JSON object"),
    ({"pretrained_cfg": {"mean": [0.5]}}, {}, r"mean of pixels \[0.5\]: not a number for each of 3 channels"),
    ({"pretrained_cfg": {"mean": [0.5, float("nan"), 10**400]}}, {}, r"mean of pixels .*: not a number for each of 3 channels"),
    ({"pretrained_cfg": {"std": [1, 1, 0]}}, {}, r"std of pixels .*: not a positive number for each of 3 channels"),
    ({"model_args": {"num_heads": 0}}, {}, "does not divide into 0 heads"),
    ({"pretrained_cfg": {"label_names": ["a"]}}, {}, "names 1 classes, the classifier has 3"),
    ({"label_names": ["a", "b"]}, {}, "names 2 classes, the classifier has 3"),
]


@pytest.mark.parametrize(("out", "into", "match"), TENSORS)
def test_tensors_that_do_not_fit_are_named(saved, tmp_path, out, into, match):
    kept = {name: tensor for name, tensor in load_file(saved[1] / "model.safetensors").items() if name not in out}
    save_file(kept | {name: tensor.astype(np.float32) for name, tensor in into.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved[1] / "config.json").read_text())
    _refused(tmp_path, match)


@pytest.mark.parametrize(("changes", "arguments", "match"), CONFIGS)
def test_a_configuration_that_does_not_fit_is_named(saved, tmp_path, changes, arguments, match):
    save_for_hf(saved[0], tmp_path, safe_serialization=True)
    _edit(tmp_path, lambda config: config.update({"model_args": {**config["model_args"], **arguments}, **changes}))
    _refused(tmp_path, match)


def test_heads_that_contradict_the_configuration_are_refused(saved):
    _refused(saved[1], "its configuration has 2 heads, not 4", heads=4)


SHAPES = [  # shape and place of a tensor of one number, and what the refusal says
    ([10**5, 10**5], [0, 4], r"has 4 bytes in the file; its shape \[100000, 100000\] asks for 40000000000"),
    ([2**40, 2**40, 0], [0, 0], r"has shape \[1099511627776, 1099511627776, 0\], which no array can have"),
    ([1] * 65, [0, 4], r"has shape \[1, 1, .*\], which no array can have"),
    ([-1, -1], [0, 4], r"has shape \[-1, -1\], which no array can have"),
    ([1.0], [0, 4], r"has shape \[1.0\], which no array can have"),
    ("x", [0, 4], "has shape x, which no array can have"),
    ([1], [0, 8], r"has 8 bytes in the file; its shape \[1\] asks for 4"),
    ([1], [4, 8], "norm.bias begins at byte 4 and not at 0"),
    ([0], [0, 0], "it has .* bytes, and .* by its header"),
    ([1], ["0", 4], "its header cannot be read"),
    ([1], [0], "its header cannot be read"),
]


@pytest.mark.parametrize(("shape", "place", "match"), SHAPES)
def test_tensors_that_a_file_cannot_hold_are_refused_by_name(tmp_path, shape, place, match):
    header = json.dumps({"norm.bias": {"dtype": "F32", "shape": shape, "data_offsets": place}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    _refused(tmp_path / "x.safetensors", rf"x\.safetensors.*{match}")


def test_a_pointer_of_git_lfs_is_called_that(saved, tmp_path):
    save_for_hf(saved[0], tmp_path, safe_serialization=True)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
        _refused(tmp_path, rf"{name} is a git-lfs pointer, .*: fetch that with git lfs pull")


def test_the_optimiser_of_a_training_checkpoint_is_not_read(saved, tmp_path):
    state, file = saved[0].state_dict(), tmp_path / "x.pth"
    moment = torch.full((100,), 3.0)
    torch.save({"state_dict": {"x": moment}, "optimizer": {"m": moment}, "state_dict_ema": state}, file)
    file.write_bytes(file.read_bytes().replace(moment.numpy().tobytes(), bytes(400)))
    _assert_same_bits(tensor_files.read(file), {name: tensor.numpy() for name, tensor in state.items()})


def test_damaged_files_are_refused(saved, tmp_path):
    content, file = (saved[1] / "model.safetensors").read_bytes(), tmp_path / "model.safetensors"
    for damaged in (b"", content[:5], content[:-1], b"\xff" * 8 + content[8:], content[:8] + b"?" + content[9:]):
        file.write_bytes(damaged)
        _refused(file, "model.safetensors is damaged, or no safetensors file")


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.complex64, "C64")])
def test_other_numbers_than_plain_floats_are_refused(saved, tmp_path, dtype, kind):
    tensors = {name: torch.tensor(tensor) for name, tensor in load_file(saved[1] / "model.safetensors").items()}
    safetensors.torch.save_file({**tensors, NORM: tensors[NORM].to(dtype)}, tmp_path / "x.safetensors")
    _refused(tmp_path / "x.safetensors", f"tensor {NORM} is of type {kind}, not of one of F64, F32, F16, BF16")
