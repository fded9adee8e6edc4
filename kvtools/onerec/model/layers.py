"""The blocks that OneRec's encoder and decoder are made of. Every sublayer is x + f(RMSNorm(x)); no biases.

Source: OneRec Technical Report section 2.2. It prints the decoder's attention without a norm before it; ours has one
everywhere, our choice. Legend: B rows, Q queries, C context tokens, M tokens in a row, S levels, D width, H heads,
X width of a head, P new tokens, J tokens so far.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.onerec.model.config import Architecture
from kvtools.onerec.model.moe import Experts


def norm(width: int) -> nn.RMSNorm:
    """The one norm of the house: RMSNorm with a learnable gain."""
    return nn.RMSNorm(width, eps=1e-6)


def heads_of(x_BTD: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, X)."""
    n_rows, n_tokens, width = x_BTD.shape
    return x_BTD.view(n_rows, n_tokens, n_heads, width // n_heads).transpose(1, 2)


def experts(arch: Architecture) -> Experts:
    """The experts of one layer."""
    return Experts(arch.width, arch.experts, arch.active, arch.expert_hidden)


def dense(width: int, hidden: int) -> nn.Module:
    """Two matrices and a ReLU, (..., D) -> (..., D). The report leaves open what is between them; GELU cost beams 6 %."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden, width, bias=False))


def feed(layer: nn.Module, x_BTD: Tensor, there: Tensor | None) -> Tensor:
    """A feed-forward or experts, token by token. there: bool (B, T) or (B,); what is not, padding, is no load to balance."""
    x_MD = x_BTD.flatten(0, 1)
    if there is None or not isinstance(layer, Experts):
        return cast("Tensor", layer(x_MD)).view_as(x_BTD)
    there_M = there.view(len(x_BTD), -1).expand(-1, x_BTD.shape[1]).flatten()
    return cast("Tensor", layer(x_MD, there_M)).view_as(x_BTD)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled-dot-product attention, (B, H, Q, X).

    On CPU torch's kernel is not the fastest: without gradients plain products take two thirds of its time at beams' sizes;
    with them its bfloat16 form is seven times as slow backward, so that float32 serves there for what is narrower.
    """
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        score = (q * (1 / math.sqrt(q.shape[3]))) @ k.transpose(2, 3)
        return score.masked_fill_(~mask, -math.inf).softmax(3) @ v
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return nf.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
    return nf.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class EncoderLayer(nn.Module):
    """Self-attention over a row's context, then a feed-forward."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.n_heads, self.dropout = arch.heads, arch.dropout
        self.attention_norm, self.feed_norm = norm(arch.width), norm(arch.width)
        self.qkv = nn.Linear(arch.width, 3 * arch.width, bias=False)
        self.out = nn.Linear(arch.width, arch.width, bias=False)
        self.feed = experts(arch) if arch.experts and arch.moe == "both" else dense(arch.width, arch.hidden)

    def forward(self, z_BCD: Tensor, mask_B1CC: Tensor, there_BC: Tensor) -> Tensor:
        q, k, v = (heads_of(x, self.n_heads) for x in self.qkv(self.attention_norm(z_BCD)).chunk(3, dim=2))
        seen = attention(q, k, v, mask_B1CC)
        z_BCD = z_BCD + self._drop(self.out(seen.transpose(1, 2).flatten(2)))
        fed = feed(self.feed, self.feed_norm(z_BCD), there_BC)
        return z_BCD + self._drop(fed)

    def _drop(self, x: Tensor) -> Tensor:
        return nf.dropout(x, self.dropout, self.training)


class DecoderLayer(nn.Module):
    """Causal self-attention within an item's codes, cross-attention to the context, then a feed-forward or experts.

    The lazy form (OneRec-V2, arXiv 2508.20900) attends to the context first, by keys and values that are nobody's own.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.n_heads, self.dropout, self.is_lazy = arch.heads, arch.dropout, arch.decoder == "lazy"
        self.self_norm, self.cross_norm, self.feed_norm = norm(arch.width), norm(arch.width), norm(arch.width)
        self.qkv = nn.Linear(arch.width, 3 * arch.width, bias=False)
        self.self_out = nn.Linear(arch.width, arch.width, bias=False)
        self.cross_query = nn.Linear(arch.width, arch.width, bias=False)
        self.cross_out = nn.Linear(arch.width, arch.width, bias=False)
        self.feed = experts(arch) if arch.experts else dense(arch.width, arch.decoder_hidden or arch.hidden)

    def forward(
        self, x_MPD: Tensor, attend: "Attend", past: tuple[Tensor, Tensor] | None, there_M: Tensor | None = None
    ) -> tuple[Tensor, "Past"]:
        """P new tokens of each of M items; attend: queries (M, P, D) -> (M, P, D) over the context. past: keys and values of
        the tokens before, (M, J, D) each. Returns the new states, and the keys and values of all tokens so far."""
        if self.is_lazy:
            x_MPD = self._cross(x_MPD, attend)
        q_MPD, k_MPD, v_MPD = self.qkv(self.self_norm(x_MPD)).chunk(3, dim=2)
        k_MJD = k_MPD if past is None else torch.cat([past[0], k_MPD], dim=1)
        v_MJD = v_MPD if past is None else torch.cat([past[1], v_MPD], dim=1)
        x_MPD = x_MPD + self._drop(self.self_out(few(q_MPD, k_MJD, v_MJD, self.n_heads)))
        if not self.is_lazy:
            x_MPD = self._cross(x_MPD, attend)
        fed = feed(self.feed, self.feed_norm(x_MPD), there_M)
        return x_MPD + self._drop(fed), (k_MJD, v_MJD)

    def _cross(self, x_MPD: Tensor, attend: "Attend") -> Tensor:
        return x_MPD + self._drop(self.cross_out(attend(self.cross_query(self.cross_norm(x_MPD)))))

    def _drop(self, x: Tensor) -> Tensor:
        return nf.dropout(x, self.dropout, self.training)


Past = tuple[Tensor, Tensor]


class Attend:
    """Attention from the items of B rows to the context of their row, and to context of their own.

    The row's keys and values, (B, H, C, X), are held once and serve all its items; own ones, (B, T, H, N, X), belong to
    single items (the neighbours of the items before each target). One softmax spans both.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, mask_BTC: Tensor, own: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> None:
        self.keys, self.values, self.mask_BTC, self.own = keys, values, mask_BTC, own

    def __call__(self, q_MPD: Tensor) -> Tensor:
        """Queries of M = B * T items, T a row, or of T * W where W beams share each item's context."""
        n_rows, n_heads, n_context, n_wide = self.keys.shape
        n_items, n_new, width = q_MPD.shape
        n_targets = self.mask_BTC.shape[1]
        per = n_items // (n_rows * n_targets) * n_new  # queries a target: beams times new tokens
        q = q_MPD.view(n_rows, n_targets * per, n_heads, n_wide).transpose(1, 2)  # (B, H, T*per, X)
        mask = self.mask_BTC[:, None]  # (B, 1, T, C)
        if n_targets > 1:
            mask = mask.repeat_interleave(per, dim=2)
        if self.own is None:
            seen = attention(q, self.keys, self.values, mask)
            return seen.transpose(1, 2).reshape(n_items, n_new, width)
        own_keys, own_values, own_mask_BTN = self.own
        scale = 1 / math.sqrt(n_wide)
        shared = (q @ self.keys.transpose(2, 3) * scale).masked_fill(~mask, -math.inf)
        q_own = q.view(n_rows, n_heads, n_targets, per, n_wide).permute(0, 2, 1, 3, 4)  # (B, T, H, per, X)
        own = (q_own @ own_keys.transpose(3, 4) * scale).masked_fill(~own_mask_BTN[:, :, None, None, :], -math.inf)
        own = own.permute(0, 2, 1, 3, 4).flatten(2, 3)  # (B, H, T*per, N)
        weight = torch.cat([shared, own], dim=3).softmax(3).to(self.values.dtype)
        seen = weight[..., :n_context] @ self.values
        weight_own = weight[..., n_context:].view(n_rows, n_heads, n_targets, per, -1).permute(0, 2, 1, 3, 4)
        seen_own = (weight_own @ own_values).permute(0, 2, 1, 3, 4).flatten(2, 3)
        return (seen + seen_own).transpose(1, 2).reshape(n_items, n_new, width)


def few(q_MPD: Tensor, k_MJD: Tensor, v_MJD: Tensor, n_heads: int) -> Tensor:
    """Causal attention among the few tokens of each of many items, (M, P, D); the last query sees all keys.

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
