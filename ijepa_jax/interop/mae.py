"""Masked autoencoders: the decoder that may come with an encoder, and files of the authors' (`mae_pretrain_vit_base.pth`)."""

from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax.interop.layout import (
    architecture,
    check_shapes,
    decoder_names,
    depth_of,
    encoder_names,
    from_reference,
    to_reference,
)
from ijepa_jax.interop.reference import OURS, facts_of, heads_told, installed_torch, module_of, save, told
from ijepa_jax.interop.weights import (
    Architecture,
    Tensors,
    Weights,
    WeightsError,
    architecture_of,
    check_names,
    checked_heads,
    settings_for,
)
from ijepa_jax.methods import config as config_lib

_HEADS = {512: 16}  # of the published decoders, by width
_MLP_RATIO = 4  # of decoders


def is_checkpoint(saved: Any) -> bool:
    """Whether objects of a file are an authors' checkpoint: {"model": the tensors of a network with a class token, ...}."""
    model = saved.get("model") if isinstance(saved, dict) else None
    return isinstance(model, dict) and any(str(name).removeprefix("module.") == "cls_token" for name in model)


def needed(saved: dict[str, Any]) -> dict[str, Any]:
    """The same without what only training goes on from, most of all the optimiser's moments, which are not read."""
    return {key: part if key in ("model", OURS) else None for key, part in saved.items()}


def from_checkpoint(saved: dict[str, Any], source: str, heads: int | None, base: ml_collections.ConfigDict | None) -> Weights:
    """The encoder, and the decoder where it is there, of an authors' checkpoint (see `is_checkpoint`).

    Raises WeightsError where tensors are missing, unexpected or of wrong shapes.
    """
    encoder, decoder = split(module_of(saved["model"], f"{source} (model)"))
    facts = facts_of(saved, source)
    options = heads_told(facts.pop("heads", None), heads, base, source)
    options |= {name: facts.pop(name) for name in ("epsilon", "image_size") if name in facts}
    decoder_heads, found = facts.pop("decoder_heads", None), architecture(encoder, f"{source} (model)", **options)
    settings = settings_for(found, "bicubic", base, **facts)
    tree, left_out = with_decoder(settings, decoder, found, decoder_heads, source, fixed=base is not None)
    if "optimizer" in saved:
        left_out += ("the optimiser's state, from which only the authors' code goes on",)
    origin = {"format": "reference", "file": source}
    return Weights(from_reference(encoder), settings, origin, decoder=tree, left_out=left_out)


def split(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """An encoder's tensors, and those of a decoder, by the authors' names."""
    decoder = {name: tensor for name, tensor in tensors.items() if name.startswith("decoder_") or name == "mask_token"}
    return {name: tensor for name, tensor in tensors.items() if name not in decoder}, decoder


def with_decoder(
    settings: ml_collections.ConfigDict, tensors: Tensors, encoder: Architecture, heads: int | None, source: str, fixed: bool
) -> tuple[dict | None, tuple[str, ...]]:
    """A decoder's tree and nothing, or None and why it is left out; sets its sizes among settings that are not `fixed`.

    Raises WeightsError where tensors are missing, unexpected or of wrong shapes.
    """
    if not tensors:
        return None, ()
    if not encoder.class_token:
        raise WeightsError(f"{source} has a decoder, as MAE's, and no class token (cls_token)")
    if "mae" not in settings:
        return None, (f"the decoder: method {settings.method!r} has none",)
    source, depth = f"{source} (decoder)", depth_of(tensors)
    check_names([*tensors], decoder_names(max(depth, 1)), source)
    width, hidden = tensors["decoder_norm.weight"].size, tensors["decoder_blocks.0.mlp.fc1.bias"].size
    grid = tuple(side // encoder.patch for side in encoder.image_size)
    values = encoder.patch**2 * encoder.channels
    shapes = {
        "mask_token": (1, 1, width), "decoder_pos_embed": (1, 1 + grid[0] * grid[1], width),
        "decoder_embed": (width, encoder.width), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden), "decoder_pred": (values, width),
        "decoder_pred.bias": (values,),
    }  # fmt: skip
    check_shapes(tensors, shapes, width, source)
    if heads is None:
        heads = settings.mae.decoder_heads if fixed else _HEADS.get(width)
    for fault, why in (
        (heads is None, f"nothing tells how many heads its {depth} blocks of width {width} have"),
        (hidden != _MLP_RATIO * width, f"its MLPs are {hidden} wide, not {_MLP_RATIO} times {width}"),
    ):
        if fault:
            return None, (f"the decoder: {why}",)
    sizes = {"decoder_width": width, "decoder_depth": depth, "decoder_heads": checked_heads(width, heads, source)}
    if fixed and (differs := {name: size for name, size in sizes.items() if settings.mae[name] != size}):
        wanted = ", ".join(f"mae.{name}={size}" for name, size in differs.items())
        raise WeightsError(f"{source} is another one than the configuration's: give {wanted}")
    settings.mae.update(sizes)
    return from_reference(tensors), ()


def decoder_tensors(tree: dict) -> dict[str, np.ndarray]:
    """The tensors of a decoder by the authors' names; takes the leaves out of its tree."""
    return to_reference(tree, decoder_names(len(tree["blocks"])))


def section_of(weights: Weights) -> ml_collections.ConfigDict:
    """MAE's settings, at their defaults for an encoder with a class token that another method trained."""
    return weights.settings.get("mae") or config_lib.default("mae").mae


def write_reference(weights: Weights, folder: Path) -> str:
    """Writes checkpoint.pth, {"model": tensors}, as the authors' code loads it. Needs torch, which writes the file."""
    torch, shape = installed_torch(), architecture_of(weights.settings)
    tensors = to_reference(weights.encoder, encoder_names(shape.depth, class_token=True), shape.patch)
    tensors |= decoder_tensors(weights.decoder) if weights.decoder else {}
    facts = {**told(weights), "decoder_heads": section_of(weights).decoder_heads}
    file = folder / "checkpoint.pth"
    save({"model": tensors, OURS: facts}, file, torch)
    return f"model.load_state_dict(torch.load({str(file)!r}, weights_only=True)['model'])"
