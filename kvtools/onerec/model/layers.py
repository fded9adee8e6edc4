"""The blocks of OneRec's encoder and decoder. Every sublayer is x + f(RMSNorm(x)); no biases.

Source: OneRec Technical Report section 2.2. It prints the decoder's attention without a norm before it; ours has one
everywhere, our choice. Legend: B rows, Q queries, C context tokens, T targets a row, N neighbours of a target, P tokens of a
pathway or new tokens, J tokens so far, M sequences of codes, D width, H heads, X width of a head.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.cpu_training import add_dropped
from kvtools.onerec.model.moe import Experts

N_QFORMER_BLOCKS = 2  # the report's
_EPS = 1e-6  # of norms

KVCache = tuple[Tensor, Tensor]  # keys and values of the tokens so far, (M, J, D) each


class _RMSNorm(nn.RMSNorm):
    """Torch's; on CPU in bfloat16, without gradients, computed in float32 in about half of its time."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if x.device.type != "cpu" or x.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return super().forward(x)
        wide = x.float()
        length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(_EPS).rsqrt_()
        return wide.mul_(scale).mul_(self.weight).to(x.dtype)


def rms_norm(width: int) -> nn.RMSNorm:
    """The norm of every sublayer: RMSNorm with a learnable gain."""
    return _RMSNorm(width, eps=_EPS)


def split_heads(x_BTD: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, X)."""
    n_rows, n_tokens, width = x_BTD.shape
    return x_BTD.view(n_rows, n_tokens, n_heads, width // n_heads).transpose(1, 2)


def mlp(width: int, hidden: int) -> nn.Module:
    """Two matrices and a ReLU, (..., D) -> (..., D). The report leaves open what is between them; GELU cost beams 6 %."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden, width, bias=False))


def feed_forward(layer: nn.Module, x_BTD: Tensor, is_token: Tensor | None) -> Tensor:
    """An MLP or experts, token by token, (B, T, D) -> (B, T, D). is_token: bool (B, T) or (B,); padding, where it is False, is
    no load to balance."""
    x_MD = x_BTD.flatten(0, 1)
    if is_token is None or not isinstance(layer, Experts):
        return cast("Tensor", layer(x_MD)).view_as(x_BTD)
    is_token_M = is_token.view(len(x_BTD), -1).expand(-1, x_BTD.shape[1]).flatten()
    return cast("Tensor", layer(x_MD, is_token_M)).view_as(x_BTD)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled-dot-product attention, (B, H, Q, X). mask: bool, broadcast to (B, H, Q, C).

    On CPU torch's kernel is not the fastest: without gradients plain products take two thirds of its time at beams' sizes;
    with them its bfloat16 form is seven times as slow backward, so that float32 serves there for narrower dtypes.
    """
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        score = (q * (1 / math.sqrt(q.shape[3]))) @ k.transpose(2, 3)
        return score.masked_fill_(~mask, -math.inf).softmax(3) @ v
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return nf.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
    return nf.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def few_token_attention(q_MPD: Tensor, k_MJD: Tensor, v_MJD: Tensor, n_heads: int) -> Tensor:
    """Causal attention among the few tokens of each of many sequences, (M, P, D); the last query sees all keys.

    Products element by element, since batched matrix products of three rows cost more in calls than in work (one core, 2,000
    items of three tokens, width 128: 2.2 ms against 4.7 ms for scaled_dot_product_attention, 12 against 15 with gradients).
    """
    n_items, n_new, width = q_MPD.shape
    n_past = k_MJD.shape[1]
    q = q_MPD.view(n_items, n_new, 1, n_heads, -1)
    k = k_MJD.view(n_items, 1, n_past, n_heads, width // n_heads)
    score = (q * k).sum(-1) / math.sqrt(width // n_heads)  # (M, P, J, H)
    if n_new > 1:
        is_later = torch.ones(n_new, n_past, dtype=torch.bool, device=q.device).triu(n_past - n_new + 1)
        score = score.masked_fill(is_later[None, :, :, None], -math.inf)
    weight = score.softmax(2).to(v_MJD.dtype)
    return (weight.unsqueeze(-1) * v_MJD.view(n_items, 1, n_past, n_heads, -1)).sum(2).reshape(n_items, n_new, width)


class _Layer(nn.Module):
    """What all layers have: a number of heads, dropout after each sublayer, and an MLP or experts."""

    feed: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.dropout = config.heads, config.dropout

    def _add(self, x: Tensor, of_sublayer: Tensor) -> Tensor:
        """Their sum, of one shape; in training of the second some numbers are dropped."""
        return add_dropped(x, of_sublayer, self.dropout if self.training else 0.0)

    def again(self) -> AbstractContextManager[None]:
        """What surrounds a second computation of the same tokens: they are no load to balance then."""
        return self.feed.uncounted() if isinstance(self.feed, Experts) else nullcontext()

    @staticmethod
    def _feed_forward(config: ModelConfig, hidden: int, *, is_sparse: bool) -> nn.Module:
        if is_sparse:
            return Experts(config.width, config.experts, config.active, config.expert_hidden)
        return mlp(config.width, hidden)


class EncoderLayer(_Layer):
    """Self-attention over a row's context, then a feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.attention_norm, self.feed_norm = rms_norm(config.width), rms_norm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.feed = self._feed_forward(config, config.hidden, is_sparse=bool(config.experts) and config.moe == "both")

    def forward(self, z_BCD: Tensor, mask_B1CC: Tensor, is_token_BC: Tensor) -> Tensor:
        """(B, C, D) -> (B, C, D). mask_B1CC: bool, what each token may see. is_token_BC: bool, False for padding."""
        q, k, v = (split_heads(x, self.n_heads) for x in self.qkv(self.attention_norm(z_BCD)).chunk(3, dim=2))
        attended = attention(q, k, v, mask_B1CC)
        z_BCD = self._add(z_BCD, self.out(attended.transpose(1, 2).flatten(2)))
        return self._add(z_BCD, feed_forward(self.feed, self.feed_norm(z_BCD), is_token_BC))


