"""Item alignment before quantising: vectors of items that users take together move together, and keep their content.

Source: OneRec Technical Report (arXiv 2506.13695 v4) section 2.1.1: a QFormer of 4 queries and 4 layers, each
Q <- CrossAttn(Q, M, M); Q <- FFN(RMSNorm(Q)), trained by in-batch InfoNCE over item pairs and by a caption loss through a
text decoder that is dropped afterwards. Its output, the queries in a row, is what k-means quantises.

The source does not give the rest, so it is our choice: residuals (the report prints none; `is_printed` gives the printed
form), heads, FFN width, cosine as the similarity, temperature, batch, optimiser, the weight of the caption loss, the decoder,
and the unit length of the output. In our form the mean token is added to every query's output, whose last matrix starts at
zero: the untrained encoder gives the content itself four times, and training moves away from it only as pairs demand.

The batches depend on the seed alone. Results are the same bit for bit for the same seed, machine, torch and number of
threads; other thread counts differ by float32 rounding, since matrix products add in another order.
Legend: N items, P pairs, B of them in a batch, T tokens, D width, Q queries, H heads, W ids of a caption.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf

from kvtools.chance import rng_for, seed_for

_EPS = 1e-12
_ENCODE_ROWS = 4096


@dataclass(frozen=True)
class AlignConfig:
    """The encoder and its training; all but the numbers of queries and layers is our choice."""

    n_queries: int = 4
    n_layers: int = 4
    n_heads: int = 4
    n_hidden: int = 256  # FFN width
    is_printed: bool = False  # no residuals anywhere, as the report prints it
    temperature: float = 0.1
    n_batch: int = 512  # pairs a step
    n_steps: int = 1000
    # not lr: the name is stored in artifacts
    learning_rate: float = 3e-3  # this and the steps by held-out pairs of Beauty, see bench/README.md
    weight_decay: float = 0.01
    caption_weight: float = 0.1
    n_caption: int = 32  # ids of a caption that are read


@dataclass(frozen=True)
class Alignment:
    """Unit vectors float32 (N, Q * D) in item order, the loss of each step, and the encoder's weights, float32."""

    vectors: np.ndarray
    losses: list[float]
    weights: dict[str, np.ndarray]


