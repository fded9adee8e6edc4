"""What a model is given: rows of context and targets, as tensors. Padding is -1 everywhere.

Legend: B rows, P tokens of a pathway, F features, T targets, N neighbours of a target.
`place` is when: the number of an interaction within its user's history; a target sees what has a smaller place. `slot`
tells the learnable position within a pathway.
"""

from dataclasses import dataclass

from torch import Tensor

PAD = -1
ALWAYS = -1  # the place of what every target may see


@dataclass(frozen=True)
class Tokens:
    """Items of one pathway."""

    items: Tensor  # int64 (B, P), or PAD
    places: Tensor  # int64 (B, P)
    slots: Tensor  # int64 (B, P)
    features: Tensor  # int64 (B, P, F): in the order of the model's features, 0 where unknown

    def to(self, device: str) -> "Tokens":
        return Tokens(self.items.to(device), self.places.to(device), self.slots.to(device), self.features.to(device))


@dataclass(frozen=True)
class Batch:
    """Rows for one pass. `near` are neighbours: items (B, T, N) and how alike they are, float32 (B, T, N)."""

    static: Tensor  # int64 (B, U): the user's features
    short: Tokens
    positive: Tokens | None
    lifelong: Tokens | None
    near: tuple[Tensor, Tensor] | None
    targets: Tensor  # int64 (B, T): items, or PAD; at inference PAD everywhere
    target_places: Tensor  # int64 (B, T)
    target_slots: Tensor  # int64 (B, T): how many targets of the row come before

    def to(self, device: str) -> "Batch":
        return Batch(
            self.static.to(device),
            self.short.to(device),
            self.positive.to(device) if self.positive else None,
            self.lifelong.to(device) if self.lifelong else None,
            (self.near[0].to(device), self.near[1].to(device)) if self.near else None,
            self.targets.to(device),
            self.target_places.to(device),
            self.target_slots.to(device),
        )

    @property
    def n_targets(self) -> int:
        return int((self.targets >= 0).sum())
