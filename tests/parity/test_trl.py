"""Objectives of reinforcement learning against trl's, on the same rollouts."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from kvtools.train.objectives.policy import grpo, gspo, kl_k3, per_answer

pytest.importorskip("trl")
from trl import GRPOTrainer  # noqa: E402

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