class _Layer(nn.Module):
    """Cross-attention of queries over tokens, then a feed-forward network."""

    def __init__(self, n_width: int, config: AlignConfig) -> None:
        super().__init__()
        self.n_heads, self.is_printed = config.n_heads, config.is_printed
        self.query = nn.Linear(n_width, n_width, bias=False)
        self.key = nn.Linear(n_width, n_width, bias=False)
        self.value = nn.Linear(n_width, n_width, bias=False)
        self.out = nn.Linear(n_width, n_width, bias=False)
        self.norm = nn.RMSNorm(n_width, eps=1e-6)
        self.up = nn.Linear(n_width, config.n_hidden)
        self.down = nn.Linear(config.n_hidden, n_width)

    def _heads(self, x_BTD: torch.Tensor) -> torch.Tensor:
        n_rows, n_tokens, _ = x_BTD.shape
        return x_BTD.view(n_rows, n_tokens, self.n_heads, -1).transpose(1, 2)

    def forward(self, q_BQD: torch.Tensor, m_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        attended_BHQD = nf.scaled_dot_product_attention(
            self._heads(self.query(q_BQD)),
            self._heads(self.key(m_BTD)),
            self._heads(self.value(m_BTD)),
            attn_mask=mask_BT[:, None, None, :],
        )
        attended_BQD = self.out(attended_BHQD.transpose(1, 2).flatten(2))
        q_BQD = attended_BQD if self.is_printed else q_BQD + attended_BQD
        fed_BQD: torch.Tensor = self.down(nf.gelu(self.up(self.norm(q_BQD))))
        return fed_BQD if self.is_printed else q_BQD + fed_BQD


class QFormer(nn.Module):
    """The encoder: queries that attend to an item's tokens."""

    def __init__(self, n_width: int, config: AlignConfig) -> None:
        super().__init__()
        self.is_printed = config.is_printed
        self.queries = nn.Parameter(torch.randn(config.n_queries, n_width))
        self.layers = nn.ModuleList(_Layer(n_width, config) for _ in range(config.n_layers))
        if not self.is_printed:
            self.last = nn.Linear(n_width, n_width, bias=False)
            nn.init.zeros_(self.last.weight)

    def forward(self, m_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """(B, Q, D): Q vectors of each item's tokens; mask_BT: bool, true where a token is."""
        n_BT1 = mask_BT.unsqueeze(-1)
        m_BTD = m_BTD.masked_fill(~n_BT1, 0)
        # a token's mean square is scaled to about 1: embeddings of unit length are much smaller than the queries, which would
        # outweigh them
        scaled_BTD = nf.rms_norm(m_BTD, m_BTD.shape[-1:], eps=_EPS)
        q_BQD = self.queries.expand(len(m_BTD), -1, -1)
        for layer in self.layers:
            q_BQD = layer(q_BQD, scaled_BTD, mask_BT)
        if self.is_printed:
            return q_BQD
        mean_BD = scaled_BTD.sum(1) / n_BT1.sum(1)
        out_BQD: torch.Tensor = mean_BD.unsqueeze(1) + self.last(q_BQD)
        return out_BQD


class _Decoder(nn.Module):
    """One causal layer of text conditioned on the queries' output; dropped after training."""

    def __init__(self, n_width: int, n_vocab: int, config: AlignConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_vocab + 1, n_width)  # the last one begins every caption
        self.positions = nn.Parameter(torch.zeros(config.n_caption, n_width))
        self.layer = nn.TransformerDecoderLayer(
            n_width, config.n_heads, config.n_hidden, 0.0, batch_first=True, norm_first=True
        )
        self.logits = nn.Linear(n_width, n_vocab)

    def forward(self, q_BQD: torch.Tensor, ids_BW: torch.Tensor) -> torch.Tensor:
        """Mean -log P(next id | ids before, item) over the ids there are; padding is -1."""
        n_vocab, n_ids = self.logits.out_features, ids_BW.shape[1]
        before_BW = nf.pad(ids_BW[:, :-1], (1, 0), value=n_vocab).clamp(min=0)
        h_BWD = self.embedding(before_BW) + self.positions[:n_ids]
        h_BWD = self.layer(h_BWD, q_BQD, tgt_mask=nn.Transformer.generate_square_subsequent_mask(n_ids, dtype=h_BWD.dtype))
        total: torch.Tensor = nf.cross_entropy(
            self.logits(h_BWD).flatten(0, 1), ids_BW.flatten(), ignore_index=-1, reduction="sum"
        )
        return total / (ids_BW >= 0).sum().clamp(min=1)


def info_nce(anchors_BD: torch.Tensor, others_BD: torch.Tensor, is_known_BB: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean over pairs of -log softmax of their cosine / temperature, among the anchor's with all others of the batch.

    is_known_BB: entries left out of the sum because they are pairs themselves; the diagonal is never left out. (V1's L_I2I;
    leaving out accidental positives is ours.)
    """
    cosine_BB = nf.normalize(anchors_BD, dim=1) @ nf.normalize(others_BD, dim=1).T
    own_BB = torch.eye(len(cosine_BB), dtype=torch.bool)
    logits_BB = (cosine_BB / temperature).masked_fill(is_known_BB & ~own_BB, -math.inf)
    return nf.cross_entropy(logits_BB, torch.arange(len(logits_BB)))


def known_positives(left_B: np.ndarray, right_B: np.ndarray, sorted_pairs: np.ndarray, n_items: int) -> np.ndarray:
    """(B, B), bool: left a and right b are one item, or share right b with a's own pair, or are a pair either way round.

    sorted_pairs: int64, i * n_items + j of all pairs, sorted.
    """
    a_B1, b_1B = left_B[:, None].astype(np.int64), right_B[None, :].astype(np.int64)
    same_BB: np.ndarray = (a_B1 == b_1B) | (right_B[:, None] == b_1B)
    for keys_BB in (a_B1 * n_items + b_1B, b_1B * n_items + a_B1):
        at_BB = np.minimum(np.searchsorted(sorted_pairs, keys_BB), len(sorted_pairs) - 1)
        same_BB |= sorted_pairs[at_BB] == keys_BB
    return same_BB


def align(
    x: np.ndarray,
    pairs_P2: np.ndarray,
    *,
    config: AlignConfig | None = None,
    seed: int = 0,
    mask_NT: np.ndarray | None = None,
    captions: Sequence[Sequence[int]] | None = None,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Alignment:
    """Train on pairs, and encode all items.

    x: float (N, D), or (N, T, D) with mask_NT true where a token is. pairs_P2: int item numbers, anchor first; from training
    interactions only. captions: ids of each item's text. on_step: called after each step with its number, from 0, and loss.
    Raises ValueError for pairs out of range, non-finite or tokenless items, and, naming the step, a loss that is not finite.
    """
    config = config or AlignConfig()
    x_NTD, mask_NT = _tokens(x, mask_NT, config)
    n_items, n_width = len(x_NTD), x_NTD.shape[2]
    pairs_P2, sorted_pairs = _checked(pairs_P2, n_items)
    ids_NW = None if captions is None else _padded(captions, n_items, config.n_caption)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "align", "weights"))
        model = QFormer(n_width, config)
        decoder = None if ids_NW is None else _Decoder(n_width, int(ids_NW.max()) + 1, config)
    parameters = [*model.parameters(), *(() if decoder is None else decoder.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for step, batch_B in enumerate(_batches(len(pairs_P2), config, seed)):
        for group in optimizer.param_groups:  # a cosine down to a tenth
            group["lr"] = config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * step / config.n_steps))
        items_2B = pairs_P2[batch_B].T
        flat = items_2B.ravel()
        q_BQD = model(torch.from_numpy(x_NTD[flat]), torch.from_numpy(mask_NT[flat]))
        left_BD, right_BD = q_BQD.flatten(1).chunk(2)
        is_known_BB = torch.from_numpy(known_positives(items_2B[0], items_2B[1], sorted_pairs, n_items))
        loss = info_nce(left_BD, right_BD, is_known_BB, config.temperature)
        if decoder is not None and ids_NW is not None:
            loss = loss + config.caption_weight * decoder(q_BQD[: len(batch_B)], torch.from_numpy(ids_NW[items_2B[0]]))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss of step {step} is {losses[-1]}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_step(step, losses[-1])
    weights = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    return Alignment(_encoded(model, x_NTD, mask_NT), losses, weights)


def encode(
    x: np.ndarray, weights: Mapping[str, np.ndarray], config: AlignConfig, *, mask_NT: np.ndarray | None = None
) -> np.ndarray:
    """float32 (N, Q * D): aligned unit vectors of items, float (N, D) or (N, T, D), by an encoder trained before.

    Raises ValueError for a width other than the weights', and for items that `align` refuses.
    """
    x_NTD, mask_NT = _tokens(x, mask_NT, config)
    n_width = weights["queries"].shape[1]
    if x_NTD.shape[2] != n_width:
        raise ValueError(f"vectors are {x_NTD.shape[2]} wide, and the encoder was trained on a width of {n_width}")
    model = QFormer(n_width, config)
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return _encoded(model, x_NTD, mask_NT)


def _encoded(model: QFormer, x_NTD: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
    parts = []
    with torch.no_grad():
        for begin in range(0, len(x_NTD), _ENCODE_ROWS):
            rows = slice(begin, begin + _ENCODE_ROWS)
            q_BQD = model(torch.from_numpy(x_NTD[rows]), torch.from_numpy(mask_NT[rows]))
            parts.append(nf.normalize(q_BQD.flatten(1), dim=1, eps=_EPS).numpy())
    return np.concatenate(parts)


def _batches(n_pairs: int, config: AlignConfig, seed: int) -> Iterator[np.ndarray]:
    """The numbers of each step's pairs, int64 (B,): whole shuffles one after another, each cut into batches."""
    n_batch = min(config.n_batch, n_pairs)
    left, epoch = np.empty(0, np.int64), 0
    for _ in range(config.n_steps):
        if len(left) < n_batch:
            left, epoch = rng_for(seed, "align", "epoch", epoch).permutation(n_pairs), epoch + 1
        yield left[:n_batch]
        left = left[n_batch:]


def _checked(pairs_P2: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs as int64, and i * n_items + j of each, sorted. Raises ValueError."""
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or len(pairs_P2) < 2:
        raise ValueError(f"pairs have the shape {pairs_P2.shape}, and (2 or more, 2) is needed")
    if pairs_P2.min() < 0 or pairs_P2.max() >= n_items:
        raise ValueError(f"pairs name items {pairs_P2.min()} to {pairs_P2.max()}, and there are {n_items}")
    pairs_P2 = pairs_P2.astype(np.int64)
    return pairs_P2, np.unique(pairs_P2[:, 0] * n_items + pairs_P2[:, 1])


def _tokens(x: np.ndarray, mask_NT: np.ndarray | None, config: AlignConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tokens float32 (N, T, D) and where they are, bool (N, T); a plain vector is one token. Raises ValueError."""
    if x.ndim not in {2, 3} or 0 in x.shape:
        raise ValueError(f"items have the shape {x.shape}, and (items, width) or (items, tokens, width) is needed")
    x_NTD = x[:, None] if x.ndim == 2 else x
    mask_NT = np.ones(x_NTD.shape[:2], bool) if mask_NT is None else mask_NT.astype(bool)
    if mask_NT.shape != x_NTD.shape[:2]:
        raise ValueError(f"the mask has the shape {mask_NT.shape}, and the items' tokens {x_NTD.shape[:2]}")
    if not mask_NT.any(1).all():
        raise ValueError(f"item {int(np.argmin(mask_NT.any(1)))} has no token")
    if x_NTD.shape[2] % config.n_heads:
        raise ValueError(f"width {x_NTD.shape[2]} is not divisible by {config.n_heads} attention heads")
    is_finite_N = (np.isfinite(x_NTD).all(2) | ~mask_NT).all(1)
    if not is_finite_N.all():
        raise ValueError(f"item {int(np.argmin(is_finite_N))} holds NaN or infinity")
    return x_NTD.astype(np.float32), mask_NT


def _padded(captions: Sequence[Sequence[int]], n_items: int, n_caption: int) -> np.ndarray:
    """int64 (N, W): the first W ids of each caption, -1 beyond its end. Raises ValueError."""
    if len(captions) != n_items:
        raise ValueError(f"there are {len(captions)} captions for {n_items} items")
    if min((min(caption) for caption in captions if caption), default=0) < 0:
        raise ValueError("a caption holds an id below 0")
    ids_NW = np.full((n_items, n_caption), -1, np.int64)
    for row_W, caption in zip(ids_NW, captions, strict=True):
        row_W[: len(caption)] = caption[:n_caption]
    if ids_NW.max() < 0:
        raise ValueError("all captions are empty")
    return ids_NW
