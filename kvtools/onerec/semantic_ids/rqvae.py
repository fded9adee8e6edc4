"""RQ-VAE, the baseline that RQ-KMeans is compared with: an autoencoder whose latent is quantised level by level on residuals.

Source: OneRec Technical Report (arXiv 2506.13695 v4) table 11 compares with it; widths 512-256-128 to 32, commitment 0.25
and k-means initialisation as TIGER has them. The rest is not in the sources and our choice: AdamW and its learning rate, and
dead codes: at the end of an epoch a code that no row took is moved onto a random residual of the last batch, except in the
last fifth of the epochs. The reconstruction loss is the mean square in the input space, a dimension. Runs repeat bit for bit
for the same seed, machine, torch and number of threads.

Not here: Sinkhorn or uniqueness tricks. Legend: N rows, B a batch, P picked rows, D width, E latent width, L levels, K codes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf

from kvtools.chance import rng_for, seed_for
from kvtools.onerec.semantic_ids import collisions
from kvtools.onerec.semantic_ids.exact_sums import Ranks, Vectors
from kvtools.onerec.semantic_ids.nearest import Backend
from kvtools.onerec.semantic_ids.rqkmeans import FitStep, require_rows

PREFIX = "encoder.rq-vae."  # of the networks' weights in a bag

_SAMPLE_ROWS = 20_000  # from which codebooks are initialised
_LLOYD_STEPS = 10


@dataclass(frozen=True)
class RqVaeConfig:
    """How the autoencoder is built and trained."""

    hidden: tuple[int, ...] = (512, 256, 128)
    n_latent: int = 32
    beta: float = 0.25
    n_batch: int = 1024
    n_epochs: int = 200
    lr: float = 1e-3
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Trained:
    """A trained autoencoder, and the rows it was trained on as it sees them."""

    codes_NL: np.ndarray  # int32
    codebooks_LKE: np.ndarray  # float32
    latents_NE: np.ndarray  # float32
    losses: list[float]  # an epoch: the mean reconstruction loss
    weights: dict[str, np.ndarray]  # of the networks, `encoder.…` and `decoder.…`


@dataclass
class RqVae:
    """A fit, and afterwards its result, with what ResidualFit has; codebooks are of the latent space. Holds all rows."""

    is_parallel: ClassVar[bool] = False
    can_resume: ClassVar[bool] = False
    n_levels: int
    n_codes: int
    n_epochs: int
    seed: int
    on_epoch: Callable[[int, float], None]  # called after each epoch with its number, from 0, and its loss
    codebooks: list[np.ndarray] = field(default_factory=list)
    reseeds: list[int] = field(default_factory=list)  # a level; dead codes are moved in training, and not counted
    mse: float = math.nan
    _trained: Trained | None = None
    _x_ND: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @property
    def trained(self) -> Trained:
        """The result of the fit."""
        assert self._trained is not None, "asked after the fit"
        return self._trained

    @property
    def codes_NL(self) -> np.ndarray:
        """int32 (N, L)."""
        return self.trained.codes_NL

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """The networks' weights, under the names they have in a bag."""
        return {PREFIX + name: array for name, array in self.trained.weights.items()}

    def fit(self, vectors: Vectors, _backend: Backend, ranks: Ranks) -> Iterator[FitStep]:
        """Train; one step, at the end. Raises ValueError for fewer rows than codes, and for a loss that is not finite."""
        require_rows(vectors, self.n_codes, ranks)
        self._x_ND = np.concatenate([block_BD for _, block_BD in vectors])
        config = replace(RqVaeConfig(), n_epochs=self.n_epochs)
        self._trained = train_rqvae(
            self._x_ND, self.n_levels, self.n_codes, config=config, seed=self.seed, on_epoch=self.on_epoch
        )
        self.codebooks = list(self._trained.codebooks_LKE)
        self.reseeds = [0] * self.n_levels
        self.mse = self._error(self.codes_NL)
        yield FitStep(0, self.n_epochs, self.mse, len(vectors), 0)

    def move_collisions(self, _residuals: Vectors, codes_NL: np.ndarray, _ranks: Ranks) -> tuple[np.ndarray, float, int]:
        """As ResidualFit has it."""
        rows_P = collisions.colliding(codes_NL)
        last_PE = self.trained.latents_NE[rows_P]
        for codebook_KE, codes_N in zip(self.codebooks[:-1], self.codes_NL.T, strict=False):
            last_PE = last_PE - codebook_KE[codes_N[rows_P]]
        moved_NL, n_stuck = collisions.move(codes_NL, rows_P, last_PE, self.codebooks[-1])
        return moved_NL, self._error(moved_NL), n_stuck

    def _error(self, codes_NL: np.ndarray) -> float:
        """The mean squared error a dimension of the rows as these codes reconstruct them."""
        rebuilt_ND = decode(codes_NL, self.trained.codebooks_LKE, self.trained.weights)
        return float(np.square(self._x_ND - rebuilt_ND, dtype=np.float64).mean())


