"""Stage 0, SigLIP whole: images and the texts that belong to them get similar embeddings. Its vision tower is that of Keye-VL.

Source: SigLIP (arXiv 2303.15343): pairs judged one by one by a sigmoid, temperature and bias learnt. Names of weights are those
of the published checkpoints (`vision_model.`, `text_model.`, `logit_scale`, `logit_bias`); the vision tower is what `Keye` has
under `visual.vision_model`, and the pooling head is here alone.

Legend: P patches, V visual items, S tokens of all texts, B texts, D width of a tower, E width of embeddings, H heads, X width
of a head.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.attention import Segments
from kvtools.keye.model.config import TextConfig, VisionConfig
from kvtools.keye.model.layers import layer_norm
from kvtools.keye.model.vision import MLP, Encoder, Grids, VisionTower, initialise

LOG_SCALE = math.log(10)
BIAS = -10.0


def sigmoid_loss(
    images_BE: Tensor, texts_BE: Tensor, log_scale: Tensor, bias: Tensor, is_pair_BB: Tensor | None = None
) -> Tensor:
    """-mean_i sum_j log sigmoid(z_ij (exp(log_scale) x_i . y_j + bias)), z 1 for pairs and -1 else: a float32 number.

    images_BE, texts_BE: rows of length 1. is_pair_BB: bool, which belong together; None: row i of one and row i of the other,
    as in the paper.
    """
    with torch.autocast(images_BE.device.type, enabled=False):
        logits_BB = images_BE.float() @ texts_BE.float().T * log_scale.float().exp() + bias.float()
        if is_pair_BB is None:
            is_pair_BB = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
        sign_BB = torch.where(is_pair_BB, 1.0, -1.0)
        return -nf.logsigmoid(sign_BB * logits_BB).sum() / len(logits_BB)


class PoolingWeights(nn.Module):
    """The weights of torch's MultiheadAttention, by its names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)


class PoolingHead(nn.Module):
    """One learnt query that attends to all patches of an item, and an MLP: (P, D) to (V, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.n_heads = config.heads
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attention = PoolingWeights(config.width)
        self.layernorm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, features_PD: Tensor, n_patches_V: Sequence[int]) -> Tensor:
        """features_PD: of the tower, item after item. n_patches_V: patches of each item."""
        weights, biases = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        n_patches, width = features_PD.shape
        q_1HX = nf.linear(self.probe.view(1, width), weights[0], biases[0]).view(1, self.n_heads, -1)
        k_PHX, v_PHX = (nf.linear(features_PD, weights[i], biases[i]).view(n_patches, self.n_heads, -1) for i in (1, 2))
        score_PH = (k_PHX * q_1HX).sum(2).float() * (width // self.n_heads) ** -0.5
        items = zip(*(torch.split(x, list(n_patches_V)) for x in (score_PH, v_PHX)), strict=True)
        pooled = [(score.softmax(0).to(v.dtype).unsqueeze(2) * v).sum(0).flatten() for score, v in items]
        pooled_VD = self.attention.out_proj(torch.stack(pooled))
        out: Tensor = pooled_VD + self.mlp(layer_norm(self.layernorm, pooled_VD))
        return out


class PooledVisionTower(VisionTower):
    """The vision tower and its pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.head = PoolingHead(config)
        initialise(self.head, config.layers)

    def pooled(self, pixels_P3HW: Tensor, grids: Grids) -> Tensor:
        """(V, D): one vector an item, whatever its size; the frames of a video together."""
        out: Tensor = self.head(self(pixels_P3HW, grids), [int(t) * int(h) * int(w) for t, h, w in grids])
        return out


class TextTower(nn.Module):
    """SigLIP's text model: every token attends to all of its text, and the last one gives the embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        tables = {"token_embedding": config.vocabulary, "position_embedding": config.positions}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, config.width) for name, size in tables.items()})
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.head = nn.Linear(config.width, config.embedding_width)
        initialise(self, config.layers)

    def forward(self, tokens_S: Tensor, starts: Sequence[int]) -> Tensor:
        """(B, E). tokens_S: int64, texts one after the other; starts: the first token of each.

        SigLIP's own texts are all 64 tokens long, padding included, and its attention includes the padding; give them so for
        its results, or unpadded, each ending in one token that always ends texts. Raises ValueError for too long texts, and
        for tokens outside the vocabulary.
        """
        segments = Segments.of(starts, len(tokens_S), tokens_S.device)
        longest, low, high = max(segments.lengths), int(tokens_S.min()), int(tokens_S.max())
        if longest > self.config.positions or low < 0 or high >= self.config.vocabulary:
            raise ValueError(
                f"a text has {longest} tokens from {low} to {high}, and at most {self.config.positions} tokens below "
                f"{self.config.vocabulary} are possible"
            )
        position_S = torch.cat([torch.arange(n, device=tokens_S.device) for n in segments.lengths])
        x_SD = self.embeddings["token_embedding"](tokens_S) + self.embeddings["position_embedding"](position_S)
        x_SD = self.encoder(x_SD, None, segments)
        last_B = torch.tensor([*segments.starts[1:], len(tokens_S)], device=tokens_S.device) - 1
        out: Tensor = self.head(layer_norm(self.final_layer_norm, x_SD[last_B]))
        return out


class Siglip(nn.Module):
    """Both towers, temperature and bias. Raises ValueError where the towers' embeddings differ in width."""

    def __init__(self, vision: VisionConfig, text: TextConfig) -> None:
        super().__init__()
        if text.embedding_width != vision.width:
            raise ValueError(f"embeddings of texts have width {text.embedding_width}, and those of images have {vision.width}")
        self.vision_model = PooledVisionTower(vision)
        self.text_model = TextTower(text)
        self.logit_scale = nn.Parameter(torch.tensor([LOG_SCALE]))
        self.logit_bias = nn.Parameter(torch.tensor([BIAS]))

    @property
    def checkpointing(self) -> bool:
        """Whether layers keep only their inputs for gradients and compute the rest again."""
        return self.vision_model.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.vision_model.encoder.checkpointing = self.text_model.encoder.checkpointing = value

    def encode_images(self, pixels_P3HW: Tensor, grids: Grids) -> Tensor:
        """Embeddings of visual items, (V, E), rows of length 1, float32. Arguments as Keye.encode_images."""
        return nf.normalize(self.vision_model.pooled(pixels_P3HW, grids).float(), dim=1)

    def encode_texts(self, tokens_S: Tensor, starts: Sequence[int]) -> Tensor:
        """Embeddings of texts, (B, E), rows of length 1, float32. Arguments as TextTower.forward."""
        return nf.normalize(cast("Tensor", self.text_model(tokens_S, starts)).float(), dim=1)

    def loss(self, images_BE: Tensor, texts_BE: Tensor, is_pair_BB: Tensor | None = None) -> Tensor:
        """The sigmoid loss with the learnt temperature and bias; see sigmoid_loss."""
        return sigmoid_loss(images_BE, texts_BE, self.logit_scale, self.logit_bias, is_pair_BB)
