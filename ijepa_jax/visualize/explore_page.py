"""The page of `explore`: its pictures, what they show, and the numbers that keep them honest."""

from typing import Any

from ijepa_jax.visualize import canvas
from ijepa_jax.visualize.map import FEWEST, PANELS
from ijepa_jax.visualize.page import as_block, as_code, as_table, as_text, kind_of, worded

_RANDOM = " A random encoder's, of the same shape, is shown for comparison: what it shows too was not learned."
# what is said of images alone, and of videos and signals, whose pictures are stacked
_STACKED = {
    "The maps lie as the marked patches do.": "The maps follow each other from the first marked patch to the last.",
    "Below each block:": "Beside each block:",
}
_SECTIONS = {
    "masks.png": (
        "Contexts and targets",
        "What the context encoder sees of an image, and the blocks that the predictor fills in.",
    ),
    "reconstruction.png": (
        "What pixels are guessed",
        "What is seen of an image, and that with guesses of what is not. Where targets are normalised patch by patch, as they "
        "are by default, guesses tell neither a patch's mean nor its contrast: both are lent from the image.",
    ),
    "pca.png": (
        "Patch features as colours",
        "The first three principal components of patch features as red, green and blue. One basis serves all images, so that "
        "a colour means the same in every one of them." + _RANDOM,
    ),
    "similarity.png": (
        "Which patches are alike",
        "For each marked patch, the cosine similarity of its features to those of all other patches of the image. "
        "The maps lie as the marked patches do.",
    ),
    "similarity_random_init.png": (
        "The same of a random encoder",
        "Mind the scale of colours, which is this picture's own. Positions alone make patches alike that are near each other, "
        "and plain ones.",
    ),
    "neighbours.png": (
        "Nearest neighbours",
        "Each image and those of the bank that are nearest to it by the cosine of pooled features, with their labels.",
    ),
    "neighbours_random_init.png": (
        "The same of a random encoder",
        "Neighbours that are as right here were not learned.",
    ),
    "prediction.png": (
        "How well target blocks are predicted",
        "Below each block: the mean cosine of the predictor's output with the target encoder's (layer-normalised), and the "
        "same after the mean target at each patch's position, over the bank, was taken off both. The colours are the second: "
        "blue is predicted, white is no better than that mean, red is wrong.",
    ),
    "map.png": (
        "A map of the bank",
        "Pooled features in two dimensions, coloured by label. PCA keeps large distances; t-SNE and UMAP keep neighbours "
        "together, and make clusters look further apart than they are.",
    ),
    "map_random_init.png": ("The same map of a random encoder", "What is as well sorted here was not learned."),
}
PICTURES = tuple(_SECTIONS)
_MASKS_OF_IMPORT = (
    "The weights were imported and do not tell the masks of their training: these are drawn by the settings of the import."
)
_ROWS = {
    ("cosine", "centred"): "prediction with its target",
    ("other", "other_centred"): "prediction with another image's target, same patches",
    ("position_mean", None): "mean target at the position, with the target: no prediction at all",
}


def title(result: dict[str, Any]) -> str:
    """The page's title."""
    return f"What the encoder of {result['name']} sees"


def markdown(result: dict[str, Any]) -> str:
    """The page of what `explore` has drawn and measured, as Markdown; pictures are named relative to it."""
    kind = kind_of(result)
    parts = [f"# {as_text(title(result))}", _facts(result), canvas.explained(result)]
    for picture, (heading, text) in _sections(kind).items():
        if picture == "prediction.png" and picture not in result["pictures"]:
            parts.append(f"## {heading}\n\nLeft out: {as_text(result['left_out'])}.")
        if picture not in result["pictures"]:
            continue
        parts.append(f"## {heading}\n\n{text}\n\n![{heading}]({picture})")
        if picture == "masks.png" and not result["own_masks"]:
            parts.append(_MASKS_OF_IMPORT)
        if picture == "neighbours.png":
            parts.append(_neighbours(result))
        if picture == "prediction.png":
            parts.append(_prediction(result["prediction"], kind))
        if picture == "map.png":
            parts.append(_map(result))
    if result["command"]:
        parts.append(f"## Made with\n\n{as_block(result['command'])}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _sections(kind: str) -> dict[str, tuple[str, str]]:
    """The headings and texts of all pictures, for examples of this kind."""
    found = {}
    for name, (heading, text) in _SECTIONS.items():
        for ours, stacked in _STACKED.items() if kind != "image" else ():
            text = text.replace(ours, stacked)
        found[name] = worded(heading, kind), worded(text, kind)
    return found


def _facts(result: dict[str, Any]) -> str:
    drawn, bank = result["images"], result["bank"]
    rows = {
        "checkpoint": f"{as_code(result['checkpoint'])}, step {result['step']}",
        "encoder": as_code(result["encoder_digest"][:16]),
        "data": f"{as_code(result['data'])}, {result['split']} split",
        worded("images", kind_of(result)): f"{drawn} drawn, out of a bank of {bank}",
        "seed": result["seed"],
    }
    return as_table(["", ""], [[name, value] for name, value in rows.items()], right=False)


def _neighbours(result: dict[str, Any]) -> str:
    """How often neighbours share a label, as a table."""
    if not result["neighbours"]:
        return worded("The images have no labels.", kind_of(result))
    rows = [
        [as_text(task), *(f"{found[key]:.1f}" for key in ("trained", "random_init", "chance"))]
        for task, found in result["neighbours"].items()
    ]
    text = "How often the ten nearest neighbours of an image share its label, in per cent, over the bank:"
    return f"{worded(text, kind_of(result))}\n\n{as_table(['task', 'trained', 'random init', 'chance'], rows)}"


def _prediction(found: dict[str, Any], kind: str) -> str:
    """Mean cosines of predictions beside what takes no prediction, as a table."""
    rows = [
        [worded(text, kind), *("–" if key not in found else f"{found[key]:.3f}" for key in keys)]
        for keys, text in _ROWS.items()
        if keys[0] in found
    ]
    text = (
        f"Means over all target patches of {found['images']} images. A cosine is high for no merit where all targets are "
        "alike: only what exceeds the rows below the first was predicted from the image."
    )
    return f"{worded(text, kind)}\n\n{as_table(['', 'cosine', 'less the mean'], rows)}"


def _map(result: dict[str, Any]) -> str:
    """What the map shows of the bank, and what it leaves out."""
    images = worded("images", kind_of(result))
    lines = [f"{result['mapped']} of {result['bank']} {images}."] if result["mapped"] < result["bank"] else []
    if len(result["tasks"]) > PANELS:
        lines.append(f"Of {len(result['tasks'])} tasks the first {PANELS} are drawn.")
    if result["maps"] == ["PCA"] and result["mapped"] >= FEWEST:
        lines.append("With scikit-learn installed there would be t-SNE beside it, with umap-learn UMAP.")
    return " ".join(lines)
