"""RQ-VAE, the baseline RQ-KMeans is compared with: an autoencoder whose latent is quantised level by level on residuals.

Source: OneRec Technical Report (arXiv 2506.13695 v4) table 11 compares with it; widths 512-256-128 to 32, commitment 0.25
and k-means initialisation as TIGER has them. Not found, so our choice: AdamW and its rate, and dead codes: at the end of an
epoch a code no row took is moved onto a random residual of the last batch, except after the last fifth of the epochs began.
The reconstruction loss is the mean square in the input space, a dimension. Runs repeat bit for bit for the same seed,
machine, torch and number of threads.

Not here: Sinkhorn or uniqueness tricks. Legend: N rows, B a batch, D width, E latent width, L levels, K codes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf

from kvtools.chance import rng_for, seed_for

_SAMPLE_ROWS = 20_000  # from which codebooks are initialised
_LLOYD_STEPS = 10


@dataclass(frozen=True)
class Settings:
    """How the autoencoder is built and trained."""

    hidden: tuple[int, ...] = (512, 256, 128)
    n_latent: int = 32
    beta: float = 0.25
    n_batch: int = 1024
    n_epochs: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class RqVae:
    """codes int32 (N, L), codebooks float32 (L, K, E), latents float32 (N, E), reconstruction float32 (N, D), the mean
    reconstruction loss of each epoch, and the networks' weights, `encoder.…` and `decoder.…`.
    """

    codes: np.ndarray
    codebooks: np.ndarray
    latents: np.ndarray
    reconstruction: np.ndarray
    losses: list[float]
    weights: dict[str, np.ndarray]


def nearest(r_BE: torch.Tensor, codebook_KE: torch.Tensor) -> torch.Tensor:
    """Nearest code of each row, squared Euclidean in float64; ties to the lower index."""
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


def fit_rqvae(
    x_ND: np.ndarray,
    n_levels: int,
    n_codes: int,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    tell: Callable[[int, float], None] = lambda _epoch, _loss: None,
) -> RqVae:
    """Train, then code all rows in one last pass.

    tell: called after each epoch with its number, from 0, and its loss. Raises ValueError for values that are not finite,
    fewer rows than codes, and, naming the epoch, a loss that is not finite.
    """
    settings = settings or Settings()
    if x_ND.ndim != 2 or len(x_ND) < n_codes:
        raise ValueError(f"an array of shape {x_ND.shape} found, a row at least for each of {n_codes} codes expected")
    if not np.isfinite(x_ND).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(x_ND).all(1)))}: NaN or inf found, finite numbers expected")
    x = torch.from_numpy(x_ND.astype(np.float32))
    widths = [x.shape[1], *settings.hidden, settings.n_latent]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "rq-vae", "weights"))
        encoder, decoder = _mlp(widths), _mlp(widths[::-1])
    sample = rng_for(seed, "rq-vae", "sample").permutation(len(x))[: max(_SAMPLE_ROWS, n_codes)]
    with torch.no_grad():
        codebooks_LKE = nn.Parameter(_first_codebooks(encoder(x[torch.from_numpy(sample)]), n_levels, n_codes, seed))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    groups: list[dict[str, Any]] = [{"params": parameters}, {"params": [codebooks_LKE], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses: list[float] = []
    for epoch in range(settings.n_epochs):
        chance = rng_for(seed, "rq-vae", "epoch", epoch)
        total, used_LK = 0.0, torch.zeros(n_levels, n_codes, dtype=torch.bool)
        for rows_B in torch.split(torch.from_numpy(chance.permutation(len(x))), settings.n_batch):
            x_BD = x[rows_B]
            z_BE = encoder(x_BD)
            codes_BL, chosen_BLE, residuals_BLE = quantise(z_BE, codebooks_LKE)
            mse = nf.mse_loss(decoder(straight_through(z_BE, chosen_BLE.sum(1))), x_BD)
            pull = (chosen_BLE - residuals_BLE.detach()).square().sum((1, 2)).mean()
            commitment = (residuals_BLE - chosen_BLE.detach()).square().sum((1, 2)).mean()
            # the squared error of a row, not of a dimension: else the quantiser would outweigh it D times
            loss = mse * x.shape[1] + pull + settings.beta * commitment
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(mse.detach()) * len(rows_B)
            used_LK[torch.arange(n_levels), codes_BL] = True
        losses.append(total / len(x))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"epoch {epoch}: a loss of {losses[-1]} found, a finite one expected")
        if epoch < settings.n_epochs * 4 // 5:
            _revive(codebooks_LKE, used_LK, residuals_BLE.detach(), chance)
        tell(epoch, losses[-1])
    with torch.no_grad():
        z_NE = encoder(x)
        codes_NL, chosen_NLE, _ = quantise(z_NE, codebooks_LKE)
        found_ND = decoder(chosen_NLE.sum(1))
    codes = codes_NL.numpy().astype(np.int32)
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).state_dict()
    weights = {name: array.numpy().copy() for name, array in both.items()}
    return RqVae(codes, codebooks_LKE.detach().numpy(), z_NE.numpy(), found_ND.numpy(), losses, weights)


def latents_of(x_ND: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the codebooks quantise, float32 (N, E), of rows by networks trained before. Raises ValueError for another width."""
    return _through("encoder", x_ND, weights)


def decode(codes_NL: np.ndarray, codebooks_LKE: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows as their codes tell them, float32 (N, D)."""
    levels = range(len(codebooks_LKE))
    return _through("decoder", np.sum([codebooks_LKE[level][codes_NL[:, level]] for level in levels], axis=0), weights)


def _through(network: str, x_ND: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    layers = sorted(
        (int(name.split(".")[1]), name.removesuffix(".weight"))
        for name in weights
        if name.startswith(f"{network}.") and name.endswith(".weight")
    )
    if x_ND.shape[1] != weights[f"{layers[0][1]}.weight"].shape[1]:
        n_width = weights[f"{layers[0][1]}.weight"].shape[1]
        raise ValueError(f"width {x_ND.shape[1]} found, {n_width} expected, as the networks were trained on")
    h_NH = torch.from_numpy(np.ascontiguousarray(x_ND, np.float32))
    for number, (_, name) in enumerate(layers):
        weight, bias = torch.tensor(weights[f"{name}.weight"]), torch.tensor(weights[f"{name}.bias"])
        h_NH = nf.linear(h_NH if number == 0 else h_NH.relu(), weight, bias)
    return h_NH.numpy()


def _revive(
    codebooks_LKE: nn.Parameter, used_LK: torch.Tensor, residuals_BLE: torch.Tensor, chance: np.random.Generator
) -> None:
    with torch.no_grad():
        for level, used_K in enumerate(used_LK):
            dead = (~used_K).nonzero().ravel()
            rows = torch.from_numpy(chance.integers(0, len(residuals_BLE), len(dead)))
            codebooks_LKE[level, dead] = residuals_BLE[rows, level]
