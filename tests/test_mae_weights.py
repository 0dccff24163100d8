"""MAE's weights from elsewhere and back: transformers' ViTMAE, timm's encoders with a class token, the authors' files."""

import argparse
import contextlib
import json
import re

import jax
import numpy as np
import pytest

import ijepa_jax
from ijepa_jax import build
from ijepa_jax.interop import convert
from ijepa_jax.interop.weights import WeightsError
from ijepa_jax.methods import config as config_lib
from ijepa_jax.model.vit import normalise
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint
from tests import small
from tests.partners import timm, torch, transformers

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 32}
DECODER = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
}  # fmt: skip


def images(size=32, count=2):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def shaken(model):
    """A model whose parameters, but for position tables, are all drawn at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "pos" not in name:
                value += 0.1 * torch.randn(value.shape, generator=generator)
    return model.eval()


def their(name, **changes):
    torch.manual_seed(0)
    return shaken(getattr(transformers, name)(transformers.ViTMAEConfig(patch_size=8, **{**SIZES, **DECODER, **changes})))


def in_order(model, shown):
    """The encoder's normed tokens of all patches, in raster order: none is masked, and the noise sorts them."""
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        noise = torch.arange(16.0)[None].repeat(len(shown), 1)
        return model(torch.from_numpy(shown.transpose(0, 3, 1, 2)), noise=noise).last_hidden_state.numpy()


def same_files(first, second, name="model.safetensors"):
    return (first / name).read_bytes() == (second / name).read_bytes()


def assert_agree(folder, tokens, shown):
    ours = ijepa_jax.load(folder)
    np.testing.assert_allclose(ours.patches(shown), tokens[:, 1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.class_token(shown), tokens[:, 0], rtol=1e-5, atol=1e-5)


def test_transformers_encoder_agrees_and_comes_back(tmp_path):
    model, shown = their("ViTMAEModel", layer_norm_eps=1e-6), images()
    model.save_pretrained(tmp_path / "theirs")
    assert_agree(tmp_path / "theirs", in_order(model, shown), shown)
    found = convert.import_weights(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert not found["left_out"]
    back = convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "back"), "huggingface")
    again = transformers.ViTMAEModel.from_pretrained(tmp_path / "back").eval()
    assert "ViTMAEModel" in back["load"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("normalised", [False, True])
def test_transformers_decoder_comes_along(tmp_path, normalised):
    model, shown = their("ViTMAEForPreTraining", norm_pix_loss=normalised, layer_norm_eps=1e-6), images()
    model.save_pretrained(tmp_path / "theirs")
    assert convert.import_weights(str(tmp_path / "theirs"), str(tmp_path / "ours"))["left_out"] == ()
    weights = convert.from_workdir(str(tmp_path / "ours"))
    method = build.trained_method(weights.settings)
    assert method.normalised == normalised and method.decoder.heads == 4
    kept = 4
    order = np.random.default_rng(1).permuted(np.tile(np.arange(16), (2, 1)), axis=1)
    with torch.no_grad():
        noise = torch.from_numpy(np.argsort(order, axis=1).astype(np.float32))
        theirs = model(torch.from_numpy(shown.transpose(0, 3, 1, 2)), noise=noise)
    batch = {"image": shown, "context": order[:, None, :kept], "target": order[:, None, kept:]}
    params = {"encoder": weights.encoder, "decoder": weights.decoder}
    guesses = method.predict(params, normalise(shown, method.mean, method.std), batch, jax.random.key(0))
    np.testing.assert_allclose(guesses, theirs.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(method.loss(params, None, batch, jax.random.key(0))[0], theirs.loss, rtol=1e-5)
    convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "back"), "huggingface")
    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "back")
    assert again.config.norm_pix_loss == normalised
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_names_of_a_state_dict_and_of_published_files_are_read_too(tmp_path):
    model = their("ViTMAEForPreTraining")
    model.save_pretrained(tmp_path)
    whole = convert.read(str(tmp_path))
    for name in ("decoder.decoder_layers.", "decoder.layers."):
        tensors = {
            re.sub(r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder.decoder_layers.", name): value
            for name, value in model.state_dict().items()
        }
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        again = convert.read(str(tmp_path))
        for tree, other in ((whole.encoder, again.encoder), (whole.decoder, again.decoder)):
            jax.tree.map(np.testing.assert_array_equal, tree, other)


def timm_model(**changes):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_base_patch16_224", **{**sizes, **changes}).eval()


def test_timm_agrees_and_comes_back_to_the_bit(tmp_path):
    model, shown = timm_model(), images()
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization="both")
    with torch.no_grad():
        tokens = model.forward_features(torch.from_numpy(shown.transpose(0, 3, 1, 2))).numpy()
    torch.save(model.state_dict(), tmp_path / "alone.pth")
    found = convert.import_weights(str(tmp_path / "alone.pth"), str(tmp_path / "ours"), heads=2)
    assert found["left_out"] == ()
    assert_agree(tmp_path / "ours", tokens, shown)
    back = convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "back"), "timm")
    again = eval(back["load"], {"timm": timm}).eval()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        np.testing.assert_array_equal(again.forward_features(torch.from_numpy(shown.transpose(0, 3, 1, 2))), tokens)


