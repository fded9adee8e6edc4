"""Next-item training of a generator: the task that the shared loop runs.

FLOPs are those of matrix products forward, and twice as many backward: 2 a parameter and token, over the parameters that a
token passes through (only the active experts), and those of attention, which masks what it has multiplied. Not counted are
padding and all that goes element by element, attention among the codes of one item included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from kvtools.onerec.model.batching import Batch, Batcher, HistoryRows
from kvtools.onerec.model.beam import search
from kvtools.onerec.model.layers import N_QFORMER_BLOCKS
from kvtools.onerec.model.moe import Experts
from kvtools.onerec.model.onerec import OneRec
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import metrics
from kvtools.train.loop import Loss
from kvtools.world import World

_VALID_ROWS = 256


@dataclass(frozen=True)
class Held:
    """What validation looks at: a row each user, the item that came, and neighbours where the architecture has them."""

    batcher: Batcher
    rows: HistoryRows
    targets: np.ndarray  # int32 (R,)
    near: tuple[np.ndarray, np.ndarray] | None = None
    beam: int = 20


class Pretraining:
    """A `learn.loop.Task` over rows of histories."""

    def __init__(
        self,
        model: OneRec,
        batcher: Batcher,
        rows: HistoryRows,
        *,
        held: Held | None,
        n_targets: int,
        smoothing: float,
        device: str,
    ) -> None:
        self.model, self._batcher, self._rows, self._held = model, batcher, rows, held
        self._n_targets, self._smoothing, self._device = n_targets, smoothing, device
        self._trie = Trie(model.codes_IS.cpu().numpy()).to(device)
        self._cost = Cost.of(model)

    def epoch(self, number: int) -> Iterator[HistoryRows]:
        return self._batcher.epoch(self._rows, self._n_targets, "epoch", number)

    def n_steps(self) -> int:
        """Steps an epoch; that of the first stands for all, which differ by a few."""
        return sum(1 for _ in self.epoch(0))

    def n_tokens(self) -> int:
        """Tokens an epoch: items of contexts, and codes of targets."""
        n_targets = int((self._rows.ends - self._rows.begins).sum())
        return n_targets * (1 + self.model.n_levels) + len(self._rows)

    def microbatches(self, rows: HistoryRows, n: int) -> Sequence[HistoryRows]:
        return [rows.take(np.arange(i, len(rows), n)) for i in range(min(n, len(rows)))]

    def loss(self, rows: HistoryRows) -> Loss:
        batch = self._batcher.batch(rows)
        n_targets, flops = batch.n_targets, 3 * self._cost.forward(batch)
        n_context = int((batch.short.items >= 0).sum()) + len(rows)
        total, told_S = self.model.loss(batch.to(self._device), smoothing=self._smoothing)
        told: dict[str, torch.Tensor | float] = {f"loss_{level + 1}": x for level, x in enumerate(told_S)}
        told = {"loss": told_S.mean(), **told}
        return Loss(total, n_targets, told, n_context + n_targets * self.model.n_levels, flops)

    def after_step(self, world: World) -> dict[str, float]:
        layers = self.model.expert_layers()
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
        for chosen in self._held.batcher.by_length(self._held.rows, _VALID_ROWS):
            near = None if self._held.near is None else (self._held.near[0][chosen], self._held.near[1][chosen])
            batch = self._held.batcher.batch(self._held.rows.take(chosen), near).to(self._device)
            beams = search(self.model, self.model.context(batch), self._trie, self._held.beam)
            wanted = torch.from_numpy(self._trie.id_of_item[self._held.targets[chosen]]).to(self._device)
            ranks[chosen] = metrics.rank_of(beams.ids.cpu().numpy(), wanted.cpu().numpy())
        told = metrics.summary(ranks, (10,))
        return {"score": told["ndcg@10"], **{f"id_{name}": value for name, value in told.items()}}

    def describe(self, rows: HistoryRows) -> str:
        keys = [str(self._batcher.histories.user_keys[user]) for user in rows.users[:3]]
        return f"users {', '.join(keys)}{' …' if len(rows) > 3 else ''}"


@dataclass(frozen=True)
class Cost:
    """What a pass costs: parameters that one of each goes through, of experts the active ones, and what attention spans."""

    static: int  # a row's users
    pathways: dict[str, int]  # an item of a pathway
    summary: int  # a row's summary of its lifelong items
    context: int  # a token of the context: encoder, keys and values
    code: int
    target: int  # heads, and what asks for evidence
    near: int  # a neighbour that is a token
    width: int
    n_encoder: int
    n_decoder: int
    n_levels: int
    n_queries: int
    evidence_width: int

    @classmethod
    def of(cls, model: OneRec) -> "Cost":
        config, pathways = model.config, {name: _passed(part) for name, part in model.pathways.items()}
        projections = _passed(model.keys) + _passed(model.values)
        summary = 0
        if config.lifelong:
            blocks = [cast("nn.ModuleDict", block) for block in model.summary.blocks]
            seen = sum(_passed(block[name]) for block in blocks for name in ("key", "value"))
            pathways["lifelong"] += seen
            summary = config.queries * (_passed(model.summary) - seen)
        asked = _passed(model.neighbours.queries) + _passed(model.neighbours.trust) if config.near else 0
        return cls(
            static=_passed(model.static_dense),
            pathways=pathways,
            summary=summary,
            context=_passed(model.encoder) + projections,
            code=_passed(model.decoder),
            target=config.width * sum(model.vocabulary.codes) + asked,
            near=_passed(model.near_dense) + projections if config.near and config.near_tokens else 0,
            width=config.width,
            n_encoder=len(model.encoder),
            n_decoder=config.decoder_layers,
            n_levels=model.n_levels,
            n_queries=config.queries,
            evidence_width=model.neighbours.items.embedding_dim if config.near else 0,
        )

    def forward(self, batch: Batch) -> float:
        """FLOPs of one pass forward; a step, with its pass backward, takes three times as many."""
        found = {name: getattr(batch, name) for name in self.pathways}
        items = {name: (tokens.items >= 0).sum(1) for name, tokens in found.items() if tokens is not None}
        n_rows, targets_B = len(batch.static), (batch.targets >= 0).sum(1)
        n_targets, codes_B = int(targets_B.sum()), targets_B * self.n_levels
        n_near = 0 if batch.neighbours is None else int(((batch.neighbours[0] >= 0).sum(2) * (batch.targets >= 0)).sum())
        lifelong_B = items.get("lifelong", torch.zeros_like(targets_B))
        is_summed_B = lifelong_B > 0
        context_B = 1 + is_summed_B * self.n_queries + sum(n_B for name, n_B in items.items() if name != "lifelong")
        products = self.static * (n_rows if batch.static.shape[1] else 1) + self.summary * int(is_summed_B.sum())
        products += sum(self.pathways[name] * int(n_B.sum()) for name, n_B in items.items())
        products += self.context * int(context_B.sum()) + self.code * n_targets * self.n_levels
        products += self.target * n_targets + (self.near + self.evidence_width * self.n_levels) * n_near
        pairs = self.n_encoder * int((context_B**2).sum()) + self.n_decoder * int((codes_B * context_B).sum())
        pairs += N_QFORMER_BLOCKS * self.n_queries * int(lifelong_B.sum())
        pairs += self.n_decoder * self.n_levels * n_near if self.near else 0
        return 2.0 * products + 4.0 * self.width * pairs


def _passed(module: nn.Module) -> int:
    """Parameters of matrices that a token goes through."""
    n = 0
    for part in module.modules():
        if isinstance(part, Experts):
            n += (part.up.numel() + part.down.numel()) * part.n_active // len(part.bias)
        elif isinstance(part, nn.Linear):
            n += part.weight.numel()
    return n
