"""IDs for new items by codebooks that stand: old codes never change, and vectors stream through."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kvtools.artifact import Bag
from kvtools.artifact.strings import unpack
from kvtools.errors import Corrupt
from kvtools.onerec.semantic_ids import collisions, quality
from kvtools.onerec.semantic_ids.aligning import lens_of
from kvtools.onerec.semantic_ids.method import SemanticIds
from kvtools.onerec.semantic_ids.nearest import Codebook, fastest
from kvtools.onerec.semantic_ids.rqkmeans import encode
from kvtools.onerec.semantic_ids.rqvae import decode, latents_of

_NETWORKS = "encoder.rq-vae."


@dataclass(frozen=True)
class Encoder:
    """Codebooks float32 (L, K, D), and the items that have IDs already: keys, codes int32 (M, S)."""

    name: str
    codebooks_LKD: np.ndarray
    keys: list[str]
    codes_MS: np.ndarray
    config: dict[str, Any]
    history: list[dict[str, Any]]
    weights: dict[str, np.ndarray]  # of what comes before the codebooks, and how it is made
    encoder: dict[str, Any] | None
    lens: Callable[[np.ndarray], np.ndarray] | None  # what aligns vectors
    networks: dict[str, np.ndarray]  # of rq-vae

    @classmethod
    def of(cls, bag: Any, name: str) -> Self:
        """From a `semantic-id` bag. Raises Corrupt for another artifact."""
        if not isinstance(bag, Bag) or bag.kind != "semantic-id":
            kind = bag.kind if isinstance(bag, Bag) else bag.head.kind
            raise Corrupt(f"{name}: {kind or 'a foreign bag'} found, semantic-id expected. Make one with semid-build.")
        codes_MS = bag.tensors["codes"].astype(np.int32)
        return cls(
            name,
            bag.tensors["codebooks"],
            unpack("keys", bag.tensors),
            codes_MS,
            bag.fields["config"],
            bag.history,
            {tensor: array for tensor, array in bag.tensors.items() if tensor.startswith("encoder.")},
            bag.fields.get("encoder"),
            lens_of(bag.tensors, bag.fields),
            {name.removeprefix(_NETWORKS): array for name, array in bag.tensors.items() if name.startswith(_NETWORKS)},
        )

    def encode(self, blocks: Iterable[np.ndarray], *, device: str, way_out: str, is_appended: bool) -> SemanticIds:
        """IDs of the vectors, after those of the old items where they are appended, and the report on them.

        way_out: what to do about collisions, as in `semid-build`; old items, where appended to, keep their codes. Holds
        the last level's residuals only where items may move. Raises Corrupt for another width, or tokens that disagree.
        """
        n_levels, n_codes, n_width = self.codebooks_LKD.shape
        chosen = fastest(device, n_width, n_codes)
        searches = [Codebook(codebook_KD, chosen) for codebook_KD in self.codebooks_LKD]
        codes, lefts, square = [np.empty((0, n_levels), np.int32)], [np.empty((0, n_width), np.float32)], 0.0
        n_numbers = 0
        for raw_BD in blocks:
            x_BD, latent_BD = self._seen(raw_BD)
            codes_BL, left_BD = encode(latent_BD, searches)
            codes.append(codes_BL)
            apart_BD = left_BD if not self.networks else x_BD - decode(codes_BL, self.codebooks_LKD, self.networks)
            square += float(np.square(apart_BD, dtype=np.float64).sum())
            n_numbers += x_BD.size
            if way_out == "nearest":
                lefts.append(left_BD)
        codes_NL = np.concatenate(codes)
        old_MS = self.codes_MS if is_appended else self.codes_MS[:0]
        codes_NS = codes_NL
        told: dict[str, int] = {}
        if way_out == "extend":
            if is_appended and old_MS.shape[1] != n_levels + 1:
                raise Corrupt(f"{self.name}: IDs without a further token found, as --collisions extend makes them expected.")
            codes_NS = collisions.extend(codes_NL, old_MS if is_appended else None)
        elif is_appended and old_MS.shape[1] != n_levels:
            raise Corrupt(f"{self.name}: IDs with a further token found. Give --collisions extend.")
        elif way_out == "nearest":
            codes_NS, square, told = self._move(codes_NL, old_MS, np.concatenate(lefts), square)
        whole_NS = np.concatenate([old_MS, codes_NS]) if is_appended else codes_NS
        mse = square / n_numbers
        report = {**self.config, "collisions": way_out, "dim": n_width, "mse": mse, **told}
        report |= quality.describe(whole_NS, n_levels, n_codes)
        return SemanticIds(self.codebooks_LKD, whole_NS, report, self.weights, self.encoder)

    def _seen(self, x_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors as they were quantised, and as the codebooks know them. Raises Corrupt for another width."""
        try:
            x_BD = x_BD if self.lens is None else self.lens(x_BD)
            latent_BD = latents_of(x_BD, self.networks) if self.networks else x_BD
        except ValueError as fault:
            raise Corrupt(f"{self.name}: {fault}.") from None
        n_width = self.codebooks_LKD.shape[2]
        if latent_BD.shape[1] != n_width:
            raise Corrupt(f"{self.name}: codebooks of {n_width} dimensions found, {x_BD.shape[1]} as the vectors expected.")
        return x_BD, latent_BD

    def _move(
        self, codes_NL: np.ndarray, old_ML: np.ndarray, left_ND: np.ndarray, square: float
    ) -> tuple[np.ndarray, float, dict[str, int]]:
        together = np.concatenate([old_ML, codes_NL])
        rows_P = collisions.colliding(together, len(old_ML))
        mine_P = rows_P - len(old_ML)
        codebook_KD = self.codebooks_LKD[-1]
        last_PD = left_ND[mine_P].astype(np.float64) + codebook_KD[codes_NL[mine_P, -1]]
        moved, n_stuck = collisions.move(together, rows_P, last_PD, codebook_KD)
        square += float(np.square(last_PD - codebook_KD[moved[rows_P, -1]]).sum())
        square -= float(np.square(left_ND[mine_P], dtype=np.float64).sum())
        codes_NS = moved[len(old_ML) :]
        return codes_NS, square, {"moved": int((codes_NS != codes_NL).any(axis=1).sum()), "stuck": n_stuck}
