"""The model card of an exported encoder: what it is, how it was made and how well it does, from the run's own files."""

import contextlib
import re
from pathlib import Path
from typing import Any

import jax
from etils import epath

from ijepa_jax import build
from ijepa_jax.interop.weights import Weights, architecture_of
from ijepa_jax.methods import Method
from ijepa_jax.settings import plain
from ijepa_jax.settings.axes import by
from ijepa_jax.train import picking
from ijepa_jax.visualize.report import probe_rows, read_report

_LIBRARIES = {"huggingface": "transformers", "timm": "timm", "reference": "pytorch"}


def model_card(path: str, weights: Weights, facts: dict[str, Any], load: str, command: str) -> str:
    """A README.md in Markdown, with the metadata block that model hubs read."""
    shape, method = architecture_of(weights.settings), build.trained_method(weights.settings)
    kind = f"{facts['encoder']} " if _is_of_target(method) else ""  # else there is but one encoder
    size = by(shape.image_size)
    return "\n".join(
        [
            "---",
            f"library_name: {_LIBRARIES[facts['format']]}",
            f"tags: [{re.sub('[^a-z0-9]', '', method.title.lower())}, self-supervised, image-feature-extraction]",
            "---",
            "",
            f"# {method.title} encoder, {shape.width} wide, {shape.depth} blocks, patches of {shape.patch}, images of {size}",
            "",
            f"The {kind}encoder of {method.about or f'the method {method.title}'}.",
            "Its class token comes first; average its patches for one vector an image, or take the token."
            if shape.class_token
            else "It has no class token: average its patches for one vector an image.",
            "",
            _history(weights),
            "",
            "| | |",
            "|---|---|",
            f"| width, depth, heads, MLP | {shape.width}, {shape.depth}, {shape.heads}, {shape.hidden} |",
            f"| layer-norm epsilon | {shape.epsilon:g} |",
            f"| pixels | 0..1, minus {list(weights.settings.data.mean)}, over {list(weights.settings.data.std)} |",
            f"| step | {facts['step']} |",
            f"| sha256 of the encoder's parameters | {facts['encoder_digest']} |",
            f"| written by | `{command or 'ijepa_jax'}` |",
            "",
            "```python",
            load,
            "```",
            "",
            *_results(path),
        ]
    )


def _is_of_target(method: Method) -> bool:
    """Whether the encoder is the target's, beside which there is another."""
    trees = jax.eval_shape(lambda key: (params := method.init(key), method.init_target(params, key)), jax.random.key(0))
    chosen = picking.picked(dict(zip(("params", "target"), trees, strict=True)), method.encoder)
    return chosen is not None and all(place.path.startswith("target/") for place in jax.tree.leaves(chosen))


def _history(weights: Weights) -> str:
    """Where the weights came from, and what was done to them since."""
    origin = weights.origin
    if origin["format"] == "ijepa_jax" and not origin.get("warm_start"):
        return _training(weights)
    first = (
        f"{'Started from' if origin.get('warm_start') else 'Imported from'} {Path(origin['file']).name} ({origin['format']})"
    )
    if origin.get("warm_start"):
        return f"{first}. {_training(weights)}"
    if not weights.step:
        return f"{first}."
    after = f"{first}, there after {origin.get('step', 0)} steps"
    return f"{after}. {_training(weights)}" if weights.step > origin.get("step", 0) else f"{after}."


def _training(weights: Weights) -> str:
    config = weights.settings
    parts = [f"peak learning rate {config.optim.peak_lr:g}"]
    if "masks" in config and "predictor" in config:
        masks = config.masks
        parts.append(f"{masks.num_targets} target blocks of {list(masks.target_scale)} of the image")
        parts += [f"{masks.context_patches} context patches ({masks.mode})", f"predictor {config.predictor.width} wide"]
    parts += [f"{key} {value}" for key, value in plain.flatten(config).items() if key.startswith("custom.")]
    return (
        f"Pretrained for {weights.step} steps of {config.optim.batch_size} images on `{config.data.name}` without labels; "
        f"{', '.join(parts)}, seed {config.seed}."
    )


def _results(path: str) -> list[str]:
    """The tables of the run's own report and of its evaluations, where they are and whole."""
    workdir, lines = epath.Path(path), []
    if workdir.parent.name == "checkpoints":
        workdir = workdir.parent.parent
    if report := read_report(workdir):
        lines += [f"## Probes of the encoder after {report['steps']} steps", ""]
        lines += ["| | trained | 95% interval | random init | pixels |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in probe_rows(report)]
        lines += [
            "",
            "Accuracy in per cent on held-out images of linear probes on frozen features; in a row knn, of the nearest ones.",
            "",
        ]
    for file in sorted((workdir / "evaluate").glob("*.md")):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # damaged, or no file: the card does without
            lines += [f"## Evaluation of the encoder: {file.stem}", "", file.read_bytes().decode().strip(), ""]
    return lines
