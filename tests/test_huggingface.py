"""transformers' I-JEPA folders: read as they are saved, with transformers' numbers, and written back bit for bit."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ijepa_jax
from ijepa_jax.interop import convert
from ijepa_jax.interop.weights import WeightsError, architecture_of
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.positions import sincos
from ijepa_jax.model.stacks import stacked
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint
from tests import small
from tests.partners import torch, transformers

LAYER = "encoder.layer.1"
NORM = f"{LAYER}.layernorm_before.weight"
ZEROS = np.zeros((32,), np.float32)


def _model(kind="IJepaModel", *, small_inputs=False, **changes):
    """A random model of which no tensor is at its initial value."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    config = transformers.IJepaConfig(**{**sizes, "image_size": 32, "patch_size": 8, **changes})
    model, generator = getattr(transformers, kind)(config).eval(), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = 3e-5 if small_inputs and "embeddings" in name else 0.15
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name and "weight" in name)
    return model


def _labels(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _images(height, width, channels=3):
    return np.random.default_rng(0).uniform(-1.5, 1.5, (2, height, width, channels)).astype(np.float32)


def _theirs(model, images, **options):
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True, **options)


def _assert_agree(folder, model, images, **options):
    """Every layer and the patches, normed or averaged, within 1e-5 of numbers of the order of one."""
    ours, theirs = ijepa_jax.load(str(folder)), _theirs(model, images, **options)
    embedded, *layers = theirs.hidden_states  # what each block is given, then what the last one gives, without the final norm
    assert embedded.shape == layers[0].shape and len(layers) == model.config.num_hidden_layers
    for found, wanted in zip(ours.layers(images), layers, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.patches(images), theirs.last_hidden_state, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(images), theirs.last_hidden_state.mean(1), rtol=1e-5, atol=1e-5)


def _patches_with(ours, images, **changes):
    """The patches of the same weights in another network."""
    encoder = dataclasses.replace(ours.encoder, network=dataclasses.replace(ours.encoder.network, **changes))
    return encoder.represent(ours.params, images, ("patches",))["patches"]


def _files(folder):
    """All tensors of a folder, in one file or several."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _assert_same_bits(found, wanted):
    assert {*found} == {*wanted}
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and the folder that it is saved in."""
    model, folder = _model(), tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 16), (24, 40), (16, 64)])
def test_every_layer_agrees_at_any_size(saved, size):
    model, folder = saved
    _assert_agree(folder, model, _images(*size), interpolate_pos_encoding=True)
    assert ijepa_jax.load(folder).encoder.network.interpolation == "bicubic"


def test_another_interpolation_gives_other_numbers(saved):
    ours, images = ijepa_jax.load(saved[1]), _images(24, 40)
    assert np.abs(_patches_with(ours, images, interpolation="bicubic_antialias") - ours.patches(images)).max() > 1e-3


@pytest.mark.parametrize("changes", [{"image_size": [32, 48]}, {"num_channels": 1}, {"num_attention_heads": 1}])
def test_every_layer_agrees_for_other_architectures(tmp_path, changes):
    model = _model(**changes)
    model.save_pretrained(tmp_path)
    images = _images(32, 48 if "image_size" in changes else 32, changes.get("num_channels", 3))
    _assert_agree(tmp_path, model, images)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6])
def test_the_epsilon_of_layer_norms_is_the_configurations(tmp_path, epsilon):
    model, images = _model(small_inputs=True, layer_norm_eps=epsilon), _images(32, 32)
    model.save_pretrained(tmp_path)
    _assert_agree(tmp_path, model, images)
    ours = ijepa_jax.load(tmp_path)
    assert ours.encoder.network.epsilon == epsilon
    other = _patches_with(ours, images, epsilon=1e-12 if epsilon == 1e-6 else 1e-6)
    assert np.abs(other - ours.patches(images)).max() > 0.1  # the inputs are so small that it matters


def test_a_configuration_without_epsilon_has_transformers_default(saved, tmp_path):
    _write(tmp_path, *_read(saved[1], lambda tensors, config: config.pop("layer_norm_eps")))
    assert ijepa_jax.load(tmp_path).encoder.network.epsilon == 1e-12


def test_a_classifier_comes_along(tmp_path):
    model, images = _model("IJepaForImageClassification", **_labels("cat", "dog", "a, b")), _images(32, 32)
    model.save_pretrained(tmp_path)
    ours = ijepa_jax.load(tmp_path)
    np.testing.assert_allclose(ours.classify(images), _theirs(model, images).logits, rtol=1e-5, atol=1e-5)
    assert ours.labels == ("cat", "dog", "a, b")


