"""RQ-VAE as a fit like the others: a network before the codebooks, which then quantise what it makes of the vectors."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from kvtools.onerec.semantic_ids.nearest import Filter
from kvtools.onerec.semantic_ids.rqkmeans import Rows, Step
from kvtools.onerec.semantic_ids.rqvae import RqVae, Settings, decode, fit_rqvae


@dataclass
class AutoEncoder:
    """A fit, and afterwards its result, as RqKMeans has it; codebooks are of the latent space. Holds all rows."""

    n_levels: int
    n_codes: int
    n_epochs: int
    seed: int
    tell: Callable[[int, float], None]
    codebooks: list[np.ndarray] = field(default_factory=list)
    reseeds: list[int] = field(default_factory=list)  # a level; dead codes are moved in training, and not counted
    mse: float = math.nan
    found: RqVae | None = None
    x_ND: np.ndarray | None = None

    @property
    def codebooks_LKD(self) -> np.ndarray:
        return np.stack(self.codebooks)

    @property
    def codes_NL(self) -> np.ndarray:
        assert self.found is not None, "after the fit"
        return self.found.codes

    def fit(self, rows: Rows, _chosen: Filter) -> Iterator[Step]:
        """Train; one step, at the end. Raises ValueError for fewer rows than codes, and for a loss that is not finite."""
        if len(rows) < self.n_codes:
            raise ValueError(f"{len(rows)} rows found, at least one for each of {self.n_codes} codes expected")
        self.x_ND = np.concatenate([block_BD for _, block_BD in rows])
        settings = replace(Settings(), n_epochs=self.n_epochs)
        self.found = fit_rqvae(self.x_ND, self.n_levels, self.n_codes, settings=settings, seed=self.seed, tell=self.tell)
        self.codebooks = list(self.found.codebooks)
        self.reseeds = [0] * self.n_levels
        self.mse = self.error(self.found.codes)
        yield Step(0, self.n_epochs, self.mse, len(rows), 0)

    def error(self, codes_NL: np.ndarray) -> float:
        """The mean squared error a dimension of the rows as these codes tell them."""
        assert self.found is not None, "after the fit"
        assert self.x_ND is not None, "after the fit"
        rebuilt_ND = decode(codes_NL, self.codebooks_LKD, self.found.weights)
        return float(np.square(self.x_ND - rebuilt_ND, dtype=np.float64).mean())

    def last_of(self, rows_P: np.ndarray) -> np.ndarray:
        """What the last level quantises of some rows (P, E)."""
        assert self.found is not None, "after the fit"
        left_PE = self.found.latents[rows_P]
        for codebook_KE, codes_N in zip(self.codebooks[:-1], self.found.codes.T, strict=False):
            left_PE = left_PE - codebook_KE[codes_N[rows_P]]
        return np.asarray(left_PE)
