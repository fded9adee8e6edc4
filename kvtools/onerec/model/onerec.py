"""OneRec's generator: what a user did becomes context, and a decoder names the next item code by code.

Source: OneRec Technical Report (arXiv 2506.13695 v4) sections 2.2 and 2.3; the lazy decoder after OneRec-V2 (arXiv
2508.20900) section 3. Our choices where they are silent: codes of an item are summed, embeddings are shared by input and
output, the QFormer has residuals, everything is pre-normed. What the report does not have: rows whose targets share one
causal pass (`attention="causal"`), neighbours as further context, and an item table beside the codes.

Not here: which rows to make (rows.py), beams (beam.py), files. Legend: B rows, T targets a row, S levels, C context
tokens, D width, K codes a level, H heads, X width of a head, N neighbours, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.onerec.model.batch import ALWAYS, Batch, Tokens
from kvtools.onerec.model.config import Architecture
from kvtools.onerec.model.evidence import Evidence, Neighbours
from kvtools.onerec.model.layers import Attend, DecoderLayer, EncoderLayer, Past, attention, dense, heads_of, norm
from kvtools.onerec.model.moe import Experts

N_BLOCKS = 2  # of the QFormer: the report's
_N_NEAR_RANKS = 64


@dataclass(frozen=True)
class Vocabulary:
    """How many of each there are: codes a level, items, categories of each item feature and of each user feature."""

    codes: tuple[int, ...]
    items: int
    features: dict[str, int]  # name → categories, 0 included, which means unknown
    static: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert all(n > 0 for n in self.codes), "every level has a code"


@dataclass(frozen=True)
class Context:
    """What a decoder looks at: a layer's keys and values (B, H, C, X), who may see what, and own keys a target."""

    keys: list[Tensor]
    values: list[Tensor]
    mask_BTC: Tensor
    own: list[tuple[Tensor, Tensor, Tensor]] | None
    slots_BT: Tensor
    evidence: Evidence | None = None  # a row a target

    def attend(self, layer: int) -> Attend:
        return Attend(self.keys[layer], self.values[layer], self.mask_BTC, self.own[layer] if self.own else None)


class Pathway(nn.Module):
    """Items with their features to tokens: Dense(LeakyReLU(Dense(concat)))."""

    def __init__(self, arch: Architecture, vocabulary: Vocabulary) -> None:
        super().__init__()
        widths = {name: arch.author_width if name == "author" else arch.feature_width for name in vocabulary.features}
        self.features = nn.ModuleList(nn.Embedding(n, widths[name]) for name, n in vocabulary.features.items())
        for table in self.features:
            nn.init.normal_(cast("nn.Embedding", table).weight, std=0.02)
        self.dense = nn.Sequential(
            nn.Linear(arch.width + sum(widths.values()), arch.width), nn.LeakyReLU(), nn.Linear(arch.width, arch.width)
        )

    def forward(self, item_BPD: Tensor, features_BPF: Tensor) -> Tensor:
        parts = [item_BPD, *(table(features_BPF[..., f]) for f, table in enumerate(self.features))]
        out: Tensor = self.dense(torch.cat(parts, dim=-1))
        return out


