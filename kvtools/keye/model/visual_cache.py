"""Visual tokens of pictures and videos that come again, such as those of a conversation's first question.

Legend: M visual tokens, D width of the decoder.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvtools.keye.model.config import MERGE
from kvtools.keye.model.inputs import Visual
from kvtools.keye.model.keye import Keye


class VisualCache:
    """Visual tokens of the last call's visual items: an item that several prompts share, as one object, is encoded once."""

    def __init__(self, model: Keye) -> None:
        self._model = model
        self._encoded: dict[int, tuple[Visual, Tensor]] = {}  # by id, which is an item's own for as long as it is held here

    @torch.inference_mode()
    def encode(self, visuals: Sequence[Visual]) -> Tensor | None:
        """Visual tokens of all of them in order, (M, D), None of none; those of the call before are not encoded again."""
        ids = set(map(id, visuals))
        encoded = {key: item for key, item in self._encoded.items() if key in ids}
        new = {id(visual): visual for visual in visuals if id(visual) not in encoded}
        if new:
            pixels = torch.from_numpy(np.concatenate([visual.pixels_P3HW for visual in new.values()]))
            grids = np.stack([visual.grid for visual in new.values()]).tolist()
            visual_MD = self._model.encode_images(pixels.to(self._model.output_VD.device), grids)
            parts = torch.split(visual_MD, [t * h * w // MERGE**2 for t, h, w in grids])
            encoded |= {key: (visual, part) for (key, visual), part in zip(new.items(), parts, strict=True)}
        self._encoded = encoded
        return torch.cat([encoded[id(visual)][1] for visual in visuals]) if visuals else None
