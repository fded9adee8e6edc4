"""The policy that is trained, the copy that proposes, and the settings of both."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kvtools.onerec.model.onerec import OneRec

Objective = Literal["ecpo", "grpo", "gbpo"]


@dataclass(frozen=True)
class PolicySettings:
    """How the policy is moved. Defaults: OneRec's where the report gives them, else ours."""

    objective: Objective = "ecpo"
    group: int = 40
    sampling: Literal["beam", "sample"] = "beam"
    epsilon: float = 0.2  # of the clip
    delta: float = 0.1  # of the early clip
    kl: float = 0.0  # weight of the KL to the model that the run starts from
    next_token: float = 1.0  # weight of the next item's cross-entropy
    sync: int = 1  # steps between renewals of the policy that proposes
    horizon: int = 1  # items after the cut that count as hits
    format_samples: int = 5
    format_choice: Literal["random", "top"] = "random"
    exclude_seen: bool = True
    valid_every: int = 100  # steps


class Policies(nn.Module):
    """What a state keeps: the policy, the copy that proposes where there is one, and the share of listed items."""

    exposure: Tensor

    def __init__(self, policy: OneRec, *, has_copy: bool) -> None:
        super().__init__()
        self.policy = policy
        self.proposer = copy.deepcopy(policy).requires_grad_(False).eval() if has_copy else None
        self.register_buffer("exposure", torch.zeros((), dtype=torch.float64))

    def renew(self) -> None:
        """The copy takes the policy's weights."""
        if self.proposer is not None:
            self.proposer.load_state_dict(self.policy.state_dict())
