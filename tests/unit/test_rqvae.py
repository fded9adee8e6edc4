"""RQ-VAE: codes are nearest, gradients pass straight through, seeds decide, training helps, bad inputs are named."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvtools.onerec.semantic_ids.rqvae import RqVaeConfig, decode, nearest, straight_through, train_rqvae

SMALL = RqVaeConfig(hidden=(16,), n_latent=4, n_batch=32, n_epochs=5)


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)


def test_codes_are_the_nearest_in_residual_space(rows):
    result = train_rqvae(rows, 3, 8, config=SMALL)
    left = result.latents_NE.copy()
    for level, codebook in enumerate(result.codebooks_LKE):
        distances = ((left[:, None].astype(np.float64) - codebook.astype(np.float64)) ** 2).sum(2)
        chosen = np.take_along_axis(distances, result.codes_NL[:, level : level + 1], 1)[:, 0]
        np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-9, atol=1e-12)
        left = left - codebook[result.codes_NL[:, level]]


def test_ties_go_to_the_lower_code():
    assert nearest(torch.zeros(2, 2), torch.tensor([[1.0, 1], [0, 1], [1, 0], [0, 1]])).tolist() == [1, 1]


def test_the_gradient_passes_straight_through():
    z = torch.randn(3, 4, requires_grad=True)
    straight_through(z, torch.ones(3, 4)).sum().backward()
    assert torch.equal(z.grad, torch.ones(3, 4))


def test_the_seed_decides(rows):
    a, b, c = (train_rqvae(rows, 2, 8, config=SMALL, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(a.codes_NL, b.codes_NL)
    assert np.array_equal(a.codebooks_LKE, b.codebooks_LKE)
    assert not np.array_equal(a.codebooks_LKE, c.codebooks_LKE)


def test_training_lowers_the_reconstruction_error(rows):
    result = train_rqvae(rows, 2, 8, config=replace(SMALL, n_epochs=100))
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert np.square(decode(result.codes_NL, result.codebooks_LKE, result.weights) - rows).mean() < 0.7 * np.square(rows).mean()


def test_bad_inputs_are_named(rows):
    with pytest.raises(ValueError, match=r"^vectors of shape \(90, 6\) are too few for 91 codes$"):
        train_rqvae(rows, 2, 91, config=SMALL)
    rows[5, 2] = np.inf
    with pytest.raises(ValueError, match="^row 5 holds NaN or infinity$"):
        train_rqvae(rows, 2, 8, config=SMALL)


def test_a_loss_that_is_not_finite_names_its_epoch(rows):
    with pytest.raises(ValueError, match="^the loss of epoch 0 is nan$"):
        train_rqvae(rows, 2, 8, config=replace(SMALL, lr=math.inf))
