"""1% of ImageNet-1K's labels, by fine-tuning (paper, table 2; appendix A).

    python launch.py evaluate --config configs/evaluate/lowshot_in1k.py --checkpoint DIR

50 epochs, batch 512, learning rate 3e-5, layer decay 0.75, label smoothing 0.1, RandAugment. Weight decay is 0.05 for ViT-L;
give --config.finetune.weight_decay=0.4 for ViT-H. With ten times the labels: --config.data.name=tfds:imagenet2012_subset/10pct.
Expected (paper): ViT-L/16 69.4, ViT-H/14 73.3, ViT-H/16 at 448 pixels 77.3.
The paper also quotes logistic regression on frozen features: --config.protocol=logistic.
Hardware: GPUs or a TPU slice. Not run yet.
"""

import ml_collections

from ijepa_jax.settings import evaluation as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this evaluation."""
    config = settings.default("finetune")
    config.data.name = "tfds:imagenet2012_subset/1pct"
    config.finetune.remat = "full"
    config.finetune.batch_size = 512
    config.finetune.learning_rate = 3e-5
    config.finetune.weight_decay = 0.05
    config.finetune.drop_path = 0.0
    config.finetune.mixup = 0.0
    config.finetune.cutmix = 0.0
    return config
