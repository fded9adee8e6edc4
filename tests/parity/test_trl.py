"""Objectives of reinforcement learning against trl's, on the same rollouts."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from kvtools.train.objectives.policy import grpo, gspo, kl_k3, per_answer
from kvtools.train.objectives.preference import MpoConfig, mpo

pytest.importorskip("trl")
from trl import DPOTrainer, GRPOTrainer  # noqa: E402

CLIP, CLIP_HIGH, BETA = 0.2, 0.28, 0.04


class Rollouts:
    """Random log-probabilities of a policy, the one that sampled and a reference; every answer has another length."""

    def __init__(self):
        torch.manual_seed(0)
        self.logp = (-3 * torch.rand(12, 9)).requires_grad_()
        self.old = self.logp.detach() + 0.3 * torch.randn(12, 9)
        self.reference = self.logp.detach() + 0.3 * torch.randn(12, 9)
        self.advantages = torch.randn(12)
        self.mask = (torch.arange(9) < torch.randint(1, 10, (12, 1))).long()


def loss_of_trl(rollouts, *, level, beta):
    """What GRPOTrainer computes; its model's forward is replaced by the log-probabilities."""
    accelerator = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x, num_processes=1, sync_gradients=True
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), args=SimpleNamespace(delta=None, use_bias_correction_kl=False), beta=beta,
        importance_sampling_level=level, loss_type="grpo", epsilon_low=CLIP, epsilon_high=CLIP_HIGH, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False, aux_loss_enabled=False,
        current_gradient_accumulation_steps=1, accelerator=accelerator,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (rollouts.logp, torch.zeros_like(rollouts.logp), None),
    )  # fmt: skip
    tokens = torch.zeros_like(rollouts.mask)
    inputs = {
        "prompt_ids": tokens, "prompt_mask": tokens, "completion_ids": tokens, "completion_mask": rollouts.mask,
        "advantages": rollouts.advantages, "old_per_token_logps": rollouts.old, "ref_per_token_logps": rollouts.reference,
    }  # fmt: skip
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, torch.autograd.grad(loss, rollouts.logp)[0], trainer._metrics["train"]


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_grpo_equals_trl(beta):
    rollouts = Rollouts()
    surrogate = grpo(rollouts.logp, rollouts.old, rollouts.advantages[:, None], clip=CLIP, clip_high=CLIP_HIGH)
    kl = kl_k3(rollouts.logp, rollouts.reference)
    loss = per_answer(surrogate.loss + beta * kl, rollouts.mask).mean()
    theirs, gradient, metrics = loss_of_trl(rollouts, level="token", beta=beta)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(torch.autograd.grad(loss, rollouts.logp)[0], gradient)
    clipped = (surrogate.is_clipped * rollouts.mask).sum() / rollouts.mask.sum()
    assert float(clipped) == pytest.approx(metrics["clip_ratio/region_mean"][0])


def test_gspo_equals_trl():
    rollouts = Rollouts()
    loss = gspo(
        rollouts.logp, rollouts.old, rollouts.advantages, rollouts.mask, clip=CLIP, clip_high=CLIP_HIGH
    ).loss.mean()  # fmt: skip
    theirs, gradient, _ = loss_of_trl(rollouts, level="sequence", beta=0.0)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(torch.autograd.grad(loss, rollouts.logp)[0], gradient)


class Pairs:
    """Random logits of a model over better and worse answers, and those of the model that training starts from."""

    def __init__(self, n_pairs, lengths, seed=0):
        torch.manual_seed(seed)
        n_tokens, self.n_pairs = max(lengths), n_pairs
        self.tokens = torch.randint(0, 11, (2 * n_pairs, n_tokens + 1))
        self.logits = torch.randn(2 * n_pairs, n_tokens, 11, requires_grad=True)
        start = self.logits.detach() + 0.5 * torch.randn_like(self.logits)
        lengths_N = torch.tensor(lengths).expand(2 * n_pairs) if len(lengths) == 1 else torch.tensor(lengths)
        self.mask = (torch.arange(n_tokens) < lengths_N[:, None]).long()
        self.logp, self.start = (
            x.log_softmax(-1).gather(2, self.tokens[:, 1:, None])[..., 0] * self.mask for x in (self.logits, start)
        )


def mpo_of_trl(pairs):
    """What DPOTrainer computes with the losses sigmoid, bco_pair and sft; its model's forward is replaced by ours."""
    start_sums = pairs.start.sum(1).chunk(2)
    outputs = SimpleNamespace(
        log_probs=pairs.logp, entropy=torch.zeros_like(pairs.logp), mean_logits=torch.zeros_like(pairs.logp),
        is_top1=pairs.mask.bool(),
    )  # fmt: skip
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=0.1,
        loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], use_weighting=False,
        _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    completion = torch.cat([torch.zeros_like(pairs.mask[:, :1]), pairs.mask], 1)
    inputs = {
        "input_ids": pairs.tokens, "completion_mask": completion, "ref_chosen_logps": start_sums[0],
        "ref_rejected_logps": start_sums[1],
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


@pytest.mark.parametrize(("n_pairs", "lengths"), [(5, [7]), (1, [9, 4]), (1, [3, 8])])
def test_mpo_equals_trl(n_pairs, lengths):
    """Of several pairs trl's sft is a mean over tokens, ours over answers: they are equal where lengths are."""
    pairs = Pairs(n_pairs, lengths)
    (chosen, rejected), (chosen_start, rejected_start) = (x.sum(1).chunk(2) for x in (pairs.logp, pairs.start))
    n_chosen = pairs.mask.sum(1)[:n_pairs]
    loss = mpo(chosen, rejected, chosen_start, rejected_start, n_chosen, config=MpoConfig()).loss_B.mean()
    theirs = mpo_of_trl(pairs)
    torch.testing.assert_close(loss, theirs, atol=1e-5, rtol=1e-5)
    ours_grad, their_grad = (torch.autograd.grad(x, pairs.logits, retain_graph=True)[0] for x in (loss, theirs))
    torch.testing.assert_close(ours_grad, their_grad, atol=1e-6, rtol=1e-5)
