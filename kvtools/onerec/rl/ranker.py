"""The ranker whose score is a reward: a tower an objective, and one P-Score over all of them.

A user is what attention takes from the latest items, with the candidate as query; an item is its reconstructed vector, an
embedding of its own, and how popular it is. Each tower learns one objective by binary cross-entropy. The P-Score's tower reads
the hidden states of all towers, the user and the item, and its one probability is trained against the labels of every
objective, by their weights.

Source: OneRec Technical Report (arXiv 2506.13695 v4) section 2.4.1, where the towers are those of a SIM ranker, with features
that public data lack; sizes are our choice. Legend: B users, G candidates, L latest items, W width, X objectives, I items.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as nf

N_LATEST = 20  # items of a history that are read
_WIDTH, _HIDDEN = 32, 32


class PScore(nn.Module):
    """The ranker. vectors: float32 (I, D) of the catalogue. popularity: (I,), training interactions of each item."""

    vectors_ID: Tensor
    popular_I: Tensor

    def __init__(self, vectors: np.ndarray, popularity: np.ndarray, n_objectives: int) -> None:
        super().__init__()
        scale = vectors.std() or 1.0
        self.register_buffer("vectors_ID", torch.from_numpy((vectors / scale).astype(np.float32)))
        logs = np.log1p(popularity)
        self.register_buffer("popular_I", torch.from_numpy(((logs - logs.mean()) / (logs.std() or 1.0)).astype(np.float32)))
        self.content = nn.Linear(vectors.shape[1], _WIDTH)
        self.items = nn.Embedding(len(vectors), _WIDTH)
        nn.init.normal_(self.items.weight, std=0.05)
        self.query, self.key = (nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(2))
        self.nobody = nn.Parameter(torch.zeros(_WIDTH))
        n_in = 3 * _WIDTH + 1
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(n_in, _HIDDEN), nn.ReLU()) for _ in range(n_objectives))
        self.heads = nn.ModuleList(nn.Linear(_HIDDEN, 1) for _ in range(n_objectives))
        n_last = n_objectives * _HIDDEN + 2 * _WIDTH
        self.score = nn.Sequential(nn.Linear(n_last, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, latest_BL: Tensor, items_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each objective, float32 (B, G, X), and of the P-Score, (B, G). latest_BL: int64 items, -1 where there is
        none."""
        v_BGW, past_BLW = self._item(items_BG), self._item(latest_BL.clamp(min=0))
        match_BGL = self.query(v_BGW) @ self.key(past_BLW).transpose(1, 2) / _WIDTH**0.5
        is_there_B1L = (latest_BL >= 0).unsqueeze(1)
        # an empty past has weights that sum to 0, and stands for nobody
        weight_BGL = match_BGL.masked_fill(~is_there_B1L, -1e9).softmax(2) * is_there_B1L
        u_BGW = weight_BGL @ past_BLW + (1 - weight_BGL.sum(2, keepdim=True)) * self.nobody
        x = torch.cat([u_BGW, v_BGW, u_BGW * v_BGW, self.popular_I[items_BG].unsqueeze(2)], dim=2)
        hidden = [tower(x) for tower in self.towers]
        logits = torch.cat([head(h) for head, h in zip(self.heads, hidden, strict=True)], dim=2)
        score: Tensor = self.score(torch.cat([*hidden, u_BGW, v_BGW], dim=2))
        return logits, score[:, :, 0]

    def _item(self, items: Tensor) -> Tensor:
        out: Tensor = self.content(self.vectors_ID[items]) + self.items(items)
        return out

    def loss(self, latest_BL: Tensor, items_BG: Tensor, labels_BGX: Tensor, weights: list[float]) -> tuple[Tensor, Tensor]:
        """The loss summed over users, to be differentiated, and the cross-entropy of each tower, float32 (X,), summed over its
        labels. labels_BGX: float32, NaN where there is none."""
        logits_BGX, score_BG = self(latest_BL, items_BG)
        total, towers = logits_BGX.new_zeros(()), []
        for x, weight in enumerate(weights):
            label_BG = labels_BGX[:, :, x]
            is_known = ~label_BG.isnan()
            target = label_BG[is_known]
            tower = nf.binary_cross_entropy_with_logits(logits_BGX[:, :, x][is_known], target, reduction="sum")
            fused = nf.binary_cross_entropy_with_logits(score_BG[is_known], target, reduction="sum")
            total = total + (tower + weight * fused) / items_BG.shape[1]
            towers.append(tower.detach())
        return total, torch.stack(towers)


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The probability that a positive scores above a negative, ties counting a half. scores: float (n,). labels: bool (n,).
    Raises ValueError where all labels are the same."""
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    if not n_positive or not n_negative:
        raise ValueError(f"AUC needs both labels, and there are {n_positive} positive and {n_negative} negative ones")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    rank = (ends - counts + ends + 1) / 2  # of equal scores the mean
    return float((rank[inverse][labels].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def threshold_of(values: np.ndarray) -> float:
    """From where a column's values are positive: the median, or the next larger value where nearly all would be. values: float
    (n,), NaN left out. Raises ValueError where all are equal."""
    known = np.unique(values[np.isfinite(values)])
    if len(known) < 2:
        raise ValueError("all of its values in the training part are equal, and an objective needs two")
    median = float(np.median(values[np.isfinite(values)]))
    at = max(1, int(np.searchsorted(known, median)))
    return float(known[at])