class DecoderLayer(_Layer):
    """Causal self-attention within an item's codes, cross-attention to the context, then a feed-forward or experts.

    The lazy form (OneRec-V2, arXiv 2508.20900) attends to the context first, by keys and values that all layers share.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.is_lazy = config.decoder == "lazy"
        self.self_norm, self.cross_norm, self.feed_norm = (rms_norm(config.width) for _ in range(3))
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.self_out = nn.Linear(config.width, config.width, bias=False)
        self.cross_query = nn.Linear(config.width, config.width, bias=False)
        self.cross_out = nn.Linear(config.width, config.width, bias=False)
        self.feed = self._feed_forward(config, config.decoder_hidden or config.hidden, is_sparse=bool(config.experts))

    def forward(
        self, x_MPD: Tensor, attend: "ContextAttention", cache: KVCache | None, is_token_M: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """The states (M, P, D) of P new tokens of each of M items, and the cache of all tokens so far.

        attend: cross-attention, (M, P, D) -> (M, P, D). cache: of the tokens before. is_token_M: bool, False for padding.
        """
        if self.is_lazy:
            x_MPD = self._cross(x_MPD, attend)
        q_MPD, k_MPD, v_MPD = self.qkv(self.self_norm(x_MPD)).chunk(3, dim=2)
        k_MJD = k_MPD if cache is None else torch.cat([cache[0], k_MPD], dim=1)
        v_MJD = v_MPD if cache is None else torch.cat([cache[1], v_MPD], dim=1)
        x_MPD = self._add(x_MPD, self.self_out(few_token_attention(q_MPD, k_MJD, v_MJD, self.n_heads)))
        if not self.is_lazy:
            x_MPD = self._cross(x_MPD, attend)
        return self._add(x_MPD, feed_forward(self.feed, self.feed_norm(x_MPD), is_token_M)), (k_MJD, v_MJD)

    def _cross(self, x_MPD: Tensor, attend: "ContextAttention") -> Tensor:
        return self._add(x_MPD, self.cross_out(attend(self.cross_query(self.cross_norm(x_MPD)))))


class ContextAttention:
    """Attention from the items of B rows to the context of their row, and to the neighbours of each target.

    The row's keys and values, (B, H, C, X), are held once and serve all its items; mask_BTC: bool, what each target may see.
    target_kv: keys and values (B, T, H, N, X) of each target's neighbours, and bool (B, T, N), which there are. One softmax
    spans both.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, mask_BTC: Tensor, target_kv: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> None:
        self.keys, self.values, self.mask_BTC, self.target_kv = keys, values, mask_BTC, target_kv

    def __call__(self, q_MPD: Tensor) -> Tensor:
        """(M, P, D) -> (M, P, D): queries of M = B * T items, T a row, or of T * W where W beams share each item's context."""
        n_rows, n_heads, n_context, head_width = self.keys.shape
        n_items, n_new, width = q_MPD.shape
        n_targets = self.mask_BTC.shape[1]
        per = n_items // (n_rows * n_targets) * n_new  # queries a target: beams times new tokens
        q = q_MPD.view(n_rows, n_targets * per, n_heads, head_width).transpose(1, 2)  # (B, H, T*per, X)
        mask = self.mask_BTC[:, None]  # (B, 1, T, C)
        if n_targets > 1:
            mask = mask.repeat_interleave(per, dim=2)
        if self.target_kv is None:
            attended = attention(q, self.keys, self.values, mask)
            return attended.transpose(1, 2).reshape(n_items, n_new, width)
        own_keys, own_values, own_mask_BTN = self.target_kv
        scale = 1 / math.sqrt(head_width)
        shared = (q @ self.keys.transpose(2, 3) * scale).masked_fill(~mask, -math.inf)
        q_own = q.view(n_rows, n_heads, n_targets, per, head_width).permute(0, 2, 1, 3, 4)  # (B, T, H, per, X)
        own = (q_own @ own_keys.transpose(3, 4) * scale).masked_fill(~own_mask_BTN[:, :, None, None, :], -math.inf)
        own = own.permute(0, 2, 1, 3, 4).flatten(2, 3)  # (B, H, T*per, N)
        weight = torch.cat([shared, own], dim=3).softmax(3).to(self.values.dtype)
        attended = weight[..., :n_context] @ self.values
        weight_own = weight[..., n_context:].view(n_rows, n_heads, n_targets, per, -1).permute(0, 2, 1, 3, 4)
        attended_own = (weight_own @ own_values).permute(0, 2, 1, 3, 4).flatten(2, 3)
        return (attended + attended_own).transpose(1, 2).reshape(n_items, n_new, width)


