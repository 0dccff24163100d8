"""The evaluations that the paper reports of its encoders, as one suite, and its figures (Assran et al. 2023, tables 1 to 4)."""

from collections.abc import Mapping
from typing import NamedTuple

RUNS = {  # published runs, by their files in configs/: size, patch and image size of the encoder
    "in1k_vitb16": ("vit_base", 16, (224, 224)),
    "in1k_vitl16": ("vit_large", 16, (224, 224)),
    "in1k_vith14": ("vit_huge", 14, (224, 224)),
    "in1k_vith16_448": ("vit_huge", 16, (448, 448)),
    "in22k_vith14": ("vit_huge", 14, (224, 224)),
    "in22k_vitg16": ("vit_giant", 16, (224, 224)),
}
DATA = {  # the data sets, as TFDS calls them; empty: it has not got this one
    "imagenet": "tfds:imagenet2012",
    "lowshot": "tfds:imagenet2012_subset/1pct",
    "cifar100": "tfds:cifar100",
    "places205": "",
    "inat18": "tfds:i_naturalist2018",
    "clevr": "tfds:clevr",
}


class Row(NamedTuple):
    """A row of the table: its name, and what the paper has, in per cent, by published run."""

    name: str
    figures: Mapping[str, float]


class Evaluation(NamedTuple):
    """A file of configs/evaluate/, a key of DATA, and its rows by task; `label` may be an only task of another name."""

    file: str
    data: str
    rows: Mapping[str, Row]
    of_huge: Mapping[str, float] = {}  # what is set for ViT-H and larger


EVALUATIONS = (
    Evaluation("knn_in1k", "imagenet", {"label": Row("ImageNet-1K, kNN", {})}),
    Evaluation("linear_in1k", "imagenet", {"label": Row(
        "ImageNet-1K, linear", {"in1k_vitb16": 72.9, "in1k_vitl16": 77.5, "in1k_vith14": 79.3, "in1k_vith16_448": 81.1})}),
    Evaluation("lowshot_in1k", "lowshot", {"label": Row(
        "ImageNet-1K, 1% of labels", {"in1k_vitl16": 69.4, "in1k_vith14": 73.3, "in1k_vith16_448": 77.3})},
        {"finetune.weight_decay": 0.4}),
    Evaluation("attentive_in1k", "imagenet", {"label": Row("ImageNet-1K, attentive", {})}),
    Evaluation("linear_in1k", "cifar100", {"label": Row(
        "CIFAR-100, linear", {"in1k_vith14": 87.5, "in22k_vith14": 89.5, "in22k_vitg16": 89.5})}),
    Evaluation("linear_in1k", "places205", {"label": Row(
        "Places205, linear", {"in1k_vith14": 58.4, "in22k_vith14": 57.8, "in22k_vitg16": 59.1})}),
    Evaluation("linear_in1k", "inat18", {"label": Row(
        "iNaturalist18, linear", {"in1k_vith14": 47.6, "in22k_vith14": 50.5, "in22k_vitg16": 55.3})}),
    Evaluation("dense_in1k", "clevr", {
        "count": Row("Clevr/Count, linear", {"in1k_vith14": 86.7, "in22k_vith14": 88.6, "in22k_vitg16": 86.7}),
        "distance": Row("Clevr/Dist, linear", {"in1k_vith14": 72.4, "in22k_vith14": 75.0, "in22k_vitg16": 73.0})}),
    Evaluation("finetune_in1k", "imagenet", {"label": Row("ImageNet-1K, fine-tuning", {})}),
)  # fmt: skip
# What makes an evaluation small enough for a rehearsal of the whole sequence; its accuracies mean nothing.
TINY = {
    "data.batch_size": 50, "linear.epochs": 4, "linear.decay_every": 2, "linear.batch_size": 64, "attentive.epochs": 2,
    "attentive.batch_size": 64, "finetune.epochs": 2, "finetune.warmup": 1.0, "finetune.batch_size": 32,
}  # fmt: skip