def test_pixels_are_normalised_as_the_folder_says(saved, tmp_path):
    _write(tmp_path, *_read(saved[1]))
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    normalised = ((images / 255 - said["image_mean"]) / said["image_std"]).astype(np.float32)
    found, wanted = ijepa_jax.load(tmp_path).patches(images), ijepa_jax.load(saved[1]).patches(normalised)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_mean_and_std_of_null_are_absent(saved, tmp_path):
    _write(tmp_path, *_read(saved[1]))
    said = {"image_mean": None, "image_std": None, "do_normalize": True, "do_rescale": None, "rescale_factor": 0.003921569}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert convert.read(str(tmp_path)).settings.to_dict() == convert.read(str(saved[1])).settings.to_dict()


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"do_normalize": False}, "has do_normalize False: it must be true"),
        ({"do_rescale": False}, "has do_rescale False: it must be true"),
        ({"rescale_factor": 1 / 127.5}, "has rescale_factor 0.00784313725490196: it must be 1/255"),
        ({"rescale_factor": "1/255"}, "has rescale_factor '1/255': it must be 1/255"),
    ],
)
def test_pixels_that_are_made_otherwise_are_refused(saved, tmp_path, said, match):
    _write(tmp_path, *_read(saved[1]))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    _refused(tmp_path, match)


def _as_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len([*folder.glob("model-*.safetensors")]) > 2


def _as_torch_file(model, folder):
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def _with_names_of_state_dict(model, folder):
    model.config.save_pretrained(folder)
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    assert any(name.endswith("q_proj.weight") for name in _files(folder))


@pytest.mark.parametrize("kind", ["IJepaModel", "IJepaForImageClassification"])
@pytest.mark.parametrize("save", [_as_shards, _as_torch_file, _with_names_of_state_dict])
def test_however_it_is_saved_it_is_the_same_model(tmp_path, save, kind):
    model = _model(kind)
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "other").mkdir()
    save(model, tmp_path / "other")
    plain, other = (convert.read(str(tmp_path / name)) for name in ("plain", "other"))
    jax.tree.map(np.testing.assert_array_equal, (other.encoder, other.head), (plain.encoder, plain.head))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_the_same_numbers(tmp_path, dtype):
    model = _model().to(dtype)
    model.save_pretrained(tmp_path)
    _assert_agree(tmp_path, model.float(), _images(32, 32))


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("IJepaModel", {}),
        ("IJepaModel", {"image_size": [32, 48], "num_channels": 1, "layer_norm_eps": 1e-6, "intermediate_size": 139}),
        ("IJepaForImageClassification", {"num_labels": 2}),
        ("IJepaForImageClassification", _labels(*(f"name {index}" for index in range(12)))),
    ],
)
def test_theirs_to_ours_to_theirs_is_exact(tmp_path, kind, changes, shards):
    model, images = _model(kind, **changes), _images(32, 48 if "image_size" in changes else 32, changes.get("num_channels", 3))
    model.save_pretrained(tmp_path / "first", max_shard_size="20KB" if shards else "1GB")
    imported = convert.import_weights(str(tmp_path / "first"), str(tmp_path / "ours"))
    exported = convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "second"), "huggingface")
    assert exported["encoder_digest"] == imported["encoder_digest"]
    _assert_same_bits(_files(tmp_path / "second"), _files(tmp_path / "first"))
    loaded = eval(exported["load"], {"transformers": transformers}).eval()  # exactly what the model card says
    assert type(loaded) is type(model)
    kept = {**model.config.to_dict(), "transformers_version": None, "_name_or_path": None}
    assert {**loaded.config.to_dict(), "transformers_version": None, "_name_or_path": None} == kept
    for found, wanted in zip(_theirs(loaded, images).hidden_states, _theirs(model, images).hidden_states, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("positions", ["sincos", "table"])
def test_ours_to_theirs_to_ours_is_exact(tmp_path, positions):
    settings = small.config(model__epsilon=1e-5, model__mlp_ratio=48 / 11, model__positions=positions)
    params = Encoder.from_settings(settings).init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.15 * jax.random.normal(jax.random.key(1), leaf.shape)), params)
    assert ("positions" in params) == (positions == "table")
    for name, scan in (("plain", False), ("scanned", True)):
        settings.model.scan = scan
        with contextlib.closing(checkpoint.Checkpoints(tmp_path / name)) as checkpoints:
            checkpoints.save({"target": stacked(params) if scan else params}, 7, plain.to_plain(settings))
        convert.export_weights(str(tmp_path / name), str(tmp_path / f"{name} exported"), "huggingface")
    _assert_same_bits(_files(tmp_path / "scanned exported"), _files(tmp_path / "plain exported"))
    convert.import_weights(str(tmp_path / "plain exported"), str(tmp_path / "back"))
    found, wanted = (convert.read(str(tmp_path / name)) for name in ("back", "plain"))
    assert architecture_of(found.settings) == architecture_of(wanted.settings)
    jax.tree.map(np.testing.assert_array_equal, found.encoder, {"positions": sincos(32, (8, 8)), **wanted.encoder})
    images, ours = _images(*settings.data.image_size, settings.data.channels), ijepa_jax.load(tmp_path / "plain")
    theirs = transformers.IJepaModel.from_pretrained(tmp_path / "plain exported").eval()
    np.testing.assert_allclose(ours.patches(images), _theirs(theirs, images).last_hidden_state, rtol=1e-5, atol=1e-5)


