"""OneRec's generative recommender: a user's history becomes context, and a decoder predicts the next item code by code.

Source: OneRec Technical Report (arXiv 2506.13695 v4) sections 2.2 and 2.3; the lazy decoder after OneRec-V2 (arXiv
2508.20900) section 3. Our choices where they are silent: codes of an item are summed, embeddings are shared by input and
output, the QFormer has residuals, everything is pre-normed. What the report does not have: rows whose targets share one
causal pass (`attention="causal"`), neighbours as further context and with a share of the probability, an item table beside
the codes, and scores of whole items, in which the latest items take part directly.

Not here: which rows to make (batching.py), beams (beam.py), files. Legend: B rows, T targets a row, M = B * T items, S levels,
C context tokens, P tokens of a pathway, F features, D width, K codes a level, H heads, X width of a head, N neighbours,
I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.onerec.model.batching import ALWAYS_VISIBLE, Batch, PathwayTokens
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.copy_logits import CopyHead, CopySources
from kvtools.onerec.model.cpu_training import Table, dropout, sum_of_rows
from kvtools.onerec.model.evidence import Evidence
from kvtools.onerec.model.item_scores import ItemScores
from kvtools.onerec.model.layers import ContextAttention, DecoderLayer, EncoderLayer, KVCache, QFormer, rms_norm, split_heads
from kvtools.onerec.model.moe import Experts
from kvtools.onerec.model.pathway import Pathway, dense
from kvtools.onerec.model.pointer import Pointer
from kvtools.onerec.model.recent import RecentItems
from kvtools.train.checkpointing import run_layer

_N_NEIGHBOUR_RANKS = 64


@dataclass(frozen=True)
class VocabularySizes:
    """How many of each there are: codes a level, items, categories of each item feature and of each user feature."""

    codes: tuple[int, ...]
    items: int
    features: dict[str, int]  # name → categories, 0 included, which means unknown
    static: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert all(n > 0 for n in self.codes), "every level has a code"


@dataclass(frozen=True)
class Context:
    """The decoder's input: each layer's keys and values (B, H, C, X), what each target may see, bool (B, T, C), and the
    neighbours of each target, as keys and values a layer and as sources to copy from."""

    keys: list[Tensor]
    values: list[Tensor]
    mask_BTC: Tensor
    target_kv: list[tuple[Tensor, Tensor, Tensor]] | None
    slots_BT: Tensor  # int64
    copy_sources: CopySources | None = None  # a row a target
    recent_MD: Tensor | None = None  # what the latest items of each target say of the next one

    def attentions(self) -> list[ContextAttention]:
        """The cross-attention of each layer."""
        own = self.target_kv
        layers = enumerate(zip(self.keys, self.values, strict=True))
        return [ContextAttention(k, v, self.mask_BTC, own[n] if own else None) for n, (k, v) in layers]


class OneRec(nn.Module):
    """The model. codes_IS: int (I, S), the IDs of the catalogue, each level below its number of codes."""

    codes_IS: Tensor

    def __init__(self, config: ModelConfig, vocabulary: VocabularySizes, codes_IS: Tensor) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.checkpointing = False  # whether pathways and layers are computed again for gradients: less memory, more work
        self.n_levels = len(vocabulary.codes)
        width, short = config.width, config.short
        self.register_buffer("codes_IS", codes_IS.long(), persistent=False)
        self.codes = nn.ModuleList(Table(n, width) for n in vocabulary.codes)
        if config.item_table:
            self.items = Table(vocabulary.items, width)
            nn.init.zeros_(self.items.weight)
        self.static = nn.ModuleList(Table(n, config.static_width) for n in vocabulary.static)
        self.static_empty = nn.Parameter(torch.zeros(config.static_width))
        self.static_dense = dense(max(1, len(vocabulary.static)) * config.static_width, width)
        names = [name for name, n in (("short", short), ("positive", config.positive), ("lifelong", config.lifelong)) if n]
        self.pathways = nn.ModuleDict({name: Pathway(config, vocabulary.features) for name in names})
        n_slots = {"short": 2 * short, "positive": config.positive + short, "lifelong": config.queries}
        self.slots = nn.ParameterDict({name: 0.02 * torch.randn(n_slots[name], width) for name in names})
        if config.lifelong:
            self.summary = QFormer(config)
        is_lazy = config.decoder == "lazy"
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(0 if is_lazy else config.encoder_layers))
        self.context_norm = rms_norm(width)
        # lazy: one set of keys for all layers, which are the values too; else a set a layer
        n_sets = 1 if is_lazy else config.decoder_layers
        self.keys = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(n_sets))
        self.values = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(0 if is_lazy else n_sets))
        if is_lazy:
            self.key_norm = rms_norm(width)
        if config.near:
            self.neighbours = CopyHead(width, vocabulary.items, vocabulary.codes)
        if config.near and config.near_tokens:
            self.near_dense = dense(width + 1, width)
            self.near_ranks = nn.Parameter(0.02 * torch.randn(_N_NEIGHBOUR_RANKS, width))
        if config.item_scores:
            n_scored = min(config.item_scores, vocabulary.items)
            self.item_scores = ItemScores(width, vocabulary.codes, n_scored)
            if config.recent:
                self.recent = RecentItems(width, 2 * short)
        self.begin = nn.Parameter(0.02 * torch.randn(width))
        self.levels = nn.Parameter(0.02 * torch.randn(self.n_levels, width))
        self.when = nn.Parameter(0.02 * torch.randn(2 * short + 1, width))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.head_norms = nn.ModuleList(rms_norm(width) for _ in vocabulary.codes)
        self._initialise()

    def _initialise(self) -> None:
        depth = (2 * (self.config.encoder_layers + self.config.decoder_layers)) ** -0.5
        for name, parameter in self.named_parameters():
            if (
                parameter.ndim == 2
                and name.endswith("weight")
                and not name.startswith(("codes", "items"))
                and "router" not in name
            ):
                last = name.endswith(("out.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * (depth if last else 1.0))
        for table in self.codes:
            # shared with the output, whose input has a mean square of 1: logits begin with a deviation of 1
            nn.init.normal_(cast("nn.Embedding", table).weight, std=self.config.width**-0.5)
        if self.config.item_scores and self.config.recent:
            nn.init.eye_(self.recent.turn.weight)
            nn.init.zeros_(self.item_scores.norm.weight)  # the decoder's part begins at nothing

    # ── context ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def item_vectors(self, items: Tensor) -> Tensor:
        """Items int64 (…,) -> (…, D): the sum of an item's code embeddings, and its own; padding counts as item 0."""
        safe = items.clamp(min=0)
        codes = self.codes_IS[safe]
        tables, indices = list(self.codes), list(codes.unbind(-1))
        return sum_of_rows([*tables, self.items], [*indices, safe]) if self.config.item_table else sum_of_rows(tables, indices)

    def context(self, batch: Batch) -> Context:
        """The context of a batch, computed once for all targets and beams of a row."""
        return self._context(batch)

    def _context(self, batch: Batch) -> Context:
        # no entry of a computation calls another: a training of a model in parts gathers weights at each
        z_BCD, position_BC, is_token_BC = self._tokens(batch)
        z_BCD = self._drop(z_BCD)
        mask_BCC = is_token_BC[:, None, :]
        if self.config.attention == "causal":
            mask_BCC = mask_BCC & (position_BC[:, None, :] <= position_BC[:, :, None])
        for layer in self.encoder:
            z_BCD = self._run(layer, z_BCD, mask_BCC[:, None], is_token_BC)
        mask_BTC = is_token_BC[:, None, :] & (position_BC[:, None, :] < batch.target_positions[:, :, None])
        # padding among the targets sees the static token
        mask_BTC = mask_BTC | (torch.arange(position_BC.shape[1], device=position_BC.device) == 0)
        keys, values = (
            self._for_all_layers([split_heads(x, self.config.heads) for x in part])
            for part in self._project(self.context_norm(z_BCD))
        )
        target_kv = sources = None
        if batch.neighbours is not None and self.config.near:
            target_kv = self._neighbour_kv(*batch.neighbours) if self.config.near_tokens else None
            sources = self._copy_sources(*batch.neighbours)
        return Context(keys, values, mask_BTC, target_kv, batch.target_slots, sources, self._recent(batch))

    def _recent(self, batch: Batch) -> Tensor | None:
        if not (self.config.item_scores and self.config.recent):
            return None
        short, rate = batch.short, self.config.dropout if self.training else 0.0
        vectors_BCD = self.item_vectors(short.items)
        return cast("Tensor", self.recent(vectors_BCD, short.positions, batch.target_positions, rate)).flatten(0, 1)

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of all pathways (B, C, D), their positions int64 (B, C), and which are no padding, bool (B, C)."""
        parts, positions = [self._static(batch)], [batch.static.new_full((len(batch.static), 1), ALWAYS_VISIBLE)]
        masks = [torch.ones_like(positions[0], dtype=torch.bool)]
        for name in self.pathways:
            tokens: PathwayTokens | None = getattr(batch, name)
            if tokens is None or not tokens.items.shape[1]:
                continue
            x_BPD = run_layer(self._pathway, name, tokens, is_checkpointed=self.checkpointing)
            position_BP, is_token_BP = tokens.positions, tokens.items >= 0
            if name == "lifelong":
                x_BPD = x_BPD + self.slots[name]
                is_token_BP = is_token_BP.any(1, keepdim=True).expand(-1, x_BPD.shape[1])
                position_BP = torch.full_like(is_token_BP, ALWAYS_VISIBLE, dtype=torch.long)
            else:
                x_BPD = x_BPD + self.slots[name][tokens.slots.clamp(min=0)]
            parts.append(x_BPD)
            positions.append(position_BP)
            masks.append(is_token_BP)
        return torch.cat(parts, 1), torch.cat(positions, 1), torch.cat(masks, 1)

    def _pathway(self, name: str, tokens: PathwayTokens) -> Tensor:
        """A pathway's tokens (B, P, D), those of the lifelong one summarised."""
        x_BPD: Tensor = self.pathways[name](self.item_vectors(tokens.items), tokens.features)
        return self.summary(x_BPD, tokens.items >= 0) if name == "lifelong" else x_BPD

    def _static(self, batch: Batch) -> Tensor:
        if not self.static:
            return cast("Tensor", self.static_dense(self.static_empty)).expand(len(batch.static), 1, -1)
        parts = [table(batch.static[:, column]) for column, table in enumerate(self.static)]
        return cast("Tensor", self.static_dense(torch.cat(parts, dim=-1))).unsqueeze(1)

    def _project(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if self.config.decoder == "lazy":
            keys = [self.key_norm(self.keys[0](z))]
            return keys, keys
        return [layer(z) for layer in self.keys], [layer(z) for layer in self.values]

    def _for_all_layers(self, sets: list[Tensor]) -> list[Tensor]:
        return sets * self.config.decoder_layers if len(sets) == 1 else sets

    def _neighbour_kv(self, items_BTN: Tensor, similarity_BTN: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Keys and values (B, T, H, N, X) a layer of each target's neighbours, and which there are, bool (B, T, N)."""
        rank_N = torch.arange(items_BTN.shape[2], device=items_BTN.device).clamp(max=_N_NEIGHBOUR_RANKS - 1)
        rank_ND = self.near_ranks[rank_N]
        x = self.item_vectors(items_BTN)
        x = torch.cat([x, similarity_BTN.unsqueeze(3).log1p().to(x.dtype)], dim=3)
        x = self.near_dense(x) + rank_ND
        x = self.context_norm(self._drop(x))
        keys, values = (
            self._for_all_layers([y.view(*y.shape[:3], self.config.heads, -1).transpose(2, 3) for y in part])
            for part in self._project(x)
        )
        return [(k, v, items_BTN >= 0) for k, v in zip(keys, values, strict=True)]

    def _copy_sources(self, items_BTN: Tensor, similarity_BTN: Tensor) -> CopySources:
        items_RN = items_BTN.flatten(0, 1)
        codes_RNS = self.codes_IS[items_RN.clamp(min=0)]
        dropout = self.config.dropout if self.training else 0.0
        return self.neighbours.sources(items_RN, similarity_BTN.flatten(0, 1), codes_RNS, dropout)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout) if self.training else x

    def _run(self, layer: nn.Module, *inputs: object) -> Any:
        """A layer of the encoder or decoder, checkpointed where the model is."""
        again = cast("EncoderLayer | DecoderLayer", layer).again
        return run_layer(layer, *inputs, is_checkpointed=self.checkpointing, again=again)

    # ── decoder ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def begin_token(self, context: Context) -> Tensor:
        """The token that begins every item, (M, 1, D): it holds how far into the row the target is."""
        begin = self.begin + self.levels[0] + self.when[context.slots_BT.clamp(max=len(self.when) - 1)]
        return begin.flatten(0, 1).unsqueeze(1)

    def code_token(self, level: int, codes_M: Tensor) -> Tensor:
        """The token (M, 1, D) of the codes of a level, int64 (M,): the decoder's input for the next level."""
        x: Tensor = self.codes[level](codes_M) + self.levels[level + 1]
        return x.unsqueeze(1)

    def decode(
        self,
        x_MPD: Tensor,
        attentions: Sequence[ContextAttention],
        caches: list[KVCache] | None = None,
        is_token_M: Tensor | None = None,
    ) -> tuple[Tensor, list[KVCache]]:
        """P new tokens through all layers: their states (M, P, D), not yet normed, and each layer's cache for the next tokens.

        is_token_M: bool, False for items that are padding; all True where None.
        """
        new_caches: list[KVCache] = []
        for number, layer in enumerate(self.decoder):
            x_MPD, cache = layer(x_MPD, attentions[number], caches[number] if caches else None, is_token_M)
            new_caches.append(cache)
        return x_MPD, new_caches

    def _decode_targets(self, x_MSD: Tensor, attentions: Sequence[ContextAttention], is_target_M: Tensor) -> Tensor:
        """As decode, all tokens of each of M targets at once, and nothing is cached."""
        for layer, attend in zip(self.decoder, attentions, strict=True):
            x_MSD, _ = self._run(layer, x_MSD, attend, None, is_target_M)
        return x_MSD

    def evidence(self, context: Context, first_MD: Tensor | None = None) -> Evidence:
        """The evidence at the empty prefix of each of M targets. first_MD: the decoder's first states; without them, as in
        training, items have no scores, and neighbours no share of the probability."""
        shares, sources = None, context.copy_sources
        if self.config.item_scores and first_MD is not None:
            catalogue = self.item_scores.catalogue(self.codes_IS)
            vectors_ND = self.item_vectors(catalogue.items_N)
            shares = self.item_scores.shares(catalogue, first_MD, vectors_ND, context.recent_MD)
        if sources is None:
            return Evidence(None, None, shares)
        share = 0.0 if first_MD is None else self.config.near_share
        pointer = Pointer.of(sources, share) if share else None
        return Evidence((self.neighbours, sources), sources.is_there_RN, shares, pointer)

    def logits(self, level: int, h_MD: Tensor, evidence: Evidence | None = None) -> Tensor:
        """(M, D) states to logits (M, K) of the codes of a level, float32. evidence: of the prefixes before; it then knows what
        these logits make of it."""
        table, normed_MD = cast("nn.Embedding", self.codes[level]), self.head_norms[level](h_MD)
        logits_MK = nf.linear(normed_MD, table.weight).float()
        added = None if evidence is None else evidence.logits(level, normed_MD)
        logits_MK = logits_MK if added is None else logits_MK + added
        return logits_MK if evidence is None else evidence.mixed(level, logits_MK)

    def loss(self, batch: Batch, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, summed over targets and averaged over levels, to be differentiated; and its sums a level,
        float32 (S,), without smoothing, to be logged. Source: the report's L_NTP, which sums over levels where we average, as
        V2 does."""
        context = self._context(batch)
        is_target = batch.targets.flatten() >= 0
        codes_MS = self.codes_IS[batch.targets.flatten().clamp(min=0)]
        tokens = [self.begin_token(context), *(self.code_token(n, codes_MS[:, n]) for n in range(self.n_levels - 1))]
        x_MSD = self._drop(torch.cat(tokens, dim=1))
        h_MSD = self._decode_targets(x_MSD, context.attentions(), is_target)
        codes_JS, evidence = codes_MS[is_target], self.evidence(context)
        recent_JD = None if context.recent_MD is None else context.recent_MD[is_target]
        shares = self._target_shares(h_MSD[:, 0][is_target], codes_JS, recent_JD)
        total, per_level = h_MSD.new_zeros((), dtype=torch.float32), []
        for level in range(self.n_levels):
            logits = self.logits(level, h_MSD[:, level], evidence)[is_target]
            if shares:
                logits = logits + shares[level]
            evidence = evidence.follow(level, codes_MS[:, level])
            plain = nf.cross_entropy(logits, codes_JS[:, level], reduction="sum")
            per_level.append(plain.detach())
            if smoothing and self.training:
                plain = nf.cross_entropy(logits, codes_JS[:, level], reduction="sum", label_smoothing=smoothing)
            total = total + plain / self.n_levels
        return total, torch.stack(per_level)

    def _target_shares(self, first_JD: Tensor, codes_JS: Tensor, recent_JD: Tensor | None) -> list[Tensor]:
        """What the items' scores add to each level's logits of targets, (J, K) a level; nothing where there are none."""
        if not self.config.item_scores:
            return []
        catalogue = self.item_scores.catalogue(self.codes_IS)
        with torch.autocast(first_JD.device.type, enabled=False):
            vectors_ND = self.item_vectors(catalogue.items_N)
            return self.item_scores.of_targets(catalogue, first_JD.to(vectors_ND.dtype), vectors_ND, codes_JS, recent_JD)

    def expert_layers(self) -> list[Experts]:
        """All layers of experts, encoder first."""
        return [module for module in self.modules() if isinstance(module, Experts)]
