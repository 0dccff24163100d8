"""The libraries that weights are exchanged with, imported in one place."""

from importlib import metadata

import torch

if "+cpu" in torch.__version__ and "+cpu" not in metadata.version("torchvision"):
    # PyPI's torchvision is built for CUDA and finds none of its operators in a CPU build of torch; timm only imports it.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import transformers

__all__ = ["timm", "torch", "transformers"]