def test_a_class_token_without_a_position_of_timm_s_is_read(tmp_path):
    model, shown = timm_model(no_embed_class=True), images()
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "no_embed_class": True}
    timm.models.save_for_hf(model, tmp_path / "theirs", model_args=arguments, safe_serialization=True)
    with torch.no_grad():
        tokens = model.forward_features(torch.from_numpy(shown.transpose(0, 3, 1, 2))).numpy()
    assert_agree(tmp_path / "theirs", tokens, shown)


def authors_file(path, decoder=True, **changes):
    """What the authors' code would save, of the tensors that a recording of theirs or our own export names."""
    config = config_lib.with_method(small.config(), "mae")
    config.update_from_flattened_dict({"mae.decoder_width": 16, "mae.decoder_depth": 1, "mae.decoder_heads": 2, **changes})
    method = build.trained_method(config)
    params = jax.device_get(jax.jit(method.init)(jax.random.key(0)))
    given = jax.tree.map(np.copy, params)  # writing takes the leaves out of trees
    weights = convert.Weights(
        given["encoder"], config, {"format": "ijepa_jax", "file": "here"}, decoder=given["decoder"] if decoder else None
    )
    path.mkdir()
    convert.mae.write_reference(convert._for_export(weights), path)
    return method, params, path / "checkpoint.pth"


def test_the_authors_files_with_and_without_decoder(tmp_path):
    for decoder in (True, False):
        folder = tmp_path / f"decoder_{decoder}"
        method, params, file = authors_file(folder, decoder)
        saved = torch.load(file, weights_only=True)
        assert {*saved} == {"model", "ijepa_jax"}
        assert ("decoder_pred.weight" in saved["model"]) == decoder and saved["model"]["cls_token"].shape == (1, 1, 32)
        torch.save({"model": saved["model"]}, file)  # as theirs are, which tell no heads
        out = str(folder / "ours")
        found = convert.import_weights(str(file), out, heads=method.network.heads)
        told = ("the decoder: nothing tells how many heads its 1 blocks of width 16 have",)
        assert found["left_out"] == (told if decoder else ())
        shown = images(32)
        ours = ijepa_jax.load(out)
        whole = method.backbone().represent(params["encoder"], shown, ("class", "last"))
        np.testing.assert_allclose(ours.class_token(shown), whole["class"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours(shown), whole["last"], rtol=1e-5, atol=1e-6)
        convert.export_weights(out, str(folder / "back"), "reference")
        again = torch.load(folder / "back" / "checkpoint.pth", weights_only=True)["model"]
        assert all(torch.equal(tensor, saved["model"][name]) for name, tensor in again.items())
    assert {*again} == {*saved["model"]}


@pytest.mark.parametrize("side", [4, 8])  # of images of one patch, of which nothing can be hidden, and of four
def test_grids_too_small_for_blocks_come_in(tmp_path, side):
    method, params, file = authors_file(tmp_path / "theirs", side == 8, **{"data.image_size": (side, side)})
    out = str(tmp_path / "ours")
    convert.import_weights(str(file), out)
    ours, shown = ijepa_jax.load(out), images(side)
    whole = method.backbone().represent(params["encoder"], shown, ("class",))
    np.testing.assert_allclose(ours.class_token(shown), whole["class"], rtol=1e-5, atol=1e-6)
    convert.export_weights(out, str(tmp_path / "back"), "reference")
    saved, again = (torch.load(path, weights_only=True)["model"] for path in (file, tmp_path / "back" / "checkpoint.pth"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())


def test_a_decoder_that_no_format_holds_is_said(tmp_path):
    config = config_lib.with_method(small.config(), "mae")
    config.mae.update({"class_token": False, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2})
    params = jax.device_get(jax.jit(build.method(config).init)(jax.random.key(0)))
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "run")) as checkpoints:
        checkpoints.save({"params": params}, 3, plain.to_plain(config))
    written = convert.export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "timm")
    assert written["left_out"] == ["the decoder, which formats have a place for beside a class token only"]


