"""Weights from any of the formats that are known, and to them."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from ijepa_jax import build
from ijepa_jax.host.files import full_disk_named, remove_unfinished
from ijepa_jax.interop import card, huggingface, layout, mae, places, reference, tensor_files, timm, torch_files
from ijepa_jax.interop.sparing import sparingly
from ijepa_jax.interop.weights import Training, Weights, WeightsError, architecture_of
from ijepa_jax.methods import config as config_lib
from ijepa_jax.model import positions
from ijepa_jax.model.stacks import laid_out, unstacked
from ijepa_jax.settings import plain
from ijepa_jax.settings.axes import by, each_axis, modality
from ijepa_jax.train import checkpoint, digests
from ijepa_jax.train.step import State

FORMATS = ("huggingface", "timm", "reference")
ENCODERS = ("target", "context")
_WRITTEN = {
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "checkpoint.pth.tar",
    "checkpoint.pth",
}  # README.md comes last
_NETWORKS = ("encoder", "predictor")  # that are trained in the authors' format
_TRAINING = (*_NETWORKS, "opt")  # of the authors' checkpoints: what is of no use without training


def read(path: str, *, step: int = 0, encoder: str = "target", heads: int | None = None) -> Weights:
    """The encoder of a workdir of ours, or of weights in one of the foreign formats, recognised by what is there.

    Args:
        path: a workdir or one of its checkpoints; a folder of transformers' or timm's; a file of theirs, or of the authors'.
        step: which checkpoint of a workdir, see `checkpoint.restore_parts`.
        encoder: `target` or `context`; what was imported without its training state has the target only.
        heads: of the attention, where neither a configuration nor a known size tells.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: a workdir without a readable checkpoint.
        WeightsError: foreign weights that cannot be used.
    """
    place = places.workdir(path)
    if place is None:
        if step or encoder != "target":
            raise WeightsError(f"{path} is no workdir: foreign weights have no steps, and give their target encoder only")
        return read_foreign(path, heads, training=False)
    weights = from_workdir(place, step, encoder)
    if heads is not None and heads != (found := architecture_of(weights.settings).heads):
        raise WeightsError(f"{path}: its settings have {found} heads, not {heads}")
    return weights


def read_foreign(
    path: str, heads: int | None = None, base: ml_collections.ConfigDict | None = None, *, training: bool = True
) -> Weights:
    """Weights of another project: a file, a folder, or ORG/NAME, a model that the Hugging Face hub's cache holds.

    Args:
        path: see `read`.
        heads: see `read`.
        base: settings that a run that continues them shall have.
        training: read what a run goes on from, too, where it is there; else the target encoder's tensors only.
    """
    source = places.local(path)
    if source.name in tensor_files.NAMES and (source.parent / "config.json").is_file():
        source = source.parent
    if source.is_dir():
        weights = _read_folder(source, heads, base)
        if not Path(path).expanduser().exists():
            weights.origin["file"] = path  # and not the cache's folder, which is named by a hash
        return weights
    if source.suffix == ".safetensors":
        tensors = tensor_files.read(source)
    else:
        saved = torch_files.read(source, functools.partial(_needed, training=training), as_float32=True)
        if mae.is_checkpoint(saved):
            return mae.from_checkpoint(saved, path, heads, base)
        if not tensor_files.is_by_name(saved):
            return reference.from_checkpoint(saved, path, heads, base)
        tensors = tensor_files.by_name(saved, path)
    if any("patch_embeddings" in name for name in tensors):
        raise WeightsError(f"{path} is transformers' file: give the folder that it lies in, for its config.json")
    return timm.from_tensors(tensors, {}, path, heads, base)


def _needed(saved: Any, training: bool) -> Any:
    """What is needed of a file's objects, whose tensors are still unread."""
    if mae.is_checkpoint(saved):
        return mae.needed(saved)
    if not (isinstance(saved, dict) and "target_encoder" in saved):
        return tensor_files.needed(saved)
    return {key: part for key, part in saved.items() if training or key not in _TRAINING}


def _read_folder(folder: Path, heads: int | None, base: ml_collections.ConfigDict | None) -> Weights:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} is neither a workdir (no 'checkpoints') nor a model's folder (no config.json)")
    config = tensor_files.read_json(folder / "config.json")
    if "model_type" not in config and "architecture" in config:
        return timm.read_timm(str(folder), heads, base)
    weights = huggingface.read_huggingface(str(folder), base)
    if heads not in (None, found := architecture_of(weights.settings).heads):
        raise WeightsError(f"{folder}: its configuration has {found} heads, not {heads}")
    return weights


