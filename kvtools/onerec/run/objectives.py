"""Next-item training: the task that the shared loop runs, and what a step costs.

FLOPs are those of matrix products forward, and twice as many backward: 2 a parameter and token, over the parameters that a
token passes through (only the active experts), and those of attention, including what its mask then drops. Not counted are
padding and all element-wise work, attention among the codes of one item included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import nn

from kvtools.onerec.model.batching import Batch, Batcher, HistoryRows, Neighbours
from kvtools.onerec.model.beam import n_users_at_once, search
from kvtools.onerec.model.layers import N_QFORMER_BLOCKS
from kvtools.onerec.model.moe import Experts
from kvtools.onerec.model.onerec import OneRec
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import metrics
from kvtools.onerec.recommend.query import Query, seen_ids
from kvtools.train.loop import Loss
from kvtools.train.sharded import Cut
from kvtools.world import World

_VALID_ROWS = 256
_SHARES = tuple(n / 10 for n in range(9))  # of the probability, straight to neighbours: what is tried
_GAINS = (1.0, 0.8, 1.25)  # factors of the present gain of the items' scores that a validation tries


@dataclass(frozen=True)
class ValidationSet:
    """A row per user, the item that came next, and neighbours where the model has them."""

    batcher: Batcher
    rows: HistoryRows
    targets: np.ndarray  # int32 (R,)
    trie: Trie
    neighbours: Neighbours | None = None
    beam: int = 20

    @property
    def n_repeats(self) -> int:
        """How many of the targets their user has had before; a search that leaves out seen items never finds them."""
        offsets, items = Query(self.rows.users, self.rows.begins).past(self.batcher.histories)
        row = np.repeat(np.arange(len(self.rows)), np.diff(offsets))
        return len(np.unique(row[items == self.targets[row]]))

    def seen_ids(self, rows: HistoryRows) -> np.ndarray:
        """The IDs all of whose items the user of each of these rows has had by then, bool (B, U)."""
        items = Query(rows.users, rows.begins).past(self.batcher.histories)[1]
        return seen_ids(np.repeat(np.arange(len(rows)), rows.begins), items, len(rows), self.trie)


class NextItemTask:
    """A `train.loop.Task` over rows of histories. n_targets: size of a step, its rows times the longest. cut: of the model."""

    def __init__(
        self, model: OneRec, batcher: Batcher, rows: HistoryRows, *, validation: ValidationSet | None, n_targets: int,
        smoothing: float, device: str,
    ) -> None:  # fmt: skip
        self.model, self._batcher, self._rows, self._validation = model, batcher, rows, validation
        self._n_targets, self._smoothing, self._device = n_targets, smoothing, device
        self._cost = ForwardCost(model)
        self.cut = Cut([*model.encoder, *model.decoder], ("loss", "context"))

    def epoch(self, number: int) -> Iterator[HistoryRows]:
        """The rows of each step of an epoch."""
        return self._batcher.epoch(self._rows, self._n_targets, "epoch", number)

    def n_steps(self) -> int:
        """Steps an epoch, those of the first; the others differ by a few."""
        return sum(1 for _ in self.epoch(0))

    def n_tokens(self) -> int:
        """Tokens an epoch: items of contexts, and codes of targets."""
        n_targets = int((self._rows.ends - self._rows.begins).sum())
        return n_targets * (1 + self.model.n_levels) + len(self._rows)

    def microbatches(self, rows: HistoryRows, n: int, _own: slice) -> Sequence[HistoryRows]:
        """The rows in at most n parts, every n-th row in one."""
        return [rows.take(np.arange(i, len(rows), n)) for i in range(min(n, len(rows)))]

    def loss(self, rows: HistoryRows) -> Loss:
        """The loss of rows, summed over targets."""
        batch = self._batcher.batch(rows)
        n_targets, flops = batch.n_targets, 3 * self._cost.flops(batch)
        n_context = int((batch.short.items >= 0).sum()) + len(rows)
        total, per_level_S = self.model.loss(batch.to(self._device), smoothing=self._smoothing)
        figures: dict[str, torch.Tensor | float] = {"loss": per_level_S.mean()}
        figures |= {f"loss_{level}": x for level, x in enumerate(per_level_S, start=1)}
        return Loss(total, n_targets, figures, n_context + n_targets * self.model.n_levels, flops)

    def after_step(self, world: World) -> dict[str, float]:
        """Balance the experts by their load on all ranks; the load of the busiest, to be logged."""
        layers = self.model.expert_layers()
        if not layers:
            return {}
        loads = world.sum_array(np.stack([layer.load.cpu().numpy() for layer in layers]))
        worst = 0.0
        for layer, load in zip(layers, loads, strict=True):
            worst = max(worst, layer.rebalance(torch.from_numpy(load)))
            layer.load.zero_()
        return {"load_max_over_mean": worst}

    def validate(self) -> dict[str, float] | None:
        """HR@10 and NDCG@10 of the next item's ID, by beam search; seen items are left out, as recommendations leave them out:
        the decoder spends much of its probability on them. Of a few gains of the items' scores about the present one the best
        is kept."""
        if self._validation is None:
            return None
        if not self.model.config.item_scores:
            return self._figures(self._validation)
        gain, tried = self.model.item_scores.gain, []
        for chosen in [float(gain) * factor for factor in _GAINS]:
            gain.fill_(chosen)
            tried.append((self._figures(self._validation), chosen))
        figures, chosen = max(tried, key=lambda pair: pair[0]["score"])
        gain.fill_(chosen)
        return figures | {"gain": chosen}

    def choose_near_share(self) -> float:
        """The share of the probability for neighbours that is best on the validation set, the least of equals; 0 without it."""
        model, held = self.model.eval(), self._validation
        if held is None or not model.config.near:
            return 0.0
        best, config = (-1.0, 0.0), model.config
        for share in _SHARES:
            model.config = replace(config, near_share=share)
            best = max(best, (self._figures(held)["score"], share), key=lambda pair: pair[0])
        model.config = config
        return best[1]

    @torch.inference_mode()
    def _figures(self, held: ValidationSet) -> dict[str, float]:
        trie = held.trie.to(self._device)
        ranks = np.full(len(held.rows), -1, np.int64)
        at_once = min(_VALID_ROWS, n_users_at_once(trie, max(self.model.vocabulary.codes), held.beam))
        for rows in held.batcher.by_length(held.rows, at_once):
            neighbours = held.neighbours and (held.neighbours[0][rows], held.neighbours[1][rows])
            asked = held.rows.take(rows)
            barred_BU = torch.from_numpy(held.seen_ids(asked)).to(self._device)
            context = self.model.context(held.batcher.batch(asked, neighbours).to(self._device))
            beams = search(self.model, context, trie, held.beam, barred_BU=barred_BU)
            ranks[rows] = metrics.rank_of(beams.ids.cpu().numpy(), trie.id_of_item[held.targets[rows]])
        figures = metrics.summary(ranks, (10,))
        return {"score": figures["ndcg@10"], **{f"id_{name}": value for name, value in figures.items()}}

    def describe(self, rows: HistoryRows) -> str:
        """The first users of the rows, for a fault's message."""
        keys = [str(self._batcher.histories.user_keys[user]) for user in rows.users[:3]]
        return f"users {', '.join(keys)}{' …' if len(rows) > 3 else ''}"


