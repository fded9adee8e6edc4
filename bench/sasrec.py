"""SASRec (Kang and McAuley 2018, arXiv 1808.09781), written from the paper and trained in our harness: JSON lines on stdout.

Usage: sasrec.py FILE [test] [NAME=VALUE]...      a line a seed of validation; with the word test, one of the test part too
Names: those of Settings, below; seeds (0,1,2), threads (2), users (0: all; the first so many, for a quick look).

FILE is anything that kvtools.onerec.interactions reads; the split is its own, last item test, the one before validation. All
items are ranked, those of the history left out, ties to the lower item. Training stops where NDCG@10 on validation has not
risen for `patience` epochs, and the best epoch counts. The test part is only looked at after that.

From the paper: item and place embeddings, shared with the output; blocks of causal attention and a feed-forward of the same
width with ReLU, each x + dropout(f(norm(x))); one head, no output projection; the last `history` items, right-aligned. The last
norm is the authors' code's. loss=bce is the paper's, one negative a target that the user never had in training; loss=ce is
cross entropy over all items, which others found better and which is our default: its products are in bfloat16.

Legend: B users, T places, D width, I items, N targets of a batch. Item 0 is padding, others are numbered from 1.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from generate_peers import asked
from torch import nn
from torch.nn.functional import dropout, scaled_dot_product_attention, softplus

from kvtools.chance import rng_for, seed_for
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID, parts_of, read_interactions
from kvtools.onerec.recommend.metrics import summary

CHUNK = 128  # targets, whose scores of 12,101 items are 6 MB in float32 and stay in the cache
LIKE = 16  # batches drawn together and sorted by length, so that little is padding


@dataclass(frozen=True)
class Settings:
    """One model and its training."""

    loss: str = "ce"
    d: int = 128
    blocks: int = 2
    history: int = 50
    dropout: float = 0.4
    rate: float = 5e-3
    decay: float = 0.0  # AdamW's
    batch: int = 128  # users
    epochs: int = 60  # loss=bce wants some 300, and patience=40
    every: int = 1  # epochs between looks at validation
    patience: int = 6  # epochs


class Block(nn.Module):
    def __init__(self, settings):
        super().__init__()
        d = settings.d
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.wide = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
        self.rate = settings.dropout

    def forward(self, x_BTD, mask_BTT):
        rate = self.rate if self.training else 0.0
        q, k, v = self.qkv(self.norms[0](x_BTD)).chunk(3, dim=-1)
        x_BTD = x_BTD + dropout(scaled_dot_product_attention(q, k, v, mask_BTT, dropout_p=rate), rate)
        return x_BTD + dropout(self.wide(self.norms[1](x_BTD)), rate)


class SASRec(nn.Module):
    def __init__(self, n_items, settings):
        super().__init__()
        self.items = nn.Embedding(n_items + 1, settings.d)
        self.places = nn.Embedding(settings.history, settings.d)
        self.blocks = nn.ModuleList([Block(settings) for _ in range(settings.blocks)])
        self.norm = nn.LayerNorm(settings.d)
        self.rate = settings.dropout
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items_BT):
        is_item = items_BT > 0
        n = items_BT.shape[1]
        x_BTD = self.items(items_BT) + self.places.weight[-n:]
        x_BTD = dropout(x_BTD, self.rate, self.training) * is_item[:, :, None]
        # padding looks at itself, so that no row of the softmax is empty; nobody looks at padding
        mask_BTT = torch.ones(n, n, dtype=torch.bool).tril() & is_item[:, None] | torch.eye(n, dtype=torch.bool)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BTT)
        return self.norm(x_BTD)


class CrossEntropy(torch.autograd.Function):
    """Mean cross entropy of x_ND @ table_ID.T, gradients made on the way: scores are made once, and never written to memory
    whole. Twice to four times as fast as autograd's here. Factors of products are bfloat16, sums float32; gradients differ from
    float64's by 0.3 %."""

    @staticmethod
    def forward(ctx, x_ND, table_ID, targets_N):
        table = table_ID.bfloat16()
        dx_ND, dtable_ID, total = torch.empty_like(x_ND), torch.zeros_like(table_ID), 0.0
        for begin in range(0, len(x_ND), CHUNK):
            x, target = x_ND[begin : begin + CHUNK].bfloat16(), targets_N[begin : begin + CHUNK, None]
            scores = x @ table.T
            total += (scores.float().logsumexp(1, keepdim=True) - scores.gather(1, target)).sum()
            slopes = scores.softmax(1).scatter_add_(1, target, -torch.ones_like(target, dtype=scores.dtype))
            dx_ND[begin : begin + CHUNK] = slopes @ table
            dtable_ID += slopes.T @ x
        ctx.save_for_backward(dx_ND.div_(len(x_ND)), dtable_ID.div_(len(x_ND)))
        return total / len(x_ND)

    @staticmethod
    def backward(ctx, gradient):
        return *(gradient * saved for saved in ctx.saved_tensors), None


def right_aligned(items, begins, ends):
    """int64 (B, T): items[begin:end] of each row, 0 before them."""
    at = ends[:, None] + np.arange(-int((ends - begins).max()), 0)
    return torch.from_numpy(np.where(at >= begins[:, None], items[at.clip(0)] + 1, 0))


def negatives(targets_N, users_N, owned, n_items, rng):
    """One item for each target that its user does not own. owned: sorted user * (n_items + 1) + item."""
    found = rng.integers(1, n_items + 1, len(targets_N))
    while True:
        keys = users_N * (n_items + 1) + found
        is_owned = owned[np.searchsorted(owned, keys).clip(max=len(owned) - 1)] == keys
        if not is_owned.any():
            return torch.from_numpy(found)
        found[is_owned] = rng.integers(1, n_items + 1, int(is_owned.sum()))


