"""A diffusion decoder of a quickstart encoder's representations: what they hold, as pictures (paper, section 8).

    python launch.py
    python launch.py decode --config configs/decode.py --checkpoint runs/quickstart --workdir runs/decode

Hardware: two CPU cores. Cost: 63 minutes on cores that did other work besides (70 images/s, four blocks of each).
Expected, root mean square error of drawn blocks in grey levels: 48 from the target encoder's output, 64 from the predictor's,
74 from another image's.

Networks, masks and images are the checkpoint's; so are the data, unless `data.name` names others. The pictures of the report
show, for test images, their context, samples drawn from the predictor's output for one block, and from the target encoder's.
"""

import ml_collections

from ijepa_jax import config as settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of this run."""
    config = settings.default("rcdm")
    config.decoder.checkpoint = "runs/quickstart"
    config.data.name = ""  # the checkpoint's own
    config.data.crop_scale = (1.0, 1.0)
    config.data.crop_aspect = (1.0, 1.0)
    config.optim.batch_size = 32
    config.optim.steps = 8000
    config.optim.warmup = 200.0
    config.optim.schedule_scale = 1.0
    config.optim.start_lr = 1e-5
    config.optim.peak_lr = 1e-3
    config.optim.final_lr = 1e-5
    config.optim.weight_decay = 0.01
    config.optim.final_weight_decay = 0.01
    config.optim.momentum = 0.998
    config.optim.final_momentum = 0.998
    config.optim.clip = 1.0
    config.checkpoint.every = 1000
    return config