def _read(folder, change=lambda tensors, config: None):
    """The tensors and the configuration of a folder, after a change."""
    tensors, config = _files(folder), json.loads((folder / "config.json").read_text())
    change(tensors, config)
    return tensors, config


def _write(folder, tensors, config):
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def _refused(folder, match, kind=WeightsError):
    with pytest.raises(kind, match=match) as caught:
        ijepa_jax.load(str(folder))
    assert "\n" not in str(caught.value)


TENSORS = [  # what is taken out, what is put in, what the refusal says
    ([NORM], {}, rf"lacks {NORM}"),
    ([f"{LAYER}.attention.attention.key.bias"], {}, r"lacks encoder.layer.1.attention.attention.key.bias"),
    ([], {"pooler.dense.bias": ZEROS}, r"has tensors that .* has not: pooler.dense.bias$"),
    ([], {f"encoder.layer.{10**9}.norm": ZEROS}, r"has not: encoder.layer.1000000000.norm$"),
    ([], {"embeddings.cls_token": ZEROS}, r"embeddings.cls_token \(these are weights of a ViT with a class token\)"),
    ([], {"decoder_embed.bias": ZEROS}, r"decoder_embed.bias \(these are weights of a masked autoencoder, MAE\)"),
    ([], {f"{LAYER}.layer_scale1.lambda1": ZEROS}, r"has not: encoder.layer.1.layer_scale1.lambda1$"),
    ([], {f"ijepa.{NORM}": ZEROS}, rf"has {NORM} twice"),
    ([], {"layers.1.layernorm_before.weight": ZEROS}, rf"has {NORM} twice"),
    ([], {NORM: ZEROS[:31]}, r"blocks.1.norm1.weight has shape \[31\], not \[32\]"),
    ([], {f"{LAYER}.attention.attention.key.bias": ZEROS[:31]}, r"attention.query, key and value have different shapes"),
    ([], {"embeddings.position_embeddings": ZEROS}, r"pos_embed has shape \[32\]"),
    ([], {"embeddings.patch_embeddings.projection.weight": np.zeros((32, 192))}, r"shape \[32, 192\], not 4"),
    ([], {NORM: ZEROS + np.nan}, rf"{NORM} holds NaN"),
    ([], {"classifier.weight": ZEROS}, r"has not: classifier.weight$"),
    ([], {"classifier.weight": np.zeros((2, 31)), "classifier.bias": ZEROS[:2]}, r"classifier of shapes \[2, 31\] and \[2\]"),
]
CONFIGS = [
    ({"model_type": "vit"}, "model_type 'vit', not 'ijepa' or 'vit_mae'"),
    ({"model_type": "vjepa2"}, "model_type 'vjepa2', not 'ijepa'"),
    ({"hidden_size": 48}, "hidden_size 48, its tensors 32"),
    ({"num_hidden_layers": 4}, "num_hidden_layers 4, its tensors 3"),
    ({"intermediate_size": 64}, "intermediate_size 64, its tensors 80"),
    ({"patch_size": 4, "image_size": 16}, r"pos_embed has shape \[1, 16, 32\], not \[1, 4, 32\]"),
    ({"image_size": 40}, r"pos_embed has shape \[1, 16, 32\], not \[1, 25, 32\]"),
    ({"image_size": [32]}, r"image_size \[32\]: it must be a number or a pair"),
    ({"patch_size": [8, 16]}, r"patch_size \[8, 16\]: it must be a number or a pair of equal ones"),
    ({"patch_size": "8"}, "patch_size '8': it must be a number or a pair of equal ones"),
    ({"qkv_bias": False}, "qkv_bias False: it must be true"),
    ({"hidden_act": "relu"}, "hidden_act 'relu': it must be 'gelu'"),
    ({"num_attention_heads": 5}, "width 32 does not divide into 5 heads"),
    ({"num_attention_heads": "4"}, "num_attention_heads '4': it must be a whole number"),
    ({"num_attention_heads": True}, "num_attention_heads True: it must be a whole number"),
    ({"layer_norm_eps": -1.0}, "layer_norm_eps -1.0: it must be small and positive"),
]


