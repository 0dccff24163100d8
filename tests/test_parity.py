"""The recorded steps of the authors' code, replayed; and the replay's power to fail."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ijepa_jax.interop.layout import from_reference, parameter_path
from tests import parity


def test_recording_is_replayed_within_every_bar(recording):
    errors = parity.replay(recording)
    assert errors.keys() == parity.BARS.keys()
    assert {name for name, bar in parity.BARS.items() if not errors[name] <= bar} == set()


def test_a_wrong_number_is_noticed(recording, tmp_path):
    with np.load(recording) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta_json"])) | {"steps": 1}
    arrays["meta_json"] = np.array(json.dumps(meta))
    for name in ("loss", "lr", "weight_decay", "ema_momentum"):
        arrays[name] = arrays[name][:1]
    arrays["loss"] = arrays["loss"] + 1e-5
    np.savez(tmp_path / "wrong.npz", **arrays)
    done = subprocess.run(
        [sys.executable, parity.__file__, tmp_path / "wrong.npz"], capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1 and set(report["missed"]) == {"loss_error", "first_loss_error", "weight_error"}


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("patch_embed.proj.weight", "patch_embed/kernel"), ("blocks.3.attn.qkv.bias", "blocks/3/qkv/bias"),
        ("blocks.0.mlp.fc2.weight", "blocks/0/fc2/kernel"), ("blocks.1.norm2.weight", "blocks/1/norm2/scale"),
        ("norm.bias", "norm/bias"), ("predictor_embed.weight", "embed/kernel"), ("mask_token", "mask_token"),
        ("predictor_blocks.2.attn.proj.weight", "blocks/2/proj/kernel"), ("predictor_norm.weight", "norm/scale"),
        ("predictor_proj.bias", "proj/bias"),
    ],
)  # fmt: skip
def test_names(theirs, ours):
    assert "/".join(parameter_path(theirs)) == ours


def test_layouts():
    convolution = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    image = np.random.default_rng(1).normal(size=(2, 2, 3)).astype(np.float32)
    kernel = from_reference({"patch_embed.proj.weight": convolution})["patch_embed"]["kernel"]
    np.testing.assert_allclose(image.reshape(-1) @ kernel, np.einsum("dcpq,pqc->d", convolution, image), rtol=1e-5)
    tree = from_reference({"mask_token": np.zeros((1, 1, 7)), "predictor_pos_embed": np.zeros((1, 4, 7))})
    assert {name: leaf.shape for name, leaf in tree.items()} == {"mask_token": (7,), "positions": (4, 7)}
