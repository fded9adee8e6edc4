"""GRPO, ECPO, GBPO and GSPO: gradients worked out by hand, finite differences, and advantages of groups."""

import math

import numpy as np
import pytest
import torch

from kvtools.train.objectives.policy import ecpo, gbpo, group_advantages, grpo, gspo, kl_k3, per_answer

CLIP, DELTA = 0.2, 0.1
BOUND = 1 + CLIP + DELTA


def objective(name, logp, old, advantages):
    if name == "gbpo":
        return gbpo(logp, old, advantages)
    return grpo(logp, old, advantages, clip=CLIP) if name == "grpo" else ecpo(logp, old, advantages, clip=CLIP, delta=DELTA)


def multiplier(name, p, old_p, advantage):
    """The factor of the gradient of log p when the objective is maximised."""
    logp = torch.tensor(math.log(p), dtype=torch.float64, requires_grad=True)
    old, advantage = (torch.tensor(x, dtype=torch.float64) for x in (math.log(old_p), advantage))
    (gradient,) = torch.autograd.grad(objective(name, logp, old, advantage).loss, logp)
    return -float(gradient)


# the rows of the table of cases: the sign of A, the ratio of p to the old p, and the factor of each objective
ROWS = [
    ("A > 0, ratio <= 1 + clip", 1.0, (0.3, 0.7, 1.0, 1.15), lambda r, A, p, old: (r * A, r * A, min(r, 1) * A)),
    ("A > 0, ratio > 1 + clip", 1.0, (1.25, 1.5, 4.0), lambda r, A, p, old: (0, 0, A)),
    ("A < 0, ratio < 1 - clip", -1.0, (0.1, 0.5, 0.79), lambda r, A, p, old: (0, 0, A * p / max(old, 1 - p))),
    ("A < 0, ratio within", -1.0, (0.81, 1.0, 1.29), lambda r, A, p, old: (r * A, r * A, A * p / max(old, 1 - p))),
    ("A < 0, ratio beyond", -1.0, (1.31, 2.0, 5.0), lambda r, A, p, old: (r * A, BOUND * A, A * p / max(old, 1 - p))),
]  # fmt: skip


