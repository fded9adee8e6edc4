"""The decoder for one new token of each answer, all of them in step: what the time of generation is spent on.

The same numbers as language.py to rounding, in fewer and larger operations. Keys and values of a prompt are held once, whatever
the number of its answers, which read them together: reading the cache is what limits a step. Gains of norms are part of the
products after them. On CPUs, weights of small models are copied, joined and transposed, which makes thin products faster. Heads
are in the order that makes a rotation one product of complex numbers: the two coordinates of each pair stand side by side.

Measured on one core of a Xeon, November 2026, for 128 tokens of 8 answers each to 8 prompts of 64 tokens, width 256, 4 layers,
float32: 1.2 s, where a pass of the whole model a token, with a cache of its own for each answer, took 2.0 s.

Not here: prompts, several new tokens at a time, gradients.

Legend: B answers, G prompts, N answers of a prompt at most, D width, H heads, K heads of keys and values, R = H / K, X width of
a head, Y = X / 2, P tokens of the longest prompt, C capacity for new tokens, T positions, A = B * K, E a last dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.config import LanguageConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.language import DecoderLayer, KVCache
from kvtools.keye.model.layers import matmul_dtype
from kvtools.keye.model.lora import LoraLinear
from kvtools.keye.model.rope import mrope_angles

_COPIED_BYTES = 1 << 28  # of weights that are copied at most
_ROOM = 64  # tokens: the least that the cache grows by

Product = Callable[[Tensor], Tensor]  # (B, in) to (B, out)


@dataclass(frozen=True)
class _Layer:
    """A layer's products, those of one input joined. qk_gain: of the norms of queries and keys, (H + K, X), with the scale of
    attention in that of queries."""

    qkv: Product
    output: Product
    gate_up: Product
    down: Product
    qk_gain: Tensor


class DecodingWeights:
    """A decoder's weights as decoding wants them; made once for all answers, and stale once the weights change."""

    def __init__(self, model: Keye) -> None:
        self.model, self.config = model, model.config.language
        table = model.model.embed_tokens.weight
        self.dtype = matmul_dtype(table)
        n_bytes = sum(p.numel() for p in model.model.layers.parameters()) * self.dtype.itemsize
        self._is_copied = table.device.type == "cpu" and n_bytes <= _COPIED_BYTES
        wide = table.dtype if table.dtype == torch.float64 else torch.float32
        self.eps = torch.full((1, 1), self.config.eps, dtype=wide, device=table.device)
        self.order_X = pairs_together(self.config, table.device)
        self.layers = [self._layer(layer) for layer in model.model.layers]

    def _layer(self, layer: nn.Module) -> _Layer:
        assert isinstance(layer, DecoderLayer), "a decoder has no other layers"
        attention, mlp, config = layer.self_attn, layer.mlp, self.config
        q_gain = attention.q_norm.weight * config.head_dim**-0.5
        gain = torch.cat([q_gain.expand(config.heads, -1), attention.k_norm.weight.expand(config.kv_heads, -1)])
        n_rotated = (config.heads + config.kv_heads) * config.head_dim
        order = torch.arange((config.heads + 2 * config.kv_heads) * config.head_dim, device=gain.device)
        order[:n_rotated] = order[:n_rotated].view(-1, config.head_dim)[:, self.order_X].flatten()
        return _Layer(
            self._product([attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm.weight, order),
            self._product([attention.o_proj]),
            self._product([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm.weight),
            self._product([mlp.down_proj]),
            gain[:, self.order_X].to(self.eps.dtype),
        )

    def _product(self, layers: Sequence[nn.Module], gain: Tensor | None = None, order: Tensor | None = None) -> Product:
        """The results of some layers for one input times a gain, one after the other and then in another order."""
        if not self._is_copied:

            def product(x: Tensor) -> Tensor:
                x = (x if gain is None else x * gain).to(self.dtype)
                out = torch.cat([layer(x) for layer in layers], dim=1)
                return out if order is None else out.index_select(1, order)

            return product
        plain = [layer.merged() if isinstance(layer, LoraLinear) and layer.is_on else layer for layer in layers]
        weight = torch.cat([layer.weight for layer in plain])  # type: ignore[misc]
        weight = weight if order is None else weight[order]
        weight = weight if gain is None else weight * gain
        # transposed: thin products take 0.6 to 0.8 of the time (16 to 64 rows, width 256, float32, Xeon)
        transposed = weight.to(self.dtype).t().contiguous()
        return lambda x: x.to(self.dtype) @ transposed


def pairs_together(config: LanguageConfig, device: torch.device) -> Tensor:
    """The order of a head's coordinates in which the two that are rotated together stand side by side, int64 (X,)."""
    return torch.arange(config.head_dim, device=device).view(2, -1).t().flatten()


class Decoding:
    """Answers that grow: their own keys and values, and those of their prompts, shared."""

    def __init__(
        self, weights: DecodingWeights, prompts: KVCache, prompt_of: Sequence[int], positions_G: Sequence[int]
    ) -> None:
        """prompts: the cache of the G prompts. prompt_of: each answer's prompt; answers of one are neighbours. positions_G: the
        position of the first token of an answer to each prompt."""
        self._weights, self._prompt_of = weights, list(prompt_of)
        lengths_G = prompts.lengths_G
        assert lengths_G is not None, "the prompts have been read"
        self._device, self._lengths_G = lengths_G.device, lengths_G
        longest = int(lengths_G.max())
        self._prompt_layers = [
            (keys[:, :, :longest, weights.order_X], values[:, :, :longest]) for keys, values in prompts.layers
        ]
        self._prompt_numbers = list(range(len(lengths_G)))
        self._own: list[tuple[Tensor, Tensor]] = []
        self._n = 0  # new tokens of each answer
        self._first = min(positions_G)
        self._turns_T1Y = self._turns(max(positions_G) - self._first + _ROOM)
        self._group()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these answers, by rising index."""
        index = torch.tensor(rows, device=self._device)
        self._own = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in self._own]
        self._prompt_of = [self._prompt_of[row] for row in rows]
        self._group()

    def step(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """Hidden states after the final norm, (B, D), of one new token each."""
        weights, model = self._weights, self._weights.model
        index_B = positions_B - self._first
        if self._n % _ROOM == 0:
            self._make_room(int(index_B.max()) + 1 + _ROOM)
        turns_B1Y = self._turns_T1Y.index_select(0, index_B)
        x_BD = nf.embedding(tokens_B, model.model.embed_tokens.weight)
        self._n += 1
        for number, layer in enumerate(weights.layers):
            x_BD = x_BD + layer.output(self._attention(number, layer.qkv(self._scaled(x_BD)), turns_B1Y))
            gate, up = layer.gate_up(self._scaled(x_BD)).chunk(2, dim=1)
            x_BD = x_BD + layer.down(nf.silu(gate).mul_(up))
        scaled_BD = self._scaled(x_BD)
        return (scaled_BD * model.model.norm.weight.to(scaled_BD.dtype)).to(weights.dtype)

    def _attention(self, number: int, qkv: Tensor, turns_B1Y: Tensor) -> Tensor:
        """Each answer's new token attends to its prompt and to its own tokens: (B, H * X)."""
        config = self._weights.config
        n_heads, n_kv, width = config.heads, config.kv_heads, config.head_dim
        qkv = qkv.view(len(qkv), n_heads + 2 * n_kv, width)
        qk = self._scaled(qkv[:, : n_heads + n_kv]).mul_(self._weights.layers[number].qk_gain)
        qk = torch.view_as_real(torch.view_as_complex(qk.view(len(qk), -1, width // 2, 2)) * turns_B1Y).flatten(2).to(qkv.dtype)
        keys_BKCX, values_BKCX = self._own[number]
        keys_BKCX[:, :, self._n - 1] = qk[:, n_heads:]
        values_BKCX[:, :, self._n - 1] = qkv[:, n_heads + n_kv :]
        keys_AnX, values_AnX = (x[:, :, : self._n].flatten(0, 1) for x in (keys_BKCX, values_BKCX))
        prompt_keys, prompt_values = (x.flatten(0, 1) for x in self._prompt_layers[number])
        q_BKRX = qk[:, :n_heads].view(len(qk), n_kv, -1, width)
        own = torch.bmm(q_BKRX.flatten(0, 1), keys_AnX.transpose(1, 2)).view(*q_BKRX.shape[:3], -1)
        prompt = torch.bmm(self._by_prompt(q_BKRX), prompt_keys.transpose(1, 2))
        if self._bias is not None:
            prompt = (prompt.view(len(self._bias), n_kv, -1, prompt.shape[2]) + self._bias).flatten(0, 1)
        scores = torch.cat([self._by_answer(prompt), own], dim=3)
        probs = scores.softmax(3).to(qkv.dtype)
        n_prompt = prompt_keys.shape[1]
        out = torch.bmm(probs[..., n_prompt:].flatten(0, 1), values_AnX).view(q_BKRX.shape)
        out = out + self._by_answer(torch.bmm(self._by_prompt(probs[..., :n_prompt]), prompt_values))
        return out.flatten(1)

    def _by_prompt(self, x_BKRE: Tensor) -> Tensor:
        """Rows of answers, put beside those of the same prompt and padded to equal numbers: (G * K, N * R, E)."""
        n_prompts = len(self._prompt_numbers)
        if self._slot_B is not None:
            x_BKRE = x_BKRE.new_zeros(n_prompts * self._most, *x_BKRE.shape[1:]).index_copy(0, self._slot_B, x_BKRE)
        x_GNKRE = x_BKRE.view(n_prompts, self._most, *x_BKRE.shape[1:])
        return x_GNKRE.transpose(1, 2).reshape(n_prompts * x_BKRE.shape[1], -1, x_BKRE.shape[3])

    def _by_answer(self, x: Tensor) -> Tensor:
        """The inverse of `_by_prompt`: (B, K, R, E)."""
        n_kv = self._weights.config.kv_heads
        x_GKNRE = x.view(len(self._prompt_numbers), n_kv, self._most, -1, x.shape[2])
        x_BKRE = x_GKNRE.transpose(1, 2).flatten(0, 1)
        return x_BKRE if self._slot_B is None else x_BKRE.index_select(0, self._slot_B)

    def _group(self) -> None:
        """Find each answer's slot among those of its prompt, and drop prompts without an answer."""
        numbers = sorted(set(self._prompt_of))
        if numbers != self._prompt_numbers:
            kept = torch.tensor([self._prompt_numbers.index(number) for number in numbers], device=self._device)
            self._prompt_layers = [(keys[kept], values[kept]) for keys, values in self._prompt_layers]
            self._lengths_G, self._prompt_numbers = self._lengths_G[kept], numbers
        index_of = {number: index for index, number in enumerate(numbers)}
        counts = [0] * len(numbers)
        slots = []
        for number in self._prompt_of:
            slots.append((index_of[number], counts[index_of[number]]))
            counts[index_of[number]] += 1
        self._most = max(counts)
        flat = [group * self._most + place for group, place in slots]
        is_in_order = flat == list(range(len(numbers) * self._most))
        self._slot_B = None if is_in_order else torch.tensor(flat, device=self._device)
        n_prompt = self._prompt_layers[0][0].shape[2]
        is_padding_GP = torch.arange(n_prompt, device=self._device) >= self._lengths_G[:, None]
        self._bias = None
        if bool(is_padding_GP.any()):
            bias_GP = torch.zeros(is_padding_GP.shape, dtype=self._weights.dtype, device=self._device)
            self._bias = bias_GP.masked_fill_(is_padding_GP, -torch.inf)[:, None, None, :]

    def _make_room(self, n_positions: int) -> None:
        config, n_rows = self._weights.config, len(self._prompt_of)
        capacity = self._own[0][0].shape[2] if self._own else 0
        if self._n >= capacity:
            # by half: an answer of n tokens is copied a few times in all, not n / 64 times; by whole rooms, since it is called
            # only where one is full
            n_more = _ROOM * max(1, capacity // 2 // _ROOM)
            if not self._own:
                like = self._prompt_layers[0][0]
                shape = (n_rows, config.kv_heads, n_more, config.head_dim)
                self._own = [(like.new_empty(shape), like.new_empty(shape)) for _ in self._weights.layers]
            else:
                self._own = [(nf.pad(keys, (0, 0, 0, n_more)), nf.pad(values, (0, 0, 0, n_more))) for keys, values in self._own]
        if n_positions > len(self._turns_T1Y):
            self._turns_T1Y = self._turns(n_positions + self._n)

    def _turns(self, n: int) -> Tensor:
        """The rotation of each of n positions, as complex numbers (T, 1, Y)."""
        positions_T = torch.arange(self._first, self._first + n, device=self._device)
        angles = mrope_angles(positions_T.expand(3, -1), self._weights.config.head_dim, self._weights.config.theta)
        wide = self._weights.eps.dtype
        return torch.complex(angles.cos.to(wide), angles.sin.to(wide))

    def _scaled(self, x: Tensor) -> Tensor:
        """X over the root of its mean square, in the last dimension; in float32, or float64 where x is."""
        eps = self._weights.eps
        x = x.to(eps.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()
