"""Keye-VL: a decoder that reads rows of text in which visual tokens are replaced by what the vision tower makes of patches.

Rows are flat: conversations one after the other, `segments` holds the first token of each, and none attends to another. Names
of weights are those of the published Keye-VL-8B below `visual.`, `mlp_AR.`, `model.` and `lm_head`. Not here: positions
(rope.py), losses.

Legend: P patches, M visual tokens, S tokens of a row, D width of the decoder, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.config import ModelConfig
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.language import Decoder, KVCache
from kvtools.keye.model.projector import Projector
from kvtools.keye.model.rope import mrope_angles
from kvtools.keye.model.vision import Grids, VisionTower


class Keye(nn.Module):
    """The whole model, with random weights of torch's generator."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = nn.Module()  # only a name of published checkpoints
        self.visual.vision_model = VisionTower(config.vision)
        self.mlp_AR = Projector(config)
        self.model = Decoder(config.language)
        if not config.language.tied:
            self.lm_head = nn.Linear(config.language.width, config.language.vocabulary, bias=False)
            nn.init.normal_(self.lm_head.weight, std=config.language.width**-0.5)

    @property
    def tower(self) -> VisionTower:
        """The vision tower."""
        tower: VisionTower = self.visual.vision_model  # type: ignore[assignment]
        return tower

    @property
    def output_VD(self) -> Tensor:
        """The output matrix, which turns hidden states into logits: (vocabulary, D)."""
        return self.model.embed_tokens.weight if self.config.language.tied else self.lm_head.weight

    @property
    def checkpointing(self) -> bool:
        """Whether layers keep only their inputs for gradients and compute the rest again: less memory, a third more work."""
        return self.model.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.model.checkpointing = self.tower.encoder.checkpointing = value

    def encode_images(self, pixels_P3HW: Tensor, grids: Grids) -> Tensor:
        """Visual tokens of all items, one item after the other: (M, D), one for merge x merge patches.

        pixels_P3HW: uint8, patches of each item in raster order, frame after frame. grids: frames, rows and columns of each
        item. Raises ValueError for odd sides, and where pixels and grids differ.
        """
        visual_MD: Tensor = self.mlp_AR(self.tower(pixels_P3HW, grids, merge=self.config.merge))
        return visual_MD

    def hidden(
        self,
        tokens_S: Tensor,
        positions_3S: Tensor,
        segments: Sequence[int],
        visual_MD: Tensor | None = None,
        cache: KVCache | None = None,
        prompts: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (S, D); `logits` turns them into scores of the next token.

        tokens_S: int64. positions_3S: int, of mrope_positions for each conversation. segments: the first token of each
        conversation. visual_MD: replaces image and video tokens, in order. cache: see KVCache. prompts: of PackedRow.
        Raises ValueError for tokens outside the vocabulary, and unless there are as many visual tokens as visual_MD has rows.
        """
        n_words = self.config.language.vocabulary
        if not len(tokens_S) or int(tokens_S.min()) < 0 or int(tokens_S.max()) >= n_words:
            given = f"tokens are {int(tokens_S.min())} to {int(tokens_S.max())}" if len(tokens_S) else "the row has no tokens"
            raise ValueError(f"{given}, and tokens from 0 to {n_words - 1} are needed")
        if tuple(positions_3S.shape) != (3, len(tokens_S)):
            raise ValueError(f"positions are {tuple(positions_3S.shape)}, and {(3, len(tokens_S))} is needed")
        x_SD = nf.embedding(tokens_S, self.model.embed_tokens.weight)
        is_visual_S = (tokens_S == self.config.image_token) | (tokens_S == self.config.video_token)
        index_M = is_visual_S.nonzero().flatten()
        n_encoded = 0 if visual_MD is None else len(visual_MD)
        if len(index_M) != n_encoded:
            raise ValueError(f"the row has {len(index_M)} visual tokens, and {n_encoded} were encoded")
        if visual_MD is not None and n_encoded:
            x_SD = torch.index_copy(x_SD, 0, index_M, visual_MD.to(x_SD.dtype))
        angles = mrope_angles(positions_3S, self.config.language.head_dim, self.config.language.theta)
        out: Tensor = self.model(x_SD, angles, segments, cache, prompts)
        return out

    def encode_row(self, row: PackedRow) -> Tensor:
        """States of a packed row's tokens after the final norm, (S, D), its pictures and videos encoded. Raises as `hidden`."""
        device = self.output_VD.device
        visual_MD = None
        if row.pixels is not None:
            visual_MD = self.encode_images(to_tensor(row.pixels, device), row.grid.tolist())
        tokens_S, positions_3S = to_tensor(row.tokens, device).long(), to_tensor(row.positions, device)
        prompts = None if row.prompts is None else row.prompts.tolist()
        return self.hidden(tokens_S, positions_3S, row.segments.tolist(), visual_MD, None, prompts)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to scores of the next token (..., vocabulary)."""
        return nf.linear(hidden, self.output_VD.to(hidden.dtype))


def to_tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    """The array on a device, the same shape. Read-only arrays, as records have, are copied: torch could write to them."""
    return torch.from_numpy(np.require(array, requirements="W")).to(device)