def epoch(model, optimizer, train, settings, rng):
    """Every user's training part once; the mean loss."""
    begins = np.maximum(train.offsets[:-1], train.offsets[1:] - settings.history - 1)
    ends = train.offsets[1:]
    n_items = len(train.item_keys)
    owned = np.unique(train.users().astype(np.int64) * (n_items + 1) + train.items + 1)
    users = rng.permutation(np.flatnonzero(ends - begins > 1))
    n_drawn = LIKE * settings.batch
    drawn = [users[i : i + n_drawn] for i in range(0, len(users), n_drawn)]
    drawn = [part[np.argsort((ends - begins)[part], kind="stable")] for part in drawn]
    batches = [part[i : i + settings.batch] for part in drawn for i in range(0, len(part), settings.batch)]
    total, n_targets = 0.0, 0
    for i in rng.permutation(len(batches)):
        batch = batches[i]
        targets_BT = right_aligned(train.items, begins[batch] + 1, ends[batch])
        is_target = targets_BT > 0
        x_ND = model(right_aligned(train.items, begins[batch], ends[batch] - 1))[is_target]
        targets = targets_BT[is_target]
        if settings.loss == "ce":
            loss = CrossEntropy.apply(x_ND, model.items.weight[1:], targets - 1)
        else:
            users_N = np.broadcast_to(batch[:, None], is_target.shape)[is_target.numpy()]
            wrong = negatives(targets, users_N, owned, n_items, rng)
            right, wrong = ((x_ND * model.items(chosen)).sum(1) for chosen in (targets, wrong))
            loss = (softplus(-right) + softplus(wrong)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, n_targets = total + loss.item() * len(targets), n_targets + len(targets)
    return total / n_targets


@torch.inference_mode()
def ranks(model, data, places, settings):
    """int64: the rank from 0 of the item at each of the places, after all that its user had before."""
    model.eval()
    starts = data.offsets[data.users()[places]]
    order = np.argsort(places - starts, kind="stable")
    found = np.empty(len(places), np.int64)
    table_ID = model.items.weight[1:]
    for rows in np.array_split(order, range(512, len(order), 512)):
        begins, ends = starts[rows], places[rows]
        x_BD = model(right_aligned(data.items, np.maximum(begins, ends - settings.history), ends))[:, -1]
        scores = x_BD @ table_ID.T
        lengths = ends - begins
        row = np.repeat(np.arange(len(rows)), lengths)
        seen = data.items[np.arange(len(row)) + np.repeat(begins - np.cumsum(lengths) + lengths, lengths)]
        scores[torch.from_numpy(row), torch.from_numpy(seen).long()] = -torch.inf
        target = torch.from_numpy(data.items[ends]).long()[:, None]
        own = scores.gather(1, target)
        before = (scores > own).sum(1)
        ties = (scores == own).nonzero()
        before += torch.bincount(ties[:, 0][ties[:, 1] < target[ties[:, 0], 0]], minlength=len(rows))
        found[rows] = before.numpy()
    return found


def train_and_rank(data, parts, settings, seed, *, with_test):
    """Rows of validation and, where asked, of the test part."""
    torch.manual_seed(seed_for(seed, "sasrec"))
    rng = rng_for(seed, "sasrec", "batches")
    train = data.keep(parts == TRAIN)
    places = {"valid": np.flatnonzero(parts == VALID), "test": np.flatnonzero(parts == TEST)}
    model = SASRec(len(data.item_keys), settings)
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=settings.decay, fused=True)
    begun, best, best_epoch, weights = time.monotonic(), -1.0, 0, {}
    for n in range(1, settings.epochs + 1):
        model.train()
        loss = epoch(model, optimizer, train, settings, rng)
        if n % settings.every and n < settings.epochs:
            continue
        ndcg = summary(ranks(model, data, places["valid"], settings))["ndcg@10"]
        print(f"seed {seed} epoch {n}: loss {loss:.4f}, ndcg@10 {ndcg:.4f}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if ndcg > best:
            best, best_epoch, weights = ndcg, n, {name: value.clone() for name, value in model.state_dict().items()}
        elif n - best_epoch >= settings.patience:
            break
    seconds = time.monotonic() - begun
    model.load_state_dict(weights)
    for part in ("valid", "test") if with_test else ("valid",):
        figures = summary(ranks(model, data, places[part], settings))
        told = {"model": "sasrec", "part": part, "seed": seed, "users": len(places[part]), **figures}
        n_parameters = sum(p.numel() for p in model.parameters())
        yield told | {"seconds": seconds, "epoch": best_epoch, "epochs": n, "parameters": n_parameters} | asdict(settings)


def main():
    path, *words = sys.argv[1:]
    settings, rest = asked([word for word in words if word != "test"], Settings())
    seeds = [int(seed) for seed in rest.pop("seeds", "0,1,2").split(",")]
    n_users = int(rest.pop("users", 0))
    torch.set_num_threads(int(rest.pop("threads", 2)))
    assert not rest, rest
    with Path(path).open("rb") as file:
        data, skipped = read_interactions(file, path)
    for line in skipped.lines(skipped=True) + skipped.lines(skipped=False):
        print(line, file=sys.stderr)
    parts = parts_of(data)
    if n_users:
        chosen = data.users() < n_users
        data, parts = data.keep(chosen), parts[chosen]
    for seed in seeds:
        for row in train_and_rank(data, parts, settings, seed, with_test="test" in words):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
