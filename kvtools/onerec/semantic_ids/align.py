"""Item alignment before quantising: items that users take together move together, and stay what they are.

Source: OneRec Technical Report (arXiv 2506.13695 v4) section 2.1.1: a QFormer of 4 queries and 4 layers, each
Q <- CrossAttn(Q, M, M); Q <- FFN(RMSNorm(Q)), trained by in-batch InfoNCE over item pairs and by a caption loss through a
text decoder that is dropped afterwards. Its output, the queries in a row, is what k-means sees.

Not found in the source, so our choice: residuals (printed without; `is_printed` gives the printed form), heads, FFN width,
cosine as the similarity, temperature, batch, optimiser, the loss's weight, the decoder, and unit length of what comes out.
In our form the mean token is added to every query's output, whose last matrix starts at zero: the untrained encoder gives
the content itself four times, and training moves away from it only as pairs demand.

The batches depend on the seed alone. Results are the same bit for bit for the same seed, machine, torch and number of
threads; other thread counts differ by float32 rounding, since matrix products add in another order.
Legend: N items, P pairs, B of them in a batch, T tokens, D width, Q queries, H heads, W caption ids, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf

from kvtools.chance import rng_for, seed_for

_EPS = 1e-12
_ENCODE_ROWS = 4096


@dataclass(frozen=True)
class Settings:
    """How items are aligned; all but the numbers of queries and layers is our choice."""

    n_queries: int = 4
    n_layers: int = 4
    n_heads: int = 4
    n_hidden: int = 256  # FFN width
    is_printed: bool = False  # no residuals anywhere, as the report prints it
    temperature: float = 0.1
    n_batch: int = 512  # pairs a step
    n_steps: int = 1000
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
    """Cross-attention of queries over tokens, then a feed-forward of what it gave."""

    def __init__(self, n_width: int, settings: Settings) -> None:
        super().__init__()
        self.n_heads, self.is_printed = settings.n_heads, settings.is_printed
        self.query = nn.Linear(n_width, n_width, bias=False)
        self.key = nn.Linear(n_width, n_width, bias=False)
        self.value = nn.Linear(n_width, n_width, bias=False)
        self.out = nn.Linear(n_width, n_width, bias=False)
        self.norm = nn.RMSNorm(n_width, eps=1e-6)
        self.up = nn.Linear(n_width, settings.n_hidden)
        self.down = nn.Linear(settings.n_hidden, n_width)

    def _heads(self, x_BTD: torch.Tensor) -> torch.Tensor:
        n_rows, n_tokens, _ = x_BTD.shape
        return x_BTD.view(n_rows, n_tokens, self.n_heads, -1).transpose(1, 2)

    def forward(self, q_BQD: torch.Tensor, m_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        seen_BHQD = nf.scaled_dot_product_attention(
            self._heads(self.query(q_BQD)),
            self._heads(self.key(m_BTD)),
            self._heads(self.value(m_BTD)),
            attn_mask=mask_BT[:, None, None, :],
        )
        seen_BQD = self.out(seen_BHQD.transpose(1, 2).flatten(2))
        q_BQD = seen_BQD if self.is_printed else q_BQD + seen_BQD
        fed_BQD: torch.Tensor = self.down(nf.gelu(self.up(self.norm(q_BQD))))
        return fed_BQD if self.is_printed else q_BQD + fed_BQD


class QFormer(nn.Module):
    """Items' tokens to Q vectors each: (B, T, D), mask (B, T) true where a token is -> (B, Q, D)."""

    def __init__(self, n_width: int, settings: Settings) -> None:
        super().__init__()
        self.is_printed = settings.is_printed
        self.queries = nn.Parameter(torch.randn(settings.n_queries, n_width))
        self.layers = nn.ModuleList(_Layer(n_width, settings) for _ in range(settings.n_layers))
        if not self.is_printed:
            self.last = nn.Linear(n_width, n_width, bias=False)
            nn.init.zeros_(self.last.weight)

    def forward(self, m_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        n_BT1 = mask_BT.unsqueeze(-1)
        m_BTD = m_BTD.masked_fill(~n_BT1, 0)
        # a token's mean square is brought near 1: embeddings of unit length would drown beside the queries
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

    def __init__(self, n_width: int, n_words: int, settings: Settings) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words + 1, n_width)  # the last one begins every caption
        self.places = nn.Parameter(torch.zeros(settings.n_caption, n_width))
        self.layer = nn.TransformerDecoderLayer(
            n_width, settings.n_heads, settings.n_hidden, 0.0, batch_first=True, norm_first=True
        )
        self.logits = nn.Linear(n_width, n_words)

    def forward(self, q_BQD: torch.Tensor, ids_BW: torch.Tensor) -> torch.Tensor:
        """Mean -log P(next id | ids before, item) over the ids there are; padding is -1."""
        n_words, n_ids = self.logits.out_features, ids_BW.shape[1]
        before_BW = nf.pad(ids_BW[:, :-1], (1, 0), value=n_words).clamp(min=0)
        h_BWD = self.words(before_BW) + self.places[:n_ids]
        h_BWD = self.layer(h_BWD, q_BQD, tgt_mask=nn.Transformer.generate_square_subsequent_mask(n_ids, dtype=h_BWD.dtype))
        total: torch.Tensor = nf.cross_entropy(
            self.logits(h_BWD).flatten(0, 1), ids_BW.flatten(), ignore_index=-1, reduction="sum"
        )
        return total / (ids_BW >= 0).sum().clamp(min=1)