def test_settings_tell_the_decoders_heads(tmp_path):
    _, params, file = authors_file(tmp_path / "theirs")
    saved = torch.load(file, weights_only=True)
    training = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3, "scaler": {"scale": 1.0}}
    torch.save({"model": saved["model"], **training, "args": argparse.Namespace(mask_ratio=0.75)}, file)
    base = config_lib.with_method(small.config(), "mae")
    base.update_from_flattened_dict({"mae.decoder_width": 16, "mae.decoder_depth": 1, "mae.decoder_heads": 2})
    found = convert.read_foreign(str(file), base=base)
    assert found.left_out == ("the optimiser's state, from which only the authors' code goes on",)
    assert convert._needed(torch.load(file, weights_only=False), training=True)["optimizer"] is None  # and is not read
    found = {name: found.decoder[name] for name in params["decoder"]}  # without the position table that the file has
    jax.tree.map(np.testing.assert_array_equal, found, params["decoder"])
    for heads in (0, 5):
        torch.save({**saved, "ijepa_jax": {**saved["ijepa_jax"], "decoder_heads": heads}}, file)
        with pytest.raises(WeightsError, match=rf"\(decoder\): width 16 does not divide into {heads} heads"):
            convert.read_foreign(str(file))
    torch.save({"model": saved["model"]}, file)
    base.mae.decoder_depth = 2
    with pytest.raises(WeightsError, match=r"is another one than the configuration's: give mae.decoder_depth=1"):
        convert.read_foreign(str(file), base=base)


def test_a_configuration_s_odd_values_are_said_in_one_line(tmp_path):
    model = their("ViTMAEForPreTraining")
    model.save_pretrained(tmp_path)
    file, refused = tmp_path / "config.json", {"decoder_num_attention_heads": (0, "x", True), "mask_ratio": (1.0, "x")}
    refused["norm_pix_loss"] = ("no",)
    told = json.loads(file.read_text())
    for name, values in refused.items():
        for value in values:
            file.write_text(json.dumps({**told, name: value}))
            with pytest.raises(WeightsError, match=f"config.json: {name} {value!r} must be "):
                convert.read_foreign(str(tmp_path))
    for name, held in (("hidden_size", 16), ("num_hidden_layers", 2), ("intermediate_size", 64)):
        file.write_text(json.dumps({**told, f"decoder_{name}": 99}))
        with pytest.raises(WeightsError, match=f"has decoder_{name} 99, its tensors {held}"):
            convert.read_foreign(str(tmp_path))
    file.write_text(json.dumps({**told, "mask_ratio": 0.0}))  # as an encoder has that sees all patches
    assert convert.read_foreign(str(tmp_path)).settings.mae.mask_ratio == 0.75


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    _, _, file = authors_file(tmp_path / "theirs")
    with pytest.raises(WeightsError, match=r"have a class token, as MAE's: the configuration's encoder, of 'ijepa', has none"):
        convert.read_foreign(str(file), base=small.config())
    plain = timm_model(class_token=False, global_pool="avg", fc_norm=False)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    base = config_lib.with_method(small.config(), "mae")
    with pytest.raises(WeightsError, match=r"class_token True is False in the weights"):
        convert.read_foreign(str(tmp_path / "plain.pth"), base=base)
    with pytest.raises(ValueError, match="this encoder has no class token"):
        ijepa_jax.load(tmp_path / "plain.pth", heads=2).class_token(images())
    saved = torch.load(file, weights_only=True)
    del saved["model"]["decoder_norm.bias"]
    torch.save(saved, file)
    with pytest.raises(WeightsError, match=r"\(decoder\) lacks decoder_norm.bias"):
        convert.read_foreign(str(file), heads=2)