class ForwardCost:
    """What a forward pass costs: the parameters that each kind of token passes through, of experts the active ones."""

    def __init__(self, model: OneRec) -> None:
        self._config, self._n_levels, self._n_encoder = model.config, model.n_levels, len(model.encoder)
        self.pathways = {name: _active_parameters(part) for name, part in model.pathways.items()}  # per item
        self.summary = 0  # per row with lifelong items
        if model.config.lifelong:
            blocks = [cast("nn.ModuleDict", block) for block in model.summary.blocks]
            per_item = sum(_active_parameters(block[name]) for block in blocks for name in ("key", "value"))
            self.pathways["lifelong"] += per_item
            self.summary = model.config.queries * (_active_parameters(model.summary) - per_item)
        projections = _active_parameters(model.keys) + _active_parameters(model.values)
        self.static = _active_parameters(model.static_dense)  # per row
        self.context = _active_parameters(model.encoder) + projections  # per token of the context
        self.code = _active_parameters(model.decoder)
        self.target = model.config.width * sum(model.vocabulary.codes)
        if model.config.item_scores:
            self.target += model.config.width * len(model.item_scores.scored)
            self.target += _active_parameters(model.recent) if model.config.recent else 0
        self.neighbour = self.copied = 0  # per neighbour as a token, and as a source to copy from at one level
        if model.config.near:
            copying = model.neighbours
            self.target += _active_parameters(copying.queries) + _active_parameters(copying.trust)
            self.copied = copying.items.embedding_dim
        if model.config.near_tokens and model.config.near:
            self.neighbour = _active_parameters(model.near_dense) + projections

    def flops(self, batch: Batch) -> float:
        """FLOPs of one forward pass; a step, with its backward pass, takes three times as many."""
        config, pathways = self._config, {name: getattr(batch, name) for name in self.pathways}
        items = {name: (tokens.items >= 0).sum(1) for name, tokens in pathways.items() if tokens is not None}
        n_rows, targets_B = len(batch.static), (batch.targets >= 0).sum(1)
        n_targets, codes_B = int(targets_B.sum()), targets_B * self._n_levels
        n_neighbours = 0
        if batch.neighbours is not None:
            n_neighbours = int(((batch.neighbours[0] >= 0).sum(2) * (batch.targets >= 0)).sum())
        lifelong_B = items.get("lifelong", torch.zeros_like(targets_B))
        has_summary_B = lifelong_B > 0
        context_B = 1 + has_summary_B * config.queries + sum(n_B for name, n_B in items.items() if name != "lifelong")
        products = self.static * (n_rows if batch.static.shape[1] else 1) + self.summary * int(has_summary_B.sum())
        products += sum(self.pathways[name] * int(n_B.sum()) for name, n_B in items.items())
        products += self.context * int(context_B.sum()) + self.code * n_targets * self._n_levels
        products += self.target * n_targets + (self.neighbour + self.copied * self._n_levels) * n_neighbours
        if config.recent and config.item_scores:
            products += config.width * int((targets_B * items["short"]).sum())
        pairs = self._n_encoder * int((context_B**2).sum()) + config.decoder_layers * int((codes_B * context_B).sum())
        pairs += N_QFORMER_BLOCKS * config.queries * int(lifelong_B.sum())
        pairs += config.decoder_layers * self._n_levels * n_neighbours if self.neighbour else 0
        return 2.0 * products + 4.0 * config.width * pairs

    def path_flops(self, n_paths: int) -> float:
        """FLOPs of a forward pass of so many IDs more, on contexts that are there; attention is left out."""
        return 2.0 * n_paths * (self.code * self._n_levels + self.target)


def _active_parameters(module: nn.Module) -> int:
    """Parameters of matrices that a token passes through."""
    n = 0
    for part in module.modules():
        if isinstance(part, Experts):
            n += (part.up.numel() + part.down.numel()) * part.n_active // len(part.bias)
        elif isinstance(part, nn.Linear):
            n += part.weight.numel()
    return n