@pytest.mark.parametrize("changes", [{"patch_size": [8, 8]}, {"image_size": [32, 32]}])
def test_a_pair_of_equal_sizes_is_a_size(saved, tmp_path, changes):
    _write(tmp_path, *_read(saved[1], lambda tensors, config: config.update(changes)))
    images = _images(32, 32)
    np.testing.assert_array_equal(ijepa_jax.load(tmp_path)(images), ijepa_jax.load(saved[1])(images))


def test_one_mean_stands_for_all_channels(saved, tmp_path):
    _write(tmp_path, *_read(saved[1]))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25}))
    data = convert.read(str(tmp_path)).settings.data
    assert tuple(data.mean) == (0.5,) * 3 and tuple(data.std) == (0.25,) * 3


@pytest.mark.parametrize(("out", "into", "match"), TENSORS)
def test_tensors_that_do_not_fit_are_named(saved, tmp_path, out, into, match):
    tensors, config = _read(saved[1])
    kept = {name: tensor for name, tensor in tensors.items() if name not in out}
    _write(tmp_path, kept | {name: tensor.astype(np.float32) for name, tensor in into.items()}, config)
    _refused(tmp_path, match)


@pytest.mark.parametrize(("changes", "match"), CONFIGS)
def test_a_configuration_that_does_not_fit_is_named(saved, tmp_path, changes, match):
    _write(tmp_path, *_read(saved[1], lambda tensors, config: config.update(changes)))
    _refused(tmp_path, match)


def test_names_of_other_classes_are_refused(tmp_path):
    _model("IJepaForImageClassification", num_labels=3).save_pretrained(tmp_path)
    for names, match in (({"0": "a"}, "names 1 classes, the classifier has 3"), ({"a": "0"}, "does not name classes 0, 1,")):
        _write(tmp_path, *_read(tmp_path, lambda tensors, config, names=names: config.update(id2label=names)))
        _refused(tmp_path, match)


def test_damaged_files_are_refused(saved, tmp_path):
    _write(tmp_path, *_read(saved[1]))
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    for damaged in (b"", content[:5], content[:-1], b"\xff" * 8 + content[8:], content[:8] + b"?" + content[9:]):
        file.write_bytes(damaged)
        _refused(tmp_path, "model.safetensors is damaged, or no safetensors file")
    file.unlink()
    _refused(tmp_path, "holds neither model.safetensors, nor its index, nor pytorch_model.bin")
    for text in ("{", "[" * 10**5, "\xff"):
        (tmp_path / "config.json").write_text(text, "latin-1")
        _refused(tmp_path, "config.json is not JSON")
    (tmp_path / "config.json").write_text("[]")
    _refused(tmp_path, "config.json is not a JSON object")
    (tmp_path / "config.json").unlink()
    _refused(tmp_path, "no config.json")
    _refused(tmp_path / "nothing", "no file or folder", FileNotFoundError)


def test_shards_that_do_not_fit_their_index_are_refused(tmp_path):
    _as_shards(_model(), tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    places = found["weight_map"]
    for weight_map, match, kind in (
        ({name: f"9{file}" for name, file in places.items()}, "no file .*/9model-00001-of-", FileNotFoundError),
        ({**places, "more": places[NORM]}, "do not hold the same tensors: more$", WeightsError),
        ({name: file for name, file in places.items() if name != NORM}, f"the same tensors: {NORM}$", WeightsError),
        ({**places, NORM: 3}, "has no weight_map", WeightsError),
        ([], "has no weight_map", WeightsError),
    ):
        index.write_text(json.dumps({**found, "weight_map": weight_map}))
        _refused(tmp_path, match, kind)
