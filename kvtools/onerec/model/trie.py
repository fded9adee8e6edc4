"""Which codes may follow which: the semantic IDs of a catalogue as static tables, looked up without leaving the device.

IDs are sorted; a prefix is then a range of them, and its children a slice of the next level's prefixes. Level by level there
is an array of prefixes with the last code of each and where its children begin. Following "Vectorizing the trie" (STATIC,
arXiv 2602.22647) in that every look-up has a fixed shape, the largest number of children of that level; there is no dense
first level, since slices serve it as well. Memory: 12 bytes a prefix.

Legend: N items, S levels, U distinct IDs, M prefixes asked about, W children at most.
"""

import copy
import math
from typing import Self

import numpy as np
import torch
from torch import Tensor


class Trie:
    """Prefixes of 1 to S codes, numbered in lexical order at each level; those of the last level are the IDs themselves.

    id_of_item: int64 (N,), the ID of each item. bucket: int64 (U+1,), where the items of each ID begin, sorted by ID.
    """

    def __init__(self, codes_NS: np.ndarray) -> None:
        """codes_NS: int (N, S), repeated rows allowed."""
        ids_US, self.id_of_item = np.unique(codes_NS, axis=0, return_inverse=True)
        self.id_of_item = self.id_of_item.reshape(-1)
        self.n_ids, self.n_levels = ids_US.shape
        self.ids_US = torch.from_numpy(ids_US.astype(np.int64))
        self.codes: list[Tensor] = []  # int64 (n_prefixes,) a level: the last code of each prefix
        self.starts: list[Tensor] = []  # int64 (n_prefixes of the level before + 1,): where its children begin
        self.widths: list[int] = []  # children at most
        parent_U = np.zeros(self.n_ids, np.int64)
        for level in range(self.n_levels):
            is_new = np.r_[True, (ids_US[1:, : level + 1] != ids_US[:-1, : level + 1]).any(axis=1)]
            first = np.flatnonzero(is_new)
            starts = np.searchsorted(parent_U[first], np.arange(parent_U[-1] + 2))
            self.codes.append(torch.from_numpy(ids_US[first, level].astype(np.int64)))
            self.starts.append(torch.from_numpy(starts))
            self.widths.append(int(np.diff(starts).max()))
            parent_U = np.cumsum(is_new) - 1
        self.bucket = np.concatenate([[0], np.cumsum(np.bincount(self.id_of_item, minlength=self.n_ids))])

    def to(self, device: str) -> Self:
        """The same trie with its tables on a device."""
        moved = copy.copy(self)
        moved.codes, moved.starts = [x.to(device) for x in self.codes], [x.to(device) for x in self.starts]
        moved.ids_US = self.ids_US.to(device)
        return moved

    def children(self, level: int, prefix_M: Tensor) -> tuple[Tensor, Tensor]:
        """Prefixes int64 (M, W) of `level` that continue prefixes of the level before, and which there are, bool (M, W).

        prefix_M: int64. At level 0 there is one prefix to continue, 0, the empty one.
        """
        begin_M1 = self.starts[level][prefix_M].unsqueeze(1)
        child_MW = begin_M1 + torch.arange(self.widths[level], device=prefix_M.device)
        is_there = child_MW < self.starts[level][prefix_M + 1].unsqueeze(1)
        return torch.where(is_there, child_MW, begin_M1), is_there

    def numbers(self, codes_MS: Tensor) -> Tensor:
        """As `find`, on the device of the tables: int64 (M,) of int64 (M, S). Raises ValueError where the codes of all levels
        have too many combinations for int64."""
        n_codes = [int(codes.max()) + 1 for codes in self.codes]
        if math.prod(n_codes) >= 1 << 63:
            raise ValueError(f"levels of {n_codes} codes have too many combinations to be numbered")
        radix_S = torch.tensor([math.prod(n_codes[level + 1 :]) for level in range(self.n_levels)], device=codes_MS.device)
        is_inside = (codes_MS < torch.tensor(n_codes, device=codes_MS.device)).all(1)
        key_M, known_U = (codes_MS * radix_S).sum(1), (self.ids_US * radix_S).sum(1)
        number_M = torch.searchsorted(known_U, key_M).clamp(max=self.n_ids - 1)
        return torch.where(is_inside & (known_U[number_M] == key_M), number_M, -1)

    def find(self, codes_MS: np.ndarray) -> np.ndarray:
        """int64 (M,): the number of each ID of codes int (M, S), -1 where the catalogue has no such ID."""
        known = self.ids_US.cpu().numpy()
        both, row = np.unique(np.concatenate([known, codes_MS]), axis=0, return_inverse=True)
        number = np.full(len(both), -1, np.int64)
        number[row.reshape(-1)[: len(known)]] = np.arange(len(known))
        return np.asarray(number[row.reshape(-1)[len(known) :]])