def info_nce(anchors_BD: torch.Tensor, others_BD: torch.Tensor, is_known_BB: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over pairs of -log softmax, at the pair's own place, of cosine / temperature over all j' of the batch.

    is_known_BB: places left out of the sum because they are pairs themselves; the diagonal is never left out. (V1's L_I2I;
    leaving out accidental positives is ours.)
    """
    cosine_BB = nf.normalize(anchors_BD, dim=1) @ nf.normalize(others_BD, dim=1).T
    own_BB = torch.eye(len(cosine_BB), dtype=torch.bool)
    logits_BB = (cosine_BB / temperature).masked_fill(is_known_BB & ~own_BB, -math.inf)
    return nf.cross_entropy(logits_BB, torch.arange(len(logits_BB)))


def known(left_B: np.ndarray, right_B: np.ndarray, sorted_pairs: np.ndarray, n_items: int) -> np.ndarray:
    """(B, B) bool: left a and right b are one item, or share right b with a's own pair, or are a pair either way round.

    sorted_pairs: int64, i * n_items + j of all pairs, sorted.
    """
    a_B1, b_1B = left_B[:, None].astype(np.int64), right_B[None, :].astype(np.int64)
    same_BB: np.ndarray = (a_B1 == b_1B) | (right_B[:, None] == b_1B)
    for keys_BB in (a_B1 * n_items + b_1B, b_1B * n_items + a_B1):
        at_BB = np.minimum(np.searchsorted(sorted_pairs, keys_BB), len(sorted_pairs) - 1)
        same_BB |= sorted_pairs[at_BB] == keys_BB
    return same_BB


def _batches(n_pairs: int, settings: Settings, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the pairs of every step: whole shuffles one after another, each cut into batches."""
    n_batch = min(settings.n_batch, n_pairs)
    left, epoch = np.empty(0, np.int64), 0
    for _ in range(settings.n_steps):
        if len(left) < n_batch:
            left, epoch = rng_for(seed, "align", "epoch", epoch).permutation(n_pairs), epoch + 1
        yield left[:n_batch]
        left = left[n_batch:]


def _tokens(x: np.ndarray, mask_NT: np.ndarray | None, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Tokens float32 (N, T, D) and where they are, bool (N, T); a plain vector is one token. Raises ValueError."""
    if x.ndim not in {2, 3} or 0 in x.shape:
        raise ValueError(f"an array of shape {x.shape} found, (items, width) or (items, tokens, width) expected")
    x_NTD = x[:, None] if x.ndim == 2 else x
    mask_NT = np.ones(x_NTD.shape[:2], bool) if mask_NT is None else mask_NT.astype(bool)
    if mask_NT.shape != x_NTD.shape[:2]:
        raise ValueError(f"a mask of shape {mask_NT.shape} found, {x_NTD.shape[:2]} expected")
    if not mask_NT.any(1).all():
        raise ValueError(f"item {int(np.argmin(mask_NT.any(1)))}: no token found, at least one expected")
    if x_NTD.shape[2] % settings.n_heads:
        raise ValueError(f"width {x_NTD.shape[2]} found, a multiple of {settings.n_heads} heads expected")
    is_finite_N = (np.isfinite(x_NTD).all(2) | ~mask_NT).all(1)
    if not is_finite_N.all():
        raise ValueError(f"item {int(np.argmin(is_finite_N))}: NaN or inf found, finite numbers expected")
    return x_NTD.astype(np.float32), mask_NT


def _padded(captions: Sequence[Sequence[int]], n_items: int, n_caption: int) -> np.ndarray:
    if len(captions) != n_items:
        raise ValueError(f"{len(captions)} captions found, one for each of {n_items} items expected")
    ids_NW = np.full((n_items, n_caption), -1, np.int64)
    for row_W, caption in zip(ids_NW, captions, strict=True):
        row_W[: len(caption)] = caption[:n_caption]
        if any(word < 0 for word in caption):
            raise ValueError(f"caption id {min(caption)} found, 0 or more expected")
    if ids_NW.max() < 0:
        raise ValueError("captions without a single id found, at least one expected")
    return ids_NW


def _encoded(model: QFormer, x_NTD: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
    parts = []
    with torch.no_grad():
        for at in range(0, len(x_NTD), _ENCODE_ROWS):
            rows = slice(at, at + _ENCODE_ROWS)
            q_BQD = model(torch.from_numpy(x_NTD[rows]), torch.from_numpy(mask_NT[rows]))
            parts.append(nf.normalize(q_BQD.flatten(1), dim=1, eps=_EPS).numpy())
    return np.concatenate(parts)


def encode(
    x: np.ndarray, weights: dict[str, np.ndarray], settings: Settings, *, mask_NT: np.ndarray | None = None
) -> np.ndarray:
    """Aligned unit vectors float32 (N, Q * D) of items (N, D) or (N, T, D), by an encoder trained before.

    Raises ValueError for a width other than the weights', and for what `align` refuses in items.
    """
    x_NTD, mask_NT = _tokens(x, mask_NT, settings)
    n_width = weights["queries"].shape[1]
    if x_NTD.shape[2] != n_width:
        raise ValueError(f"width {x_NTD.shape[2]} found, {n_width} expected, as the encoder was trained on")
    model = QFormer(n_width, settings)
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return _encoded(model, x_NTD, mask_NT)


def align(
    x: np.ndarray,
    pairs_P2: np.ndarray,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    mask_NT: np.ndarray | None = None,
    captions: Sequence[Sequence[int]] | None = None,
    tell: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Alignment:
    """Train on pairs and encode all items.

    x: (N, D), or (N, T, D) with mask_NT true where a token is. pairs_P2: item numbers, anchor first; from training
    interactions only. captions: ids of each item's text. tell: called after each step with its number, from 0, and loss.
    Raises ValueError for pairs out of range, non-finite or tokenless items, and, naming the step, a loss that is not finite.
    """
    settings = settings or Settings()
    x_NTD, mask_NT = _tokens(x, mask_NT, settings)
    n_items = len(x_NTD)
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or len(pairs_P2) < 2:
        raise ValueError(f"pairs of shape {pairs_P2.shape} found, (2 or more, 2) expected")
    if pairs_P2.min() < 0 or pairs_P2.max() >= n_items:
        raise ValueError(f"pairs of items {pairs_P2.min()} to {pairs_P2.max()} found, 0 to {n_items - 1} expected")
    pairs_P2 = pairs_P2.astype(np.int64)
    sorted_pairs = np.unique(pairs_P2[:, 0] * n_items + pairs_P2[:, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "align", "weights"))
        model = QFormer(x_NTD.shape[2], settings)
        parameters = list(model.parameters())
        decoder = None
        if captions is not None:
            ids_NW = _padded(captions, n_items, settings.n_caption)
            decoder = _Decoder(x_NTD.shape[2], int(ids_NW.max()) + 1, settings)
            parameters += decoder.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses = []
    for step, chosen_B in enumerate(_batches(len(pairs_P2), settings, seed)):
        for group in optimizer.param_groups:  # a cosine down to a tenth
            group["lr"] = settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * step / settings.n_steps))
        items_2B = pairs_P2[chosen_B].T
        flat = items_2B.ravel()
        q_BQD = model(torch.from_numpy(x_NTD[flat]), torch.from_numpy(mask_NT[flat]))
        left_BD, right_BD = q_BQD.flatten(1).chunk(2)
        is_known_BB = torch.from_numpy(known(items_2B[0], items_2B[1], sorted_pairs, n_items))
        loss = info_nce(left_BD, right_BD, is_known_BB, settings.temperature)
        if decoder is not None:
            n_anchors = len(chosen_B)
            loss = loss + settings.caption_weight * decoder(q_BQD[:n_anchors], torch.from_numpy(ids_NW[items_2B[0]]))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"step {step}: a loss of {losses[-1]} found, a finite one expected")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tell(step, losses[-1])
    weights = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    return Alignment(_encoded(model, x_NTD, mask_NT), losses, weights)