class Summary(nn.Module):
    """The lifelong pathway's QFormer: learnable queries look at the tokens twice. (B, P, D) -> (B, Q, D)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.n_heads = arch.heads
        self.queries = nn.Parameter(0.02 * torch.randn(arch.queries, arch.width))
        self.blocks = nn.ModuleList()
        for _ in range(N_BLOCKS):
            names = ("query", "key", "value", "out")
            block = nn.ModuleDict({name: nn.Linear(arch.width, arch.width, bias=False) for name in names})
            block["query_norm"], block["norm"] = norm(arch.width), norm(arch.width)
            block["feed"] = dense(arch.width, arch.hidden)
            self.blocks.append(block)

    def forward(self, x_BPD: Tensor, is_token_BP: Tensor) -> Tensor:
        q_BQD = self.queries.expand(len(x_BPD), -1, -1)
        # a row without tokens looks at its padding, so that no softmax is empty; its summary is masked where it is used
        mask = (is_token_BP | ~is_token_BP.any(1, keepdim=True))[:, None, None, :]
        for module in self.blocks:
            block = cast("nn.ModuleDict", module)
            q = heads_of(block["query"](block["query_norm"](q_BQD)), self.n_heads)
            k, v = heads_of(block["key"](x_BPD), self.n_heads), heads_of(block["value"](x_BPD), self.n_heads)
            seen = attention(q, k, v, mask).transpose(1, 2).flatten(2)
            q_BQD = q_BQD + block["out"](seen)
            q_BQD = q_BQD + block["feed"](block["norm"](q_BQD))
        return q_BQD


class OneRec(nn.Module):
    """The generator. codes_IS: int (I, S), the IDs of the catalogue, each level below its number of codes."""

    codes_IS: Tensor

    def __init__(self, arch: Architecture, vocabulary: Vocabulary, codes_IS: Tensor) -> None:
        super().__init__()
        self.arch, self.vocabulary = arch, vocabulary
        self.n_levels = len(vocabulary.codes)
        self.register_buffer("codes_IS", codes_IS.long(), persistent=False)
        self.codes = nn.ModuleList(nn.Embedding(n, arch.width) for n in vocabulary.codes)
        if arch.item_table:
            self.items = nn.Embedding(vocabulary.items, arch.width)
            nn.init.zeros_(self.items.weight)
        self.static = nn.ModuleList(nn.Embedding(n, arch.static_width) for n in vocabulary.static)
        n_static = max(1, len(vocabulary.static)) * arch.static_width
        self.static_empty = nn.Parameter(torch.zeros(arch.static_width))
        self.static_dense = nn.Sequential(nn.Linear(n_static, arch.width), nn.LeakyReLU(), nn.Linear(arch.width, arch.width))
        names = [name for name, n in (("short", arch.short), ("positive", arch.positive), ("lifelong", arch.lifelong)) if n]
        self.pathways = nn.ModuleDict({name: Pathway(arch, vocabulary) for name in names})
        n_slots = {"short": 2 * arch.short, "positive": arch.positive + arch.short, "lifelong": arch.queries}
        self.slots = nn.ParameterDict({name: 0.02 * torch.randn(n_slots[name], arch.width) for name in names})
        if arch.lifelong:
            self.summary = Summary(arch)
        is_lazy = arch.decoder == "lazy"
        self.encoder = nn.ModuleList(EncoderLayer(arch) for _ in range(0 if is_lazy else arch.encoder_layers))
        self.context_norm = norm(arch.width)
        # lazy: one set of keys for all layers, which are the values too; else a set a layer
        n_sets = 1 if is_lazy else arch.decoder_layers
        self.keys = nn.ModuleList(nn.Linear(arch.width, arch.width, bias=False) for _ in range(n_sets))
        self.values = nn.ModuleList(nn.Linear(arch.width, arch.width, bias=False) for _ in range(0 if is_lazy else n_sets))
        if is_lazy:
            self.key_norm = norm(arch.width)
        if arch.near:
            self.neighbours = Neighbours(arch.width, vocabulary.items, vocabulary.codes)
        if arch.near and arch.near_tokens:
            self.near_dense = nn.Sequential(
                nn.Linear(arch.width + 1, arch.width), nn.LeakyReLU(), nn.Linear(arch.width, arch.width)
            )
            self.near_ranks = nn.Parameter(0.02 * torch.randn(_N_NEAR_RANKS, arch.width))
        self.begin = nn.Parameter(0.02 * torch.randn(arch.width))
        self.levels = nn.Parameter(0.02 * torch.randn(self.n_levels, arch.width))
        self.when = nn.Parameter(0.02 * torch.randn(2 * arch.short + 1, arch.width))
        self.decoder = nn.ModuleList(DecoderLayer(arch) for _ in range(arch.decoder_layers))
        self.head_norms = nn.ModuleList(norm(arch.width) for _ in vocabulary.codes)
        self._initialise()

    def _initialise(self) -> None:
        depth = (2 * (self.arch.encoder_layers + self.arch.decoder_layers)) ** -0.5
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
            nn.init.normal_(cast("nn.Embedding", table).weight, std=self.arch.width**-0.5)

    # ── context ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def item_vectors(self, items: Tensor) -> Tensor:
        """(…,) item numbers -> (…, D): the sum of an item's code embeddings, and its own; padding counts as item 0."""
        safe = items.clamp(min=0)
        codes = self.codes_IS[safe]
        vectors = cast("Tensor", sum(table(codes[..., level]) for level, table in enumerate(self.codes)))
        return vectors + self.items(safe) if self.arch.item_table else vectors

    def context(self, batch: Batch) -> Context:
        """Everything the decoder will look at, once for all targets and beams of a row."""
        parts, places = [self._static(batch)], [batch.static.new_full((len(batch.static), 1), ALWAYS)]
        is_token = [torch.ones_like(places[0], dtype=torch.bool)]
        for name in self.pathways:
            tokens: Tokens | None = getattr(batch, name)
            if tokens is None or not tokens.items.shape[1]:
                continue
            x_BPD = self.pathways[name](self.item_vectors(tokens.items), tokens.features)
            is_there = tokens.items >= 0
            if name == "lifelong":
                x_BPD = self.summary(x_BPD, is_there) + self.slots[name]
                is_there = is_there.any(1, keepdim=True).expand(-1, x_BPD.shape[1])
                place = torch.full_like(is_there, ALWAYS, dtype=torch.long)
            else:
                x_BPD = x_BPD + self.slots[name][tokens.slots.clamp(min=0)]
                place = tokens.places
            parts.append(x_BPD)
            places.append(place)
            is_token.append(is_there)
        z_BCD, place_BC, there_BC = torch.cat(parts, 1), torch.cat(places, 1), torch.cat(is_token, 1)
        z_BCD = nf.dropout(z_BCD, self.arch.dropout, self.training)
        mask_BCC = there_BC[:, None, :]
        if self.arch.attention == "causal":
            mask_BCC = mask_BCC & (place_BC[:, None, :] <= place_BC[:, :, None])
        for layer in self.encoder:
            z_BCD = layer(z_BCD, mask_BCC[:, None], there_BC)
        mask_BTC = there_BC[:, None, :] & (place_BC[:, None, :] < batch.target_places[:, :, None])
        mask_BTC = mask_BTC | (torch.arange(place_BC.shape[1], device=place_BC.device) == 0)  # padding sees the static token
        keys, values = self._project(self.context_norm(z_BCD))
        n_layers = self.arch.decoder_layers
        spread = [heads_of(x, self.arch.heads) for x in keys], [heads_of(x, self.arch.heads) for x in values]
        own = evidence = None
        if batch.near is not None and self.arch.near:
            own = self._own(*batch.near) if self.arch.near_tokens else None
            evidence = self._evidence(*batch.near)
        lists = [x * n_layers if len(x) == 1 else x for x in spread]
        return Context(lists[0], lists[1], mask_BTC, own, batch.target_slots, evidence)

    def _static(self, batch: Batch) -> Tensor:
        if not self.static:
            return cast("Tensor", self.static_dense(self.static_empty)).expand(len(batch.static), 1, -1)
        parts = [table(batch.static[:, column]) for column, table in enumerate(self.static)]
        return cast("Tensor", self.static_dense(torch.cat(parts, dim=-1))).unsqueeze(1)

    def _project(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if self.arch.decoder == "lazy":
            keys = [self.key_norm(self.keys[0](z))]
            return keys, keys
        return [layer(z) for layer in self.keys], [layer(z) for layer in self.values]

    def _own(self, items_BTN: Tensor, alike_BTN: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Keys and values (B, T, H, N, X) a layer of each target's own neighbours, and which there are."""
        rank_ND = self.near_ranks[torch.arange(items_BTN.shape[2], device=items_BTN.device).clamp(max=_N_NEAR_RANKS - 1)]
        x = self.item_vectors(items_BTN)
        x = torch.cat([x, alike_BTN.unsqueeze(3).log1p().to(x.dtype)], dim=3)
        x = self.near_dense(x) + rank_ND
        keys, values = self._project(self.context_norm(nf.dropout(x, self.arch.dropout, self.training)))
        mask = items_BTN >= 0

        def own_heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:3], self.arch.heads, -1).transpose(2, 3)

        made = [(own_heads(k), own_heads(v), mask) for k, v in zip(keys, values, strict=True)]
        return made * self.arch.decoder_layers if len(made) == 1 else made

    def _evidence(self, items_BTN: Tensor, alike_BTN: Tensor) -> Evidence:
        items_RN = items_BTN.flatten(0, 1)
        codes_RNS = self.codes_IS[items_RN.clamp(min=0)]
        dropout = self.arch.dropout if self.training else 0.0
        return self.neighbours.evidence(items_RN, alike_BTN.flatten(0, 1), codes_RNS, dropout)

    # ── decoder ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def first(self, context: Context) -> Tensor:
        """The token that begins every item, (B * T, 1, D): it says how far into the row the target is."""
        begin = self.begin + self.levels[0] + self.when[context.slots_BT.clamp(max=len(self.when) - 1)]
        return begin.flatten(0, 1).unsqueeze(1)

    def after(self, level: int, codes_M: Tensor) -> Tensor:
        """The token (M, 1, D) that follows code `codes_M` of a level."""
        x: Tensor = self.codes[level](codes_M) + self.levels[level + 1]
        return x.unsqueeze(1)

    def decode(
        self, x_MPD: Tensor, attends: Sequence[Attend], past: list[Past] | None = None, there_M: Tensor | None = None
    ) -> tuple[Tensor, list[Past]]:
        """New tokens through all layers; returns their states, not yet normed, and what to keep for the next ones. there_M:
        bool, which items are not padding; all where None."""
        kept: list[Past] = []
        for number, layer in enumerate(self.decoder):
            x_MPD, after = layer(x_MPD, attends[number], past[number] if past else None, there_M)
            kept.append(after)
        return x_MPD, kept

    def logits(self, level: int, h_MD: Tensor, evidence: Evidence | None = None, agree_MN: Tensor | None = None) -> Tensor:
        """(M, D) states to (M, K) scores of the codes of a level, float32. agree_MN: which neighbours go with the prefix."""
        table, normed_MD = cast("nn.Embedding", self.codes[level]), self.head_norms[level](h_MD)
        logits_MK = nf.linear(normed_MD, table.weight).float()
        if evidence is None or agree_MN is None:
            return logits_MK
        return logits_MK + self.neighbours.added(evidence, level, normed_MD, agree_MN)

    def attends(self, context: Context) -> list[Attend]:
        return [context.attend(number) for number in range(self.arch.decoder_layers)]

    def loss(self, batch: Batch, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over targets and averaged over levels, to be differentiated; and (S,) sums a level, without
        smoothing, to be told. Source: the report's L_NTP, which sums over levels where we average, as V2 does."""
        context = self.context(batch)
        is_target = batch.targets.flatten() >= 0
        codes_MS = self.codes_IS[batch.targets.flatten().clamp(min=0)]
        tokens = [self.first(context), *(self.after(level, codes_MS[:, level]) for level in range(self.n_levels - 1))]
        x_MSD = nf.dropout(torch.cat(tokens, dim=1), self.arch.dropout, self.training)
        h_MSD, _ = self.decode(x_MSD, self.attends(context), there_M=is_target)
        codes_JS, evidence = codes_MS[is_target], context.evidence
        agree_MN = evidence.start() if evidence else None
        total, told = h_MSD.new_zeros((), dtype=torch.float32), []
        for level in range(self.n_levels):
            logits = self.logits(level, h_MSD[:, level], evidence, agree_MN)[is_target]
            if evidence is not None and agree_MN is not None:
                agree_MN = evidence.follow(level, agree_MN, codes_MS[:, level])
            plain = nf.cross_entropy(logits, codes_JS[:, level], reduction="sum")
            told.append(plain.detach())
            if smoothing and self.training:
                plain = nf.cross_entropy(logits, codes_JS[:, level], reduction="sum", label_smoothing=smoothing)
            total = total + plain / self.n_levels
        return total, torch.stack(told)

    def experts(self) -> list[Experts]:
        """All layers of experts, encoder first."""
        return [module for module in self.modules() if isinstance(module, Experts)]
