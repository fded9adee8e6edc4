"""The recipe of `rl ecpo`, `rl gbpo` and `rl grpo` for OneRec: their options, checked, and the settings behind them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

from kvtools.errors import Usage
from kvtools.onerec.rl.policies import Objective, PolicySettings
from kvtools.onerec.rl.rewards import FORMAT, Term, parse_rewards
from kvtools.option_values import refuse_if
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Plan
from kvtools.train.overrides import Allowed, parse_overrides, refuse_bad_values

# what --training may change, with its defaults
_TRAINING: dict[str, Any] = {
    "epsilon": 0.2,  # of the clip
    "delta": 0.1,  # of the early clip: the report's
    "kl": 0.0,  # weight of the KL to the model that the run starts from: the report has none
    "next_token": 1.0,  # weight of the next item's cross-entropy, trained jointly
    "sync": 1,  # steps between renewals of the policy that proposes
    "horizon": 1,  # items after the cut that count as hits
    "format_samples": 5,  # of a group, that the format reward is given to: the report's ablation
    "format_choice": "random",
    "listed_target": 0.1,  # the share of proposals that listed items may have
    "listed_factor": 0.5,  # what their reward is multiplied with above it
    "dislike": "",  # a column: where it is more than 0, the duration reward is -1
    "weight_decay": 0.0,
    "warmup": "5%",
    "rate": "constant",
    "clip": 1.0,  # norm of the gradients
    "accumulate": 1,
    "save": "50",
    "valid": "10%",  # how often held-out users are measured
    "valid_users": 2000,
    "valid_k": 0,  # items a held-out user is given; 0: a quarter of the group
}
_MAY_BE: Allowed = {
    "epsilon": (lambda x: 0 < x < 1, "a number above 0 and below 1"),
    "rate": (("cosine", "constant").__contains__, "cosine or constant"),
    "format_choice": (("random", "top").__contains__, "random or top"),
    "clip": (lambda x: 0 < x < math.inf, "a number above 0"),
    "dislike": (lambda _: True, "a column"),
    "listed_target": (lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "listed_factor": (lambda x: 0 < x < 1, "a number above 0 and below 1"),
    **dict.fromkeys(("sync", "horizon", "format_samples", "accumulate", "valid_users"), (lambda n: n >= 1, "1 or more")),
}


@dataclass(frozen=True)
class PolicyRecipe:
    """The options that shape a run. Raises Usage for values that cannot be."""

    objective: Objective
    reward: Sequence[str] = ()
    group: int = 40
    sampling: Literal["beam", "sample"] = "beam"
    steps: str = "1ep"
    lr: float = 5e-5
    batch: int = 64
    training: Sequence[str] = field(default_factory=list)
    keep_seen: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_bad_values("--training", self.settings, _MAY_BE, ("warmup", "save", "valid"))
        refuse_if(
            (self.group < 2, f"--group {self.group} has nothing to compare an item with. Give 2 or more."),
            (not self.reward, "--reward is missing. Give hit, column:NAME, pscore:MODEL, format or duration."),
        )
        if self.settings["format_samples"] > self.group and any(term.kind == FORMAT for term in self.terms):
            n = self.settings["format_samples"]
            raise Usage(f"--training format_samples={n} is larger than --group {self.group}. Raise --group or lower it.")
        EpochLength(1, 1).total(self.steps)

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of --reward."""
        return parse_rewards(self.reward)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of --training, with defaults."""
        return parse_overrides(self.training, "--training", _TRAINING)

    @property
    def n_best(self) -> int:
        """How many items a held-out user is given."""
        return int(self.settings["valid_k"]) or max(1, self.group // 4)

    def to_json(self) -> dict[str, Any]:
        """Option names to values, as --config reads them."""
        options = {
            "rewards": list(self.reward), "group": self.group, "sampling": self.sampling, "steps": self.steps, "lr": self.lr,
            "batch": self.batch, "training": list(self.training), "keep_seen": self.keep_seen, "seed": self.seed,
        }  # fmt: skip
        return {name: value for name, value in options.items() if value != []}

    def policy(self, plan: Plan, n_epoch: int) -> PolicySettings:
        """The settings of the task. n_epoch: steps that take every user once."""
        names = ("epsilon", "delta", "kl", "next_token", "sync", "horizon", "format_samples", "format_choice")
        chosen = {name: self.settings[name] for name in names}
        return PolicySettings(
            self.objective, self.group, self.sampling, **chosen, exclude_seen=not self.keep_seen,
            valid_every=self._valid_every(plan.n_steps, n_epoch),
        )  # fmt: skip

    def plan(self, n_epoch: int, dtype: Any) -> Plan:
        """The loop's plan, for n_epoch steps that take every user once."""
        epoch = EpochLength(n_epoch, n_epoch * self.batch)
        n_total = epoch.total(self.steps)
        steps_of = {
            name: epoch.steps(str(self.settings[name]), f"--training {name}", of=n_total) for name in ("warmup", "save")
        }
        return Plan(
            epochs=-(-n_total // self._valid_every(n_total, n_epoch)),
            n_steps=n_total,
            lr=self.lr,
            warmup=round(steps_of["warmup"]),
            lr_schedule=self.settings["rate"],
            weight_decay=float(self.settings["weight_decay"]),
            clip=float(self.settings["clip"]),
            n_microbatches=int(self.settings["accumulate"]),
            save_every=math.ceil(steps_of["save"]),
            validates_first=True,
            dtype=cast("Literal['float32', 'bfloat16']", dtype),
            seed=self.seed,
        )

    def _valid_every(self, n_total: int, n_epoch: int) -> int:
        epoch = EpochLength(n_epoch, n_epoch * self.batch)
        return max(1, math.ceil(epoch.steps(str(self.settings["valid"]), "--training valid", of=n_total)))