@pytest.mark.parametrize(("sign", "ratios", "factors"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("size", [0.4, 1.0, 2.5])
def test_the_factor_of_the_gradient_is_that_of_the_table(sign, ratios, factors, size):
    for ratio in ratios:
        for old in (1e-4, 0.01, 0.15):
            p, advantage = ratio * old, sign * size
            got = [multiplier(name, p, old, advantage) for name in ("grpo", "ecpo", "gbpo")]
            assert got == pytest.approx(factors(ratio, advantage, p, old), rel=1e-9, abs=1e-12)


def test_gbpo_is_bounded_where_an_answer_is_nearly_certain():
    # at p = 0.9 and A < 0 the factor is p / max(old, 1 - p), that of binary cross-entropy
    assert multiplier("gbpo", 0.9, 0.05, -1.0) == pytest.approx(-0.9 / 0.1)
    assert multiplier("gbpo", 0.9, 0.6, -1.0) == pytest.approx(-0.9 / 0.6)
    certain = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(gbpo(certain, torch.tensor(-0.5), torch.tensor(-1.0)).loss, certain)
    assert torch.isfinite(gradient)


def test_ecpo_reports_what_it_bounds_as_clipped():
    logp = torch.tensor([0.05, 0.3, 0.9, -0.9])
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    assert ecpo(logp, torch.zeros(4), advantages, clip=CLIP, delta=DELTA).is_clipped.tolist() == [False, True, True, True]
    assert grpo(logp, torch.zeros(4), advantages, clip=CLIP).is_clipped.tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", ["grpo", "gspo", "kl"])
def test_gradients_equal_finite_differences(name):
    # of those objectives whose old probability does not follow the policy
    torch.manual_seed(0)
    logp = (-torch.rand(6, 5, dtype=torch.float64) * 4).requires_grad_()
    old, advantages = logp.detach() + 0.3 * torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    mask = torch.rand(6, 5) < 0.8

    def total(x):
        if name == "gspo":
            return gspo(x, old, advantages, mask, clip=CLIP).loss.sum()
        values = kl_k3(x, old) if name == "kl" else grpo(x, old, advantages[:, None], clip=CLIP, clip_high=0.28).loss
        return per_answer(values, mask).sum()

    assert torch.autograd.gradcheck(total, (logp,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", ["ecpo", "gbpo"])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gradients_equal_finite_differences_with_the_raised_old_probability_held(name, advantage):
    torch.manual_seed(1)
    logp = -torch.rand(40, dtype=torch.float64) * 3
    old, advantages = logp + torch.randn(40, dtype=torch.float64), torch.full((40,), advantage, dtype=torch.float64)
    floor = logp - math.log(BOUND)
    if name == "gbpo":
        floor = logp if advantage > 0 else torch.log(1 - logp.exp())
    held = torch.maximum(old, floor)

    def value(x):
        ratio = (x - held).exp()
        kept = ratio if name == "gbpo" else torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        return -(kept * advantages if name == "gbpo" else kept)

    x = logp.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(name, x, old, advantages).loss.sum(), x)
    step = 1e-6
    assert gradient.numpy() == pytest.approx(((value(logp + step) - value(logp - step)) / (2 * step)).numpy(), abs=1e-6)


def test_on_policy_ecpo_is_reinforce_with_normalised_advantages():
    torch.manual_seed(2)
    weights = torch.randn(8, 50, dtype=torch.float64, requires_grad=True)
    choice = torch.randint(0, 50, (8, 16))
    advantages = torch.from_numpy(group_advantages(np.random.default_rng(0).random((8, 16)))[0])
    logp = weights.log_softmax(1).gather(1, choice)
    (of_ecpo,) = torch.autograd.grad(ecpo(logp, logp.detach(), advantages, clip=CLIP, delta=DELTA).loss.sum(), weights)
    (of_reinforce,) = torch.autograd.grad(-(weights.log_softmax(1).gather(1, choice) * advantages).sum(), weights)
    assert torch.allclose(of_ecpo, of_reinforce, rtol=0, atol=1e-12)


def test_advantages_have_mean_0_and_std_1_within_a_group():
    advantages, has_none = group_advantages(np.random.default_rng(0).normal(5, 3, (20, 9)))
    assert not has_none.any()
    assert advantages.mean(1) == pytest.approx(np.zeros(20), abs=1e-12)
    assert advantages.std(1) == pytest.approx(np.ones(20))


def test_groups_without_a_difference_or_with_nan_have_no_advantages_and_are_told():
    rewards = np.array([[1.0, 1, 1], [0.1 + 0.2, 0.3, 0.3], [0, np.nan, 1], [0, np.inf, 1], [0, 0, 1], [1e-6, 2e-6, 3e-6]])
    advantages, has_none = group_advantages(rewards)
    assert has_none.tolist() == [True, True, True, True, False, False]
    assert not advantages[:4].any()
    assert advantages[4] == pytest.approx([-math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2)])


def test_answers_left_out_count_in_no_mean():
    rewards, kept = np.array([[0.0, 1.0, np.nan, 7.0], [1.0, 2.0, 3.0, 4.0]]), np.array([[1, 1, 0, 0], [0, 0, 0, 1]], bool)
    advantages, has_none = group_advantages(rewards, kept)
    assert advantages.tolist() == [[-1, 1, 0, 0], [0, 0, 0, 0]]
    assert has_none.tolist() == [False, True]


def test_a_masked_position_may_hold_an_infinity():
    logp = torch.tensor([[-1.0, -math.inf], [-2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[1, 0], [1, 1]])
    mean = per_answer(logp, mask)
    mean.sum().backward()
    assert mean.tolist() == [-1.0, -2.5]
    assert torch.isfinite(logp.grad).all()
