"""Import this before transformers where torchvision is: its wheel is built for CUDA, and its operators do not load beside a CPU
torch. Only their names are needed to import it: the peers use its resize, which is torch's own."""

from importlib.util import find_spec

import torch

if find_spec("torchvision"):
    LIBRARY = torch.library.Library("torchvision", "DEF")  # the names last as long as this
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
