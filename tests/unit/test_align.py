"""Alignment: the loss against a slow one, gradients, masks, seeds, newcomers, and bad inputs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvtools.onerec.semantic_ids.align import AlignConfig, QFormer, align, encode, info_nce, known_positives

SMALL = AlignConfig(n_heads=2, n_hidden=16, n_batch=16, n_steps=8, n_caption=5)


@pytest.fixture
def items():
    return np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


@pytest.fixture
def pairs():
    return np.arange(40).reshape(20, 2)


def test_the_loss_is_the_printed_one():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 6, 5))
    is_known = rng.random((6, 6)) < 0.3
    cosine = lambda x, y: float(x @ y / math.sqrt(x @ x) / math.sqrt(y @ y))
    slow = 0.0
    for i in range(6):
        below = sum(math.exp(cosine(a[i], b[j]) / 0.2) for j in range(6) if i == j or not is_known[i, j])
        slow -= math.log(math.exp(cosine(a[i], b[i]) / 0.2) / below) / 6
    loss = info_nce(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(is_known), 0.2)
    assert float(loss) == pytest.approx(slow, rel=1e-12)


def test_pairs_known_either_way_round_are_no_negatives():
    left, right = np.array([0, 2, 4]), np.array([1, 3, 0])
    found = known_positives(left, right, np.sort(np.array([0 * 9 + 1, 2 * 9 + 3, 4 * 9 + 0, 3 * 9 + 4])), 9)
    assert found.tolist() == [[True, False, True], [False, True, False], [False, True, True]]


@pytest.mark.parametrize("is_printed", [False, True])
def test_gradients_are_the_finite_differences(is_printed):
    torch.manual_seed(0)
    model = QFormer(4, AlignConfig(n_queries=2, n_layers=2, n_heads=2, n_hidden=6, is_printed=is_printed)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda m: model(m, mask), torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True))


def test_padded_tokens_do_not_matter(pairs):
    x = np.random.default_rng(2).normal(size=(40, 3, 8)).astype(np.float32)
    mask = np.ones((40, 3), bool)
    mask[::2, 2] = False
    other = np.where(mask[:, :, None], x, np.nan)
    a, b = (align(tokens, pairs, config=SMALL, mask_NT=mask) for tokens in (x, other))
    assert np.array_equal(a.vectors, b.vectors)
    assert a.losses == b.losses


def test_the_seed_decides(items, pairs):
    a, b, c = (align(items, pairs, config=SMALL, seed=seed).vectors for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_newcomers_are_encoded_as_in_training(items, pairs):
    result = align(items, pairs, config=SMALL, captions=[[i % 3, 1] for i in range(40)])
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (40, 32)
    np.testing.assert_allclose(encode(items[7:9], result.weights, SMALL), result.vectors[7:9], atol=1e-6)


def test_untrained_is_the_content_itself(items, pairs):
    found = align(items, pairs, config=replace(SMALL, n_steps=0)).vectors
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, unit @ unit.T, atol=1e-5)


def test_paired_items_come_together(items, pairs):
    before, after = (align(items, pairs, config=replace(SMALL, n_steps=n, learning_rate=1e-2)).vectors for n in (0, 200))
    nearness = lambda v: float((v[::2] * v[1::2]).sum(1).mean() - (v @ v.T).mean())
    assert nearness(after) > nearness(before) + 0.3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, p: (x[0], p), r"^items have the shape \(8,\), and \(items, width\) or \(items, tokens, width\) is needed$"),
        (lambda x, p: (x, p + 1), "^pairs name items 1 to 40, and there are 40$"),
        (lambda x, p: (x, p[:1]), r"^pairs have the shape \(1, 2\), and \(2 or more, 2\) is needed$"),
        (lambda x, p: (np.where(np.arange(40)[:, None] == 3, np.nan, x), p), "^item 3 holds NaN or infinity$"),
        (lambda x, p: (x[:, :7], p), "^width 7 is not divisible by 2 attention heads$"),
    ],
)
def test_bad_inputs_are_named(items, pairs, change, words):
    with pytest.raises(ValueError, match=words):
        align(*change(items, pairs), config=SMALL)


def test_a_loss_that_is_not_finite_names_its_step(items, pairs):
    with pytest.raises(ValueError, match="^the loss of step 1 is nan$"):
        align(items, pairs, config=replace(SMALL, learning_rate=math.inf))