class QFormer(nn.Module):
    """The lifelong pathway's summary: learnable queries attend to the tokens twice."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, width = config.heads, config.width
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, width))
        self.blocks = nn.ModuleList()
        for _ in range(N_QFORMER_BLOCKS):
            names = ("query", "key", "value", "out")
            block = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
            block["query_norm"], block["norm"] = rms_norm(width), rms_norm(width)
            block["feed"] = mlp(width, config.hidden)
            self.blocks.append(block)

    def forward(self, x_BPD: Tensor, is_token_BP: Tensor) -> Tensor:
        """(B, P, D) -> (B, Q, D). is_token_BP: bool, False for padding."""
        q_BQD = self.queries.expand(len(x_BPD), -1, -1)
        # a row without tokens attends to its padding, so that no softmax is empty; its summary is masked where it is used
        mask = (is_token_BP | ~is_token_BP.any(1, keepdim=True))[:, None, None, :]
        for module in self.blocks:
            block = cast("nn.ModuleDict", module)
            q = split_heads(block["query"](block["query_norm"](q_BQD)), self.n_heads)
            k, v = split_heads(block["key"](x_BPD), self.n_heads), split_heads(block["value"](x_BPD), self.n_heads)
            attended = attention(q, k, v, mask).transpose(1, 2).flatten(2)
            q_BQD = q_BQD + block["out"](attended)
            q_BQD = q_BQD + block["feed"](block["norm"](q_BQD))
        return q_BQD
