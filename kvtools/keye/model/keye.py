"""Keye-VL: what a tower sees takes the place of visual tokens in a row of text, which a decoder reads.

Rows are flat: conversations one after the other, `segments` says where each starts, and none sees another. Names of weights are
those of the published Keye-VL-8B below `visual.`, `mlp_AR.`, `model.` and `lm_head`. Not here: positions (rope.py), losses.

Legend: P patches, V visual items, M visual tokens, S tokens of a row, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.config import ModelConfig
from kvtools.keye.model.language import Decoder, KVCache
from kvtools.keye.model.projector import Projector
from kvtools.keye.model.rope import mrope_angles
from kvtools.keye.model.vision import Grids, VisionTower

__all__ = ["KVCache", "Keye"]


class Visual(nn.Module):
    """The tower, under the name it has in published checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vision_model = VisionTower(config.vision)


class Keye(nn.Module):
    """The whole model, of random weights by torch's generator."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = Visual(config)
        self.mlp_AR = Projector(config)
        self.model = Decoder(config.language)
        if not config.language.tied:
            self.lm_head = nn.Linear(config.language.width, config.language.vocabulary, bias=False)
            nn.init.normal_(self.lm_head.weight, std=config.language.width**-0.5)

    @property
    def tower(self) -> VisionTower:
        return self.visual.vision_model

    @property
    def output_VD(self) -> Tensor:
        """The matrix that turns states into logits, (vocabulary, D)."""
        return self.model.embed_tokens.weight if self.config.language.tied else self.lm_head.weight

    @property
    def checkpointing(self) -> bool:
        """Whether layers keep only their inputs for gradients and compute the rest again: less memory, a third more work."""
        return self.model.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.model.checkpointing = self.tower.encoder.checkpointing = value

    def patch_features(self, pixels_P3HW: Tensor, grid_V3: Grids) -> Tensor:
        """What the tower says of each patch, in raster order: (P, width of the tower), after its last norm."""
        seen: Tensor = self.tower(pixels_P3HW, grid_V3)
        return seen

    def encode_images(self, pixels_P3HW: Tensor, grid_V3: Grids) -> Tensor:
        """Visual tokens of all items, one after the other: (M, D), M a quarter of the patches.

        pixels_P3HW: uint8, patches of each item in raster order, frame after frame; grid_V3: frames, rows, columns an item.
        Raises ValueError where sides are odd or pixels and grids differ.
        """
        seen: Tensor = self.mlp_AR(self.tower(pixels_P3HW, grid_V3, merge=self.config.merge))
        return seen

    def hidden(
        self,
        tokens_S: Tensor,
        positions_3S: Tensor,
        segments: Sequence[int],
        visual_MD: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States after the final norm, (S, D); `logits` makes scores of the next token of them.

        tokens_S: int64; positions_3S: ints, of rope.positions for each conversation; segments: where conversations start. Image
        and video tokens are replaced by visual_MD in order. cache: see there. Raises ValueError for tokens that are out of the
        vocabulary, and for visual tokens that are not as many as visual_MD has.
        """
        n_words = self.config.language.vocabulary
        if not len(tokens_S) or int(tokens_S.min()) < 0 or int(tokens_S.max()) >= n_words:
            found = f"{int(tokens_S.min())} to {int(tokens_S.max())}" if len(tokens_S) else "none"
            raise ValueError(f"tokens: {found} found, 0 to {n_words - 1} of the vocabulary expected")
        if tuple(positions_3S.shape) != (3, len(tokens_S)):
            raise ValueError(f"positions: {tuple(positions_3S.shape)} found, {(3, len(tokens_S))} expected")
        x_SD = nf.embedding(tokens_S, self.model.embed_tokens.weight)
        is_visual_S = (tokens_S == self.config.image_token) | (tokens_S == self.config.video_token)
        places = is_visual_S.nonzero().flatten()
        n_given = 0 if visual_MD is None else len(visual_MD)
        if len(places) != n_given:
            raise ValueError(f"{len(places)} visual tokens in the row found, {n_given} as were seen expected")
        if visual_MD is not None and n_given:
            x_SD = torch.index_copy(x_SD, 0, places, visual_MD.to(x_SD.dtype))
        angles = mrope_angles(positions_3S, self.config.language.head_dim, self.config.language.theta)
        out: Tensor = self.model(x_SD, angles, segments, cache)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, vocabulary)."""
        return nf.linear(hidden, self.output_VD.to(hidden.dtype))