def from_workdir(path: str, step: int = 0, encoder: str = "target", *, training: bool = False) -> Weights:
    """Weights of a checkpoint of ours, with its head if it has one, and, if asked for, what training goes on from."""
    if encoder not in ENCODERS:
        raise WeightsError(f"encoder {encoder!r} is not known: it must be one of {', '.join(ENCODERS)}")
    wanted = ["head", "params/decoder", *["params", "opt_state"] * training]
    with sparingly():
        tree, saved = checkpoint.restore_encoder(path, step, wanted, online=encoder == "context")
    trees, notes, settings = saved.trees, saved.notes, saved.notes["settings"]
    params = trees.get("params", {})
    decoder, by_class, kept, left_out = params.get("decoder"), "class_token" in tree, None, []
    if decoder and not by_class:
        left_out.append("the decoder, which formats have a place for beside a class token only")
    if training and params.keys() == {*_NETWORKS} and saved.method().target(params) is None:
        left_out.append(f"the predictor, and what else {saved.method().title} trains by")
    elif "opt_state" in trees and params.keys() == {*_NETWORKS} and "predictor" in settings:
        moments = tuple(_branch(trees["opt_state"], name) for name in ("mu", "nu"))
        examples = settings.get(config_lib.EXAMPLES, 0)
        if {jax.tree.structure(moment) for moment in moments} == {jax.tree.structure(params)}:  # AdamW's
            kept = Training(params, moments, saved.step, settings["optim"]["batch_size"], examples)
    return Weights(
        tree,
        saved.config(),
        notes.get("origin", {"format": "ijepa_jax", "file": str(path)}),
        trees.get("head"),
        tuple(notes.get("labels", ())),
        kept,
        saved.step,
        tuple(left_out),
        decoder=decoder if by_class else None,
    )


def _branch(tree: Any, name: str) -> Any:
    """The first branch of that name in nested dicts and lists, None where there is none."""
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, branch in branches:
        if key == name:
            return branch
        if (found := _branch(branch, name)) is not None:
            return found
    return None


@checkpoint.quiet
def import_weights(
    source: str, out: str, *, heads: int | None = None, base: ml_collections.ConfigDict | None = None
) -> dict[str, Any]:
    """Writes foreign weights as a workdir, which all other commands take; returns what was read, in numbers.

    A whole training checkpoint becomes one that `pretrain` continues; `base` are the settings of that run.

    Raises:
        FileNotFoundError, WeightsError: nothing there, or nothing that can be used.
        ValueError: `out` holds checkpoints already.
    """
    places.check_local(source)
    if places.is_ours(source):
        raise WeightsError(f"{source} is a workdir already: give it to the other commands as it is")
    weights = read_foreign(source, heads, base)
    digest = digests.digest_of(weights.encoder)  # as `encoder_digest`: blocks by number, with the positions that came along
    read = {
        "out": out, **{name: weights.origin[name] for name in ("format", "file", "epoch") if name in weights.origin},
        "step": weights.step,
        "continues": weights.training is not None, "left_out": weights.left_out,
        "classes": len(weights.head["bias"]) if weights.head else 0, "encoder_digest": digest,
    }  # fmt: skip
    notes = {"origin": weights.origin, "labels": weights.labels}
    if weights.training:
        state: Any = _state(weights)
    else:
        state, notes["encoder_only"] = {"target": _laid_out(weights.encoder, weights)}, True
        if weights.decoder:
            state = {"params": {"encoder": state["target"], "decoder": _laid_out(weights.decoder, weights)}}
        state |= {"head": weights.head} if weights.head else {}
    with places.left_as_it_was(out), sparingly(), contextlib.closing(checkpoint.Checkpoints(out)) as checkpoints:
        if checkpoints.steps():
            raise ValueError(f"--out {out} holds checkpoints already: give another folder")
        checkpoints.save(state, weights.step, plain.to_plain(weights.settings), **notes)
        checkpoints.wait()  # here and not in closing: what interrupts it is followed by closing, which waits for the writers
    return read


def _laid_out(tree: dict, weights: Weights) -> dict:
    return laid_out(tree, weights.settings.model.scan, take=True)


def _state(weights: Weights) -> State:
    """The state of training that goes on from what came with the weights, whose trees' leaves it takes."""
    training, settings = weights.training, weights.settings.copy_and_resolve_references()
    if not (settings.optim.epochs or settings.optim.steps):
        settings.optim.epochs = 1 + settings.optim.warmup  # any: the state of the optimiser does not hold its schedules
    optimizer = build.optimizer(settings, build.trained_method(settings), 10**9)
    params, first, second = (
        {name: _laid_out(tree[name], weights) for name in tree} for tree in (training.params, *training.moments)
    )
    count = np.array(training.step, np.int32)
    shapes = jax.eval_shape(optimizer.transformation.init, params)
    for tree, name in ((first, "mu"), (second, "nu")):
        kept = jax.tree.leaves(optax.tree.get(shapes, name))[0].dtype
        layout.replace(tree, lambda leaf, kept=kept: leaf.astype(kept, copy=False))
    opt_state = optax.tree.set(shapes, mu=first, nu=second, count=count)
    return State(count, params, _laid_out(weights.encoder, weights), opt_state)


