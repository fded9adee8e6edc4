"""Stage 0: images and texts that belong together come to lie together. SigLIP whole, with the tower of Keye-VL as its eyes.

Source: SigLIP (arXiv 2303.15343): pairs judged one by one by a sigmoid, temperature and bias learnt. Names of weights are those
of the published checkpoints (`vision_model.`, `text_model.`, `logit_scale`, `logit_bias`); the vision tower is what `Keye` has
under `visual.vision_model`, and the pooling head is here alone.

Legend: P patches, V visual items, S tokens of all texts, B texts, D width of the tower, E width of embeddings, H heads, X width
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
    """-mean_i sum_j log sigmoid(z_ij (exp(log_scale) x_i . y_j + bias)), z 1 for pairs and -1 else, float32.

    images_BE, texts_BE: of length 1 each. is_pair_BB: which belong together; row i of one and row i of the other where not
    given, as in the paper.
    """
    with torch.autocast(images_BE.device.type, enabled=False):
        logits_BB = images_BE.float() @ texts_BE.float().T * log_scale.float().exp() + bias.float()
        if is_pair_BB is None:
            is_pair_BB = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
        sign_BB = torch.where(is_pair_BB, 1.0, -1.0)
        return -nf.logsigmoid(sign_BB * logits_BB).sum() / len(logits_BB)


class Attention(nn.Module):
    """The weights of torch's MultiheadAttention, by its names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)


class Head(nn.Module):
    """One learnt question to all patches of an item, and a feed-forward: (P, D) to (V, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.n_heads = config.heads
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attention = Attention(config.width)
        self.layernorm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, seen_PD: Tensor, n_patches_V: Sequence[int]) -> Tensor:
        weights, biases = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        width = seen_PD.shape[1]
        q_1HX = nf.linear(self.probe.view(1, width), weights[0], biases[0]).view(1, self.n_heads, -1)
        k_PHX, v_PHX = (nf.linear(seen_PD, weights[i], biases[i]).view(len(seen_PD), self.n_heads, -1) for i in (1, 2))
        score_PH = (k_PHX * q_1HX).sum(2).float() * (width // self.n_heads) ** -0.5
        parts, place = [], 0
        for n in n_patches_V:
            share_PH = score_PH[place : place + n].softmax(0).to(v_PHX.dtype)
            parts.append((share_PH.unsqueeze(2) * v_PHX[place : place + n]).sum(0).flatten())
            place += n
        pooled_VD = self.attention.out_proj(torch.stack(parts))
        out: Tensor = pooled_VD + self.mlp(layer_norm(self.layernorm, pooled_VD))
        return out


class PooledVisionTower(VisionTower):
    """The vision tower and its head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.head = Head(config)
        initialise(self.head, config.layers)

    def pooled(self, pixels_P3HW: Tensor, grids: Grids) -> Tensor:
        """(V, D): one vector an item, whatever its size; a video's frames together."""
        out: Tensor = self.head(self(pixels_P3HW, grids), [int(t) * int(h) * int(w) for t, h, w in grids])
        return out


class TextEmbeddings(nn.Module):
    """Tokens and their places."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)


class TextTower(nn.Module):
    """SigLIP's text model: every token sees all of its text, and the last one speaks for it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.head = nn.Linear(config.width, config.output or config.width)
        initialise(self, config.layers)

    def forward(self, tokens_S: Tensor, starts: Sequence[int]) -> Tensor:
        """(B, E). SigLIP's own texts are all 64 tokens long, padding included, which its attention sees; give them so to have
        its results, or unpadded, each ending in one token that always ends texts. Raises ValueError for texts too long."""
        segments = Segments.of(starts, len(tokens_S), tokens_S.device)
        longest = max(segments.lengths)
        if longest > self.config.positions or int(tokens_S.min()) < 0 or int(tokens_S.max()) >= self.config.vocabulary:
            raise ValueError(
                f"a text of {longest} tokens up to {int(tokens_S.max())} found, {self.config.positions} tokens below "
                f"{self.config.vocabulary} expected"
            )
        place_S = torch.cat([torch.arange(n, device=tokens_S.device) for n in segments.lengths])
        x_SD = self.embeddings.token_embedding(tokens_S) + self.embeddings.position_embedding(place_S)
        x_SD = self.encoder(x_SD, None, segments)
        last_B = torch.tensor([*segments.starts[1:], len(tokens_S)], device=tokens_S.device) - 1
        out: Tensor = self.head(layer_norm(self.final_layer_norm, x_SD[last_B]))
        return out


class Siglip(nn.Module):
    """Both towers and what the loss learns. Raises ValueError where the towers' results differ in width."""

    def __init__(self, vision: VisionConfig, text: TextConfig) -> None:
        super().__init__()
        if (text.output or text.width) != vision.width:
            raise ValueError(f"texts of width {text.output or text.width} found, {vision.width} of images expected")
        self.vision_model = PooledVisionTower(vision)
        self.text_model = TextTower(text)
        self.logit_scale = nn.Parameter(torch.tensor([LOG_SCALE]))
        self.logit_bias = nn.Parameter(torch.tensor([BIAS]))

    @property
    def checkpointing(self) -> bool:
        return self.vision_model.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.vision_model.encoder.checkpointing = self.text_model.encoder.checkpointing = value

    def encode_images(self, pixels_P3HW: Tensor, grids: Grids) -> Tensor:
        """(V, E), each of length 1, float32."""
        return nf.normalize(self.vision_model.pooled(pixels_P3HW, grids).float(), dim=1)

    def encode_texts(self, tokens_S: Tensor, starts: Sequence[int]) -> Tensor:
        """(B, E), each of length 1, float32. tokens_S: int64, texts one after the other; starts: where each begins."""
        return nf.normalize(cast("Tensor", self.text_model(tokens_S, starts)).float(), dim=1)

    def loss(self, images_BE: Tensor, texts_BE: Tensor, is_pair_BB: Tensor | None = None) -> Tensor:
        """The sigmoid loss; see sigmoid_loss."""
        return sigmoid_loss(images_BE, texts_BE, self.logit_scale, self.logit_bias, is_pair_BB)

    def tower_weights(self) -> dict[str, Tensor]:
        """The vision tower's weights by the names that `Keye` has for them, the head left out."""
        weights = self.vision_model.state_dict()
        return {f"visual.vision_model.{name}": x for name, x in weights.items() if not name.startswith("head.")}
