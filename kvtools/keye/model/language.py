"""The decoder: Qwen3 with rotary embeddings of time, row and column, on packed rows, and the cache of keys and values.

Source: Qwen3's published model (grouped queries, norms of queries and keys, SwiGLU) and Keye-VL's positions (spec/keye.md 1.5).
Names of weights are those of the published checkpoints.

Legend: S tokens of a row, D width, H heads, K heads of keys and values, X width of a head, G segments, C capacity of the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.attention import Segments, attend, attend_cached
from kvtools.keye.model.config import LanguageConfig
from kvtools.keye.model.layers import RMSNorm, matmul_dtype
from kvtools.keye.model.rope import RotaryAngles, apply_rotary
from kvtools.train.checkpointing import run_layer

_GROWTH = 64  # tokens: the least that a cache grows by


class KVCache:
    """Keys and values of the tokens so far of G conversations, for each layer; the next call needs only new tokens.

    Give an empty one with the prompts, one a segment, then the same one with one or more new tokens a segment, in the same
    order. Takes 2 * layers * K * X numbers a token, for as many tokens as the longest conversation has, and room to grow.
    """

    def __init__(self) -> None:
        self.is_fresh = True  # whether the tokens of this call are the first
        self.lengths_G: Tensor | None = None
        self._longest = 0
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values, (G, K, C, X) each

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (G, K, C, X); what they hold beyond a conversation's end means nothing."""
        return self._layers

    def select(self, conversations_G: Tensor) -> None:
        """Keep these conversations, by int64 index: others are dropped, and one named several times is repeated."""
        assert self.lengths_G is not None, "nothing to select from"
        self.lengths_G = self.lengths_G[conversations_G]
        self._layers = [(keys[conversations_G], values[conversations_G]) for keys, values in self._layers]

    def begin(self, segments: Segments, device: torch.device) -> None:
        """Find the slots of new tokens, once for all layers. Raises ValueError for another number of segments."""
        if self.lengths_G is None:
            self.lengths_G = torch.zeros(len(segments.starts), dtype=torch.long, device=device)
        if len(self.lengths_G) != len(segments.starts):
            raise ValueError(f"the row has {len(segments.starts)} segments, and the cache has {len(self.lengths_G)}")
        added_G = torch.tensor(segments.lengths, device=device)
        self.is_fresh, self._longest = not self._layers, int((self.lengths_G + added_G).max())
        self._segment_S = torch.repeat_interleave(torch.arange(len(added_G), device=device), added_G)
        first_S = torch.tensor(segments.starts, device=device)[self._segment_S]
        self._slot_S = self.lengths_G[self._segment_S] + torch.arange(segments.n_tokens, device=device) - first_S

    def add(self, layer: int, k_SKX: Tensor, v_SKX: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values. Returns all so far, (G, K, longest, X), 0 beyond the ends of shorter ones."""
        longest = self._longest
        if layer == len(self._layers):
            self._layers.append((self._allocate(k_SKX), self._allocate(v_SKX)))
        keys, values = self._layers[layer]
        if keys.shape[2] < longest:
            keys, values = self._layers[layer] = self._grow(keys), self._grow(values)
        keys[self._segment_S, :, self._slot_S] = k_SKX
        values[self._segment_S, :, self._slot_S] = v_SKX
        return keys[:, :, :longest], values[:, :, :longest]

    def end(self, segments: Segments) -> None:
        """Count the new tokens, once all layers have stored them."""
        assert self.lengths_G is not None, "begin comes first"
        self.lengths_G = self.lengths_G + torch.tensor(segments.lengths, device=self.lengths_G.device)

    def _allocate(self, x_SKX: Tensor) -> Tensor:
        assert self.lengths_G is not None, "begin comes first"
        return x_SKX.new_zeros(len(self.lengths_G), x_SKX.shape[1], self._longest + _GROWTH, x_SKX.shape[2])

    def _grow(self, x_GKCX: Tensor) -> Tensor:
        # by half: a conversation of n tokens is copied a few times in all, not n / 64 times
        return nf.pad(x_GKCX, (0, 0, 0, self._longest + max(_GROWTH, self._longest // 2) - x_GKCX.shape[2]))


class SelfAttention(nn.Module):
    """Each token attends to itself and those before it in its segment; several heads share keys and values."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.eps)
        self.k_norm = RMSNorm(config.head_dim, config.eps)

    def forward(
        self, x_SD: Tensor, angles: RotaryAngles, segments: Segments, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """(S, D) to (S, D). layer: this layer's number in the cache."""
        shape = (len(x_SD), -1, self.head_dim)
        q_SHX, k_SKX, v_SKX = (project(x_SD).view(shape) for project in (self.q_proj, self.k_proj, self.v_proj))
        q_SHX = apply_rotary(self.q_norm(q_SHX), angles).to(v_SKX.dtype)
        k_SKX = apply_rotary(self.k_norm(k_SKX), angles).to(v_SKX.dtype)
        cached = cache.add(layer, k_SKX, v_SKX) if cache is not None else None
        if cache is None or cached is None or cache.is_fresh:
            out_SHX = attend(q_SHX, k_SKX, v_SKX, segments, is_causal=True)
        else:
            assert cache.lengths_G is not None, "begin comes first"
            out_SHX = attend_cached(q_SHX, *cached, cache.lengths_G, segments)
        out: Tensor = self.o_proj(out_SHX.flatten(1))
        return out


class MLP(nn.Module):
    """SwiGLU: the silu of one projection gates the other."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x_SD: Tensor) -> Tensor:
        """(S, D) to (S, D)."""
        out: Tensor = self.down_proj(nf.silu(self.gate_proj(x_SD)) * self.up_proj(x_SD))
        return out


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)

    def forward(
        self, x_SD: Tensor, angles: RotaryAngles, segments: Segments, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """(S, D) to (S, D)."""
        dtype = matmul_dtype(x_SD)
        x_SD = x_SD + self.self_attn(self.input_layernorm(x_SD).to(dtype), angles, segments, cache, layer)
        out: Tensor = x_SD + self.mlp(self.post_attention_layernorm(x_SD).to(dtype))
        return out


class Decoder(nn.Module):
    """Embedding table, layers and the final norm; not the output matrix."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # the table too: where it is the output matrix, logits begin with a deviation of 1
                is_last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * ((2 * config.layers) ** -0.5 if is_last else 1))

    def forward(
        self, x_SD: Tensor, angles: RotaryAngles, starts: Sequence[int], cache: KVCache | None = None,
        prompts: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Embedded tokens to hidden states after the final norm, (S, D) in the dtype of matrix products. prompts: the segment
        that each one continues, -1 for none."""
        segments = Segments.of(starts, len(x_SD), x_SD.device)
        if prompts is not None:
            segments = segments.continuing(prompts, x_SD.device)
        is_checkpointed = self.checkpointing and cache is None
        if cache is not None:
            cache.begin(segments, x_SD.device)
        for number, layer in enumerate(self.layers):
            x_SD = run_layer(layer, x_SD, angles, segments, cache, number, is_checkpointed=is_checkpointed)
        if cache is not None:
            cache.end(segments)
        normed: Tensor = self.norm(x_SD)
        return normed.to(matmul_dtype(x_SD))