def nearest(r_BE: torch.Tensor, codebook_KE: torch.Tensor) -> torch.Tensor:
    """int64 (B,): the nearest code of each row, squared Euclidean in float64; ties to the lower index."""
    r_BE, codebook_KE = r_BE.detach().double(), codebook_KE.detach().double()
    distance_BK = codebook_KE.square().sum(1) - 2 * r_BE @ codebook_KE.T
    return distance_BK.argmin(1)


def straight_through(z_BE: torch.Tensor, quantised_BE: torch.Tensor) -> torch.Tensor:
    """The quantised values, with the gradient of z."""
    return z_BE + (quantised_BE - z_BE).detach()


def quantise(z_BE: torch.Tensor, codebooks_LKE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (B, L), what each level chose (B, L, E) and the residuals it chose for (B, L, E)."""
    codes, chosen, residuals, r_BE = [], [], [], z_BE
    for codebook_KE in codebooks_LKE:
        codes.append(nearest(r_BE, codebook_KE))
        chosen.append(codebook_KE[codes[-1]])
        residuals.append(r_BE)
        r_BE = r_BE - chosen[-1].detach()
    return torch.stack(codes, 1), torch.stack(chosen, 1), torch.stack(residuals, 1)


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _first_codebooks(z_NE: torch.Tensor, n_levels: int, n_codes: int, seed: int) -> torch.Tensor:
    """A few Lloyd steps on the residuals of each level, from random rows."""
    r_NE, codebooks = z_NE, []
    for level in range(n_levels):
        rows = rng_for(seed, "rq-vae", "codebook", level).choice(len(r_NE), n_codes, replace=False)
        codebook_KE = r_NE[torch.from_numpy(rows)].clone()
        for _ in range(_LLOYD_STEPS):
            codes_N = nearest(r_NE, codebook_KE)
            counts_K1 = torch.bincount(codes_N, minlength=n_codes).unsqueeze(1)
            sums_KE = torch.zeros_like(codebook_KE).index_add_(0, codes_N, r_NE)
            codebook_KE = torch.where(counts_K1 > 0, sums_KE / counts_K1.clamp(min=1), codebook_KE)
        r_NE = r_NE - codebook_KE[nearest(r_NE, codebook_KE)]
        codebooks.append(codebook_KE)
    return torch.stack(codebooks)


def train_rqvae(
    x_ND: np.ndarray,
    n_levels: int,
    n_codes: int,
    *,
    config: RqVaeConfig | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] = lambda _epoch, _loss: None,
) -> Trained:
    """Train, then code all rows in one last pass.

    x_ND: float32, finite. on_epoch: called after each epoch with its number, from 0, and its loss. Raises ValueError for
    values that are not finite, fewer rows than codes, and, naming the epoch, a loss that is not finite.
    """
    config = config or RqVaeConfig()
    if x_ND.ndim != 2 or len(x_ND) < n_codes:
        raise ValueError(f"vectors of shape {x_ND.shape} are too few for {n_codes} codes")
    if not np.isfinite(x_ND).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(x_ND).all(1)))} holds NaN or infinity")
    x = torch.from_numpy(x_ND.astype(np.float32))
    widths = [x.shape[1], *config.hidden, config.n_latent]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "rq-vae", "weights"))
        encoder, decoder = _mlp(widths), _mlp(widths[::-1])
    sample = rng_for(seed, "rq-vae", "sample").permutation(len(x))[: max(_SAMPLE_ROWS, n_codes)]
    with torch.no_grad():
        codebooks_LKE = nn.Parameter(_first_codebooks(encoder(x[torch.from_numpy(sample)]), n_levels, n_codes, seed))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    groups: list[dict[str, Any]] = [{"params": parameters}, {"params": [codebooks_LKE], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    losses: list[float] = []
    for epoch in range(config.n_epochs):
        rng = rng_for(seed, "rq-vae", "epoch", epoch)
        total, used_LK = 0.0, torch.zeros(n_levels, n_codes, dtype=torch.bool)
        for rows_B in torch.split(torch.from_numpy(rng.permutation(len(x))), config.n_batch):
            mse, loss, codes_BL, residuals_BLE = _losses(x[rows_B], encoder, decoder, codebooks_LKE, config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(mse.detach()) * len(rows_B)
            used_LK[torch.arange(n_levels), codes_BL] = True
        losses.append(total / len(x))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss of epoch {epoch} is {losses[-1]}")
        if epoch < config.n_epochs * 4 // 5:
            _revive(codebooks_LKE, used_LK, residuals_BLE.detach(), rng)
        on_epoch(epoch, losses[-1])
    with torch.no_grad():
        latents_NE = encoder(x)
        codes_NL = quantise(latents_NE, codebooks_LKE)[0].numpy().astype(np.int32)
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).state_dict()
    weights = {name: array.numpy().copy() for name, array in both.items()}
    return Trained(codes_NL, codebooks_LKE.detach().numpy(), latents_NE.numpy(), losses, weights)


def _losses(
    x_BD: torch.Tensor, encoder: nn.Module, decoder: nn.Module, codebooks_LKE: torch.Tensor, config: RqVaeConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reconstruction loss, the loss that is minimised, codes (B, L) and the residuals that they were chosen for."""
    z_BE = encoder(x_BD)
    codes_BL, chosen_BLE, residuals_BLE = quantise(z_BE, codebooks_LKE)
    mse = nf.mse_loss(decoder(straight_through(z_BE, chosen_BLE.sum(1))), x_BD)
    pull = (chosen_BLE - residuals_BLE.detach()).square().sum((1, 2)).mean()
    commitment = (residuals_BLE - chosen_BLE.detach()).square().sum((1, 2)).mean()
    # the squared error of a row, not of a dimension: else the quantiser would outweigh it D times
    return mse, mse * x_BD.shape[1] + pull + config.beta * commitment, codes_BL, residuals_BLE


def latents_of(x_ND: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 (N, E): what the codebooks quantise, of rows (float32), by networks trained before. Raises ValueError for another
    width than theirs."""
    return _apply("encoder", x_ND, weights)


def decode(codes_NL: np.ndarray, codebooks_LKE: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 (N, D): rows as their codes reconstruct them."""
    levels = range(len(codebooks_LKE))
    return _apply("decoder", np.sum([codebooks_LKE[level][codes_NL[:, level]] for level in levels], axis=0), weights)


def _apply(network: str, x_ND: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    layers = sorted(
        (int(name.split(".")[1]), name.removesuffix(".weight"))
        for name in weights
        if name.startswith(f"{network}.") and name.endswith(".weight")
    )
    if x_ND.shape[1] != weights[f"{layers[0][1]}.weight"].shape[1]:
        n_width = weights[f"{layers[0][1]}.weight"].shape[1]
        raise ValueError(f"vectors are {x_ND.shape[1]} wide, and the networks were trained on a width of {n_width}")
    h_NH = torch.from_numpy(np.ascontiguousarray(x_ND, np.float32))
    for number, (_, name) in enumerate(layers):
        weight, bias = torch.tensor(weights[f"{name}.weight"]), torch.tensor(weights[f"{name}.bias"])
        h_NH = nf.linear(h_NH if number == 0 else h_NH.relu(), weight, bias)
    return h_NH.numpy()


def _revive(codebooks_LKE: nn.Parameter, used_LK: torch.Tensor, residuals_BLE: torch.Tensor, rng: np.random.Generator) -> None:
    """Move the codes that no row took onto random residuals of a batch."""
    with torch.no_grad():
        for level, used_K in enumerate(used_LK):
            dead = (~used_K).nonzero().ravel()
            rows = torch.from_numpy(rng.integers(0, len(residuals_BLE), len(dead)))
            codebooks_LKE[level, dead] = residuals_BLE[rows, level]
