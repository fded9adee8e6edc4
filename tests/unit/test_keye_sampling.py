"""The sets that temperature, top-k and top-p leave, against the obvious way, and where a draw falls in them."""

import numpy as np
import pytest
import torch

from kvtools.keye.model.sampling import SamplingConfig, candidates, sample_tokens

NOTHING = torch.empty(0, dtype=torch.long)


def slow_candidates(logits, temperature, top_k, top_p):
    """The set and its probabilities, the obvious way: sorted by probability, ties by id."""
    probs = np.exp((np.float64(logits) - np.max(logits)) / temperature)
    order = sorted(range(len(logits)), key=lambda i: (-probs[i], i))[: top_k or len(logits)]
    total, kept, sum_before = sum(probs[i] for i in order), [], 0.0
    for i in order:
        if kept and sum_before >= (top_p - 1e-12) * total:  # 27 of 30 equal ones are 0.9
            break
        kept.append(i)
        sum_before += probs[i]
    return {i: probs[i] / sum(probs[j] for j in kept) for i in kept}


@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 30, 64])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_truncated_sets_are_exact_with_ties_to_the_lower_id(top_k, top_p):
    rng = np.random.default_rng(top_k)
    smooth, stepped = rng.normal(0, 2, (6, 30)), rng.integers(0, 3, (6, 30))  # the second is full of ties
    logits = np.concatenate([smooth, stepped, np.zeros((1, 30))]).astype(np.float32)
    ids, probs = candidates(torch.from_numpy(logits), SamplingConfig(1.0, top_k, top_p))
    for row, (_, probs_K) in enumerate(zip(logits, probs, strict=True)):
        names = range(30) if ids is None else ids[row].tolist()
        found = {i: x for i, x in zip(names, probs_K.tolist(), strict=True) if x > 0}
        expected = slow_candidates(logits[row], 1.0, top_k, top_p)
        assert set(found) == set(expected)
        assert [found[i] for i in expected] == pytest.approx(list(expected.values()))


def test_a_draw_falls_where_its_number_says_and_never_outside():
    logits = torch.tensor([[2.0, 1.0, -torch.inf, 1.0, -torch.inf]]).repeat(5, 1)
    probs = logits[0].double().softmax(0)
    edges = [0.0, float(probs[0]) - 1e-9, float(probs[0]) + 1e-9, float(probs[0] + probs[1]) + 1e-9, 1 - 2**-53]
    drawn = sample_tokens(logits, SamplingConfig(1.0), torch.tensor(edges, dtype=torch.float64), NOTHING)
    assert drawn.tokens_B.tolist() == [0, 0, 1, 3, 3]
    narrow = sample_tokens(logits, SamplingConfig(1.0, 4, 0.99), torch.tensor(edges, dtype=torch.float64), NOTHING)
    assert narrow.tokens_B.tolist() == [0, 0, 1, 3, 3]
