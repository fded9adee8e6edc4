"""Next-item training of a generator: the task that the shared loop runs.

FLOPs are counted as 2 a parameter and token forward, and twice that backward, over the parameters that a token passes
through (only the active experts), plus the products of attention; padding is not counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kvtools.learn.loop import Loss
from kvtools.onerec import metrics
from kvtools.onerec.beam import search
from kvtools.onerec.model import OneRec
from kvtools.onerec.moe import Experts
from kvtools.onerec.rows import Cutter, Rows
from kvtools.onerec.trie import Trie
from kvtools.world import World

_VALID_ROWS = 256


@dataclass(frozen=True)
class Held:
    """What validation looks at: a row each user, the item that came, and neighbours where the architecture has them."""

    rows: Rows
    targets: np.ndarray  # int32 (R,)
    near: tuple[np.ndarray, np.ndarray] | None = None
    beam: int = 20


class Pretraining:
    """A `learn.loop.Task` over rows of histories."""

    def __init__(
        self, model: OneRec, cutter: Cutter, rows: Rows, *, held: Held | None, n_targets: int, smoothing: float, device: str
    ) -> None:
        self.model, self._cutter, self._rows, self._held = model, cutter, rows, held
        self._n_targets, self._smoothing, self._device = n_targets, smoothing, device
        self._trie = Trie(model.codes_IS.cpu().numpy()).to(device)
        self._cost = Cost.of(model)

    def epoch(self, number: int) -> Iterator[Rows]:
        return self._cutter.epoch(self._rows, self._n_targets, "epoch", number)

    def n_steps(self) -> int:
        """Steps an epoch; that of the first stands for all, which differ by a few."""
        return sum(1 for _ in self.epoch(0))

    def n_tokens(self) -> int:
        """Tokens an epoch: items of contexts, and codes of targets."""
        n_targets = int((self._rows.ends - self._rows.begins).sum())
        return n_targets * (1 + self.model.n_levels) + len(self._rows)

    def pieces(self, rows: Rows, n: int) -> Sequence[Rows]:
        return [rows.take(np.arange(i, len(rows), n)) for i in range(min(n, len(rows)))]

    def loss(self, rows: Rows) -> Loss:
        batch = self._cutter.batch(rows).to(self._device)
        total, told_S = self.model.loss(batch, smoothing=self._smoothing)
        n_targets = batch.n_targets
        told: dict[str, torch.Tensor | float] = {f"loss_{level + 1}": x for level, x in enumerate(told_S)}
        told = {"loss": told_S.mean(), **told}
        n_context = int((batch.short.items >= 0).sum()) + len(rows)
        flops = 3 * self._cost.forward(n_context, n_targets, n_context / len(rows))
        return Loss(total, n_targets, told, n_context + n_targets * self.model.n_levels, flops)

    def after_step(self, world: World) -> dict[str, float]:
        layers = self.model.experts()
        if not layers:
            return {}
        loads = world.sum_array(np.stack([layer.load.cpu().numpy() for layer in layers]))
        worst = 0.0
        for layer, load in zip(layers, loads, strict=True):
            worst = max(worst, layer.rebalance(torch.from_numpy(load)))
            layer.load.zero_()
        return {"load_max_over_mean": worst}

    @torch.inference_mode()
    def validate(self) -> dict[str, float] | None:
        if self._held is None:
            return None
        ranks = np.full(len(self._held.rows), -1, np.int64)
        for chosen in self._cutter.in_order(self._held.rows, _VALID_ROWS):
            near = None if self._held.near is None else (self._held.near[0][chosen], self._held.near[1][chosen])
            batch = self._cutter.batch(self._held.rows.take(chosen), near).to(self._device)
            beams = search(self.model, self.model.context(batch), self._trie, self._held.beam)
            wanted = torch.from_numpy(self._trie.id_of_item[self._held.targets[chosen]]).to(self._device)
            ranks[chosen] = metrics.rank_of(beams.ids.cpu().numpy(), wanted.cpu().numpy())
        told = metrics.summary(ranks, (10,))
        return {"score": told["ndcg@10"], **{f"id_{name}": value for name, value in told.items()}}

    def names(self, rows: Rows) -> str:
        keys = [str(self._cutter.histories.user_keys[user]) for user in rows.users[:3]]
        return f"users {', '.join(keys)}{' …' if len(rows) > 3 else ''}"


@dataclass(frozen=True)
class Cost:
    """Parameters that a token passes through: those of context tokens, those of code tokens, and of the heads."""

    context: int
    code: int
    heads: int
    width: int
    n_encoder: int
    n_decoder: int
    n_levels: int

    @classmethod
    def of(cls, model: OneRec) -> "Cost":
        def passed(module: nn.Module) -> int:
            n = 0
            for part in module.modules():
                if isinstance(part, Experts):
                    n += (part.up.numel() + part.down.numel()) * part.n_active // len(part.bias)
                elif isinstance(part, nn.Linear):
                    n += part.weight.numel()
            return n

        context = sum(passed(part) for part in (model.encoder, model.keys, model.values, *model.pathways.values()))
        heads = model.arch.width * sum(model.vocabulary.codes)
        arch = model.arch
        return cls(context, passed(model.decoder), heads, arch.width, len(model.encoder), arch.decoder_layers, model.n_levels)

    def forward(self, n_context: int, n_targets: int, per_row: float) -> float:
        """FLOPs of one pass forward over context and targets; per_row: context tokens a row, for attention."""
        products = self.context * n_context + self.code * n_targets * self.n_levels + self.heads * n_targets
        attention = self.n_encoder * n_context * per_row + self.n_decoder * n_targets * self.n_levels * per_row
        return 2.0 * products + 4.0 * self.width * attention