def export_weights(
    path: str, out: str, fmt: str, *, step: int = 0, encoder: str = "target", command: str = ""
) -> dict[str, Any]:
    """Writes an encoder of ours in a foreign format, with a model card; returns what was written and how to load it.

    `reference` writes the whole training state beside the target encoder, where there is one, so that the authors' code can
    continue it; the context encoder is written alone, in the place of both.

    Raises:
        CheckpointError: no readable checkpoint there.
        WeightsError: a format that is not known or that cannot hold this encoder.
        ValueError: `out` holds files already.
    """
    if fmt not in FORMATS:
        raise WeightsError(f"--format {fmt!r} is not known: it must be one of {', '.join(FORMATS)}")
    if "://" in out:
        raise ValueError(f"--out {out}: exports are written to local disks: give a folder there, and copy it")
    folder = Path(out).expanduser()
    for name in _WRITTEN:
        remove_unfinished(folder / name)
    if folder.is_dir() and not {file.name for file in folder.iterdir()} <= _WRITTEN:
        raise ValueError(f"--out {out} holds files already: give another folder")
    whole = fmt == "reference" and encoder == "target"
    weights = from_workdir(path, step, encoder, training=whole)
    shape = architecture_of(weights.settings)  # refuses what has none
    if len(shape.image_size) != 2 or not isinstance(shape.patch, int):
        size, sides = by(shape.image_size), by(each_axis(shape.patch, len(shape.image_size)))
        found = f"this one is of {modality(shape.image_size)}s of {size} in patches of {sides}"
        raise WeightsError(f"--format {fmt} holds encoders of images in square patches, {found}: use it by ijepa_jax.load")
    weights = _for_export(weights)
    left_out, masked = [*weights.left_out], shape.class_token
    if weights.head and (fmt == "reference" or (fmt == "huggingface" and masked)):
        left_out.append("the classifier, for which this format has no place")
    if weights.decoder and fmt == "timm":
        left_out.append("the decoder, for which timm has no place")
    if fmt == "reference" and not masked and not weights.training:
        left_out.append("the training state: the authors' loader needs one, and will not go on from this file")
    digest = digests.digest_of(weights.encoder)  # as `encoder_digest`
    facts = {"format": fmt, "encoder": encoder, "step": weights.step, "encoder_digest": digest}
    write = {
        "huggingface": huggingface.write_huggingface,
        "timm": timm.write_timm,
        "reference": (mae if masked else reference).write_reference,
    }
    with places.left_as_it_was(out), full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        load = write[fmt](weights, folder)
        (folder / "README.md").write_text(card.model_card(path, weights, facts, load, command))
        files = sorted(file.name for file in folder.iterdir())
    return {"out": out, **facts, "load": load, "left_out": left_out, "files": files}


def _for_export(weights: Weights) -> Weights:
    """The same with blocks by number, and with position tables where they are computed."""

    def plain(tree: dict, width: int, leaf: np.ndarray | None = None) -> dict:
        """`leaf`: what stands for a position table; by default the computed one."""
        tree = unstacked(tree)
        if "positions" not in tree:
            table = positions.sincos(width, grid)
            tree = {**tree, "positions": table if leaf is None else np.zeros_like(table)}
        if class_token and "class_position" not in tree:
            tree = {**tree, "class_position": np.zeros(width, np.float32)}
        return tree

    training, class_token = weights.training, "class_token" in weights.encoder
    grid = build.trained_method(weights.settings).backbone().grid
    encoder = plain(weights.encoder, weights.encoder["norm"]["scale"].shape[0])
    if training is not None:
        widths = {name: training.params[name]["norm"]["scale"].shape[0] for name in training.params}
        params, *moments = (
            {name: plain(tree[name], width, leaf) for name, width in widths.items()}
            for tree, leaf in ((training.params, None), *((moment, np.zeros(())) for moment in training.moments))
        )
        training = dataclasses.replace(training, params=params, moments=tuple(moments))
    decoder = weights.decoder and plain(weights.decoder, weights.decoder["norm"]["scale"].shape[-1])
    return dataclasses.replace(weights, encoder=encoder, training=training, decoder=decoder)
