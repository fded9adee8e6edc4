"""The task that the training loop runs: propose items to users, reward them, and move the policy by an objective.

A step's proposals come from the policy itself, or, where `sync` is more than 1, from a copy of it that is renewed every so many
steps. The next item's cross-entropy is trained jointly, in place of a penalty on the KL. Everything depends on the seed, the
step and the weights, so that a resumed run equals an uninterrupted one and ranks make no difference but rounding.

Source: OneRec Technical Report section 2.4. Legend: B prompts, G items a group, K proposals of the format reward, S levels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from kvtools.chance import rng_for
from kvtools.onerec.model.onerec import Context, OneRec
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.rl import rollouts
from kvtools.onerec.rl.held_out import HeldOut
from kvtools.onerec.rl.policies import Policies, PolicySettings
from kvtools.onerec.rl.prompts import Prompts, PromptSet, futures, seen_ids
from kvtools.onerec.rl.rewards import DURATION, FORMAT, Rewards
from kvtools.onerec.rl.rollout_stream import Proposals, joined
from kvtools.onerec.rl.rollouts import Group
from kvtools.onerec.rl.step_means import StepMeans
from kvtools.onerec.run.objectives import ForwardCost
from kvtools.train.loop import Loss
from kvtools.train.objectives.policy import Surrogate, ecpo, gbpo, group_advantages, grpo, kl_k3
from kvtools.world import World

_N_LEGALITY = 8  # users a step whose free proposals are looked at where no reward needs them
_RECENT = 0.1  # weight of a step in the share of listed items


class PolicyTask:
    """A `train.loop.Task` over prompts. values: of each column, at the interactions of the training part. duration: quantiles
    float64 (n,) of play times, NaN where unknown, and dislikes bool (n,), where that reward is asked for. reference: the model
    that the run starts from, in eval mode. keep: takes the proposals of a step, on rank 0; given on all ranks, or on none."""

    def __init__(
        self, policy: OneRec, reference: OneRec, prompts: PromptSet, trie: Trie, rewards: Rewards,
        values: Mapping[str, np.ndarray], settings: PolicySettings, *, held_out: HeldOut | None, device: str,
        duration: tuple[np.ndarray, np.ndarray] | None = None, keep: Callable[[int, Proposals], None] | None = None,
    ) -> None:  # fmt: skip
        self.model = Policies(policy, has_copy=settings.sync > 1)
        self._reference, self._prompts, self._trie, self._rewards = reference, prompts, trie.to(device), rewards
        self._values, self._settings, self._held_out, self._device = values, settings, held_out, device
        self._duration, self._keep, self._cost = duration, keep, ForwardCost(policy)
        self._sums, self._step, self._quartile = StepMeans(), 0, 1.0
        self._kept: list[Proposals] = []

    def epoch(self, number: int) -> Iterator[Prompts]:
        """The prompts of the steps between two validations."""
        every = self._settings.valid_every
        return islice(self._prompts.from_step(number * every), every)

    def microbatches(self, prompts: Prompts, n: int, _own: slice) -> Sequence[Prompts]:
        """The prompts in at most n parts, every n-th in one."""
        self._sums, self._step, self._kept = StepMeans(), prompts.step, []
        if self._duration is not None:  # a threshold of the whole batch, the same on all ranks
            quantiles = self._duration[0][self._next_index(prompts)]
            self._quartile = (
                float(np.quantile(quantiles[np.isfinite(quantiles)], 0.75)) if np.isfinite(quantiles).any() else 1.0
            )
        if prompts.step % self._settings.sync == 0:
            self.model.renew()
        return [prompts.take(np.arange(i, len(prompts), n)) for i in range(min(n, len(prompts)))]

    def _next_index(self, prompts: Prompts) -> np.ndarray:
        return np.asarray(self._prompts.batcher.histories.offsets[prompts.users] + prompts.cuts)

    def describe(self, prompts: Prompts) -> str:
        """The first users of the prompts, for a fault's message."""
        keys = [str(self._prompts.batcher.histories.user_keys[user]) for user in prompts.users[:3]]
        return f"users {', '.join(keys)}{' …' if len(prompts) > 3 else ''}"

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def loss(self, prompts: Prompts) -> Loss:
        """The loss of prompts, summed over them."""
        self.model.eval()  # without dropout the ratio to the policy that proposed is 1 at first
        batch = self._prompts.batcher.batch(prompts.rows).to(self._device)
        policy, proposer = self.model.policy, self.model.proposer
        context = policy.context(batch)
        if proposer is None:
            group, free = self._propose(policy, context, prompts)
        else:
            with torch.no_grad():
                group, free = self._propose(proposer, proposer.context(batch), prompts)
        n_group, target_B1S = group.codes_BGS.shape[1], policy.codes_IS[batch.targets]
        chosen, is_chosen_legal = self._choose(free, prompts)
        codes = torch.cat([group.codes_BGS, target_B1S, *([] if chosen is None else [chosen.codes_BGS])], dim=1)
        logp_BPS, entropy_B = rollouts.path_log_probs(policy, context, codes)
        with torch.no_grad():
            reference_BP = rollouts.path_log_probs(self._reference, self._reference.context(batch), codes)[0].sum(2)
        logp_BP = logp_BPS.sum(2)
        parts = torch.split(logp_BP, [n_group, 1, codes.shape[1] - n_group - 1], dim=1)
        proposed_BGS = logp_BPS[:, :n_group]
        if proposer is not None and self._keep is not None:
            with torch.no_grad():
                proposed_BGS = rollouts.path_log_probs(proposer, proposer.context(batch), group.codes_BGS)[0]
        total = self._group_loss(prompts, group, parts[0], reference_BP[:, :n_group], proposed_BGS)
        cross_entropy = -parts[1].sum() / policy.n_levels
        total = total + self._settings.next_token * cross_entropy
        if chosen is not None and is_chosen_legal is not None:
            surrogate = self._surrogate(parts[2], chosen.logp_BG, is_chosen_legal.float())
            total = total + self._rewards.weight_of(FORMAT) * surrogate.loss.sum() / max(1, chosen.codes_BGS.shape[1])
        if self._duration is not None:
            total = total + self._duration_loss(prompts, parts[1][:, 0])
        self._sums.add("entropy", float(entropy_B.sum()), len(prompts))
        self._sums.add("loss_next", float(cross_entropy.detach()), len(prompts))
        context_flops, n_proposed = self._cost.flops(batch), group.ids_BG.numel() + free.ids_BG.numel()
        # the policy's pass with its gradient, the reference's, and the proposals
        flops = 4 * (context_flops + self._cost.path_flops(codes.shape[0] * codes.shape[1])) + self._cost.path_flops(n_proposed)
        flops += 0.0 if proposer is None else context_flops
        return Loss(total, len(prompts), {"loss": float(total.detach())}, tokens=codes.numel(), flops=flops)

    def _propose(self, model: OneRec, context: Context, prompts: Prompts) -> tuple[Group, Group]:
        """The group of each user, and proposals without the trie: of all users where a reward needs them, else of a few."""
        barred, needs_free = None, bool(self._rewards.weight_of(FORMAT))
        if self._settings.exclude_seen:
            barred = torch.from_numpy(seen_ids(self._prompts.batcher.histories, prompts, self._trie)).to(self._device)
        n = self._settings.group
        if self._settings.sampling == "sample":
            uniform = self._uniform(prompts, "rollout", model.n_levels)
            group = rollouts.samples(model, context, self._trie, uniform, barred_BU=barred)
        else:
            group = rollouts.beams(model, context, self._trie, n, barred_BU=barred)
        few = context if needs_free else rollouts.first_users(context, _N_LEGALITY)
        if self._settings.sampling == "sample":
            free = rollouts.samples(
                model, few, self._trie, self._uniform(prompts, "free", model.n_levels)[: len(few.mask_BTC)], is_free=True
            )
        else:
            free = rollouts.free_beams(model, few, self._trie, n)
        self._sums.add("legal_share", float((free.ids_BG >= 0).sum()), free.ids_BG.numel())
        return group, free

    def _uniform(self, prompts: Prompts, purpose: str, n_levels: int) -> Tensor:
        """Random numbers float32 (B, G, S) that depend on the step and the user alone."""
        keys = self._prompts.batcher.histories.user_keys
        shape = (self._settings.group, n_levels)
        drawn = [
            rng_for(self._prompts.seed, purpose, prompts.step, str(keys[user])).random(shape, np.float32)
            for user in prompts.users
        ]
        return torch.from_numpy(np.stack(drawn)).to(self._device)

    def _choose(self, free: Group, prompts: Prompts) -> tuple[Group | None, Tensor | None]:
        """The proposals that the format reward is given to, K of each user's, and which of them are legal."""
        if not self._rewards.weight_of(FORMAT):
            return None, None
        n_free = free.ids_BG.shape[1]
        n_chosen = min(self._settings.format_samples, n_free)
        if self._settings.format_choice == "top":
            index = free.logp_BG.topk(n_chosen, dim=1).indices
        else:
            keys = self._prompts.batcher.histories.user_keys
            drawn = [
                rng_for(self._prompts.seed, "format", prompts.step, str(keys[user])).permutation(n_free)[:n_chosen]
                for user in prompts.users
            ]
            index = torch.from_numpy(np.stack(drawn)).to(self._device)
        codes = free.codes_BGS.gather(1, index.unsqueeze(2).expand(-1, -1, free.codes_BGS.shape[2]))
        ids = free.ids_BG.gather(1, index)
        return Group(codes, free.logp_BG.gather(1, index), ids), ids >= 0

    def _group_loss(self, prompts: Prompts, group: Group, logp_BG: Tensor, reference_BG: Tensor, logp_BGS: Tensor) -> Tensor:
        histories, ids_BG = self._prompts.batcher.histories, group.ids_BG.cpu().numpy()
        future = futures(histories, prompts, self._trie, self._settings.horizon)
        rewards = self._rewards.score(prompts, future, ids_BG, values=self._values)
        total_BG = self._rewards.total(rewards, ids_BG, float(self.model.exposure))
        advantages_BG, has_none_B = group_advantages(total_BG, ids_BG >= 0)
        is_there_BG = group.ids_BG >= 0
        advantages = torch.from_numpy(advantages_BG).to(logp_BG)
        surrogate = self._surrogate(logp_BG, torch.where(is_there_BG, group.logp_BG, logp_BG.detach()), advantages)
        kl_BG = torch.where(is_there_BG, kl_k3(logp_BG, reference_BG), 0.0)
        loss = torch.where(is_there_BG, surrogate.loss + self._settings.kl * kl_BG, 0.0).sum() / logp_BG.shape[1]
        self._count(prompts, rewards, total_BG, has_none_B, ids_BG)
        counted = torch.from_numpy(~has_none_B).to(self._device).unsqueeze(1) & is_there_BG
        self._sums.add("clip_fraction", float((surrogate.is_clipped & counted).sum()), float(counted.sum()))
        self._sums.add("kl", float(kl_BG.detach().sum()), float(is_there_BG.sum()))
        if self._keep is not None:
            self._kept.append(self._proposals(prompts, group, logp_BGS.detach(), rewards, total_BG, advantages_BG))
        return loss

    def _surrogate(self, logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Surrogate:
        epsilon, delta = self._settings.epsilon, self._settings.delta
        if self._settings.objective == "gbpo":
            return gbpo(logp, old_logp, advantages)
        if self._settings.objective == "grpo":
            return grpo(logp, old_logp, advantages, clip=epsilon)
        return ecpo(logp, old_logp, advantages, clip=epsilon, delta=delta)

    def _duration_loss(self, prompts: Prompts, logp_B: Tensor) -> Tensor:
        """The objective of logged items: 1 where the user watched more of it than of most of its length, -1 where it was
        disliked. The policy that proposed them is unknown, and the present one stands for it (OneRec-V2)."""
        assert self._duration is not None, "called where there is such a reward"
        index = self._next_index(prompts)
        quantile, disliked = self._duration[0][index], self._duration[1][index]
        advantage = np.where(disliked, -1.0, np.where(np.nan_to_num(quantile) > self._quartile, 1.0, 0.0))
        self._sums.add(f"reward_{DURATION}", float(advantage.sum()), len(prompts))
        surrogate = self._surrogate(logp_B, logp_B.detach(), torch.from_numpy(advantage).to(logp_B))
        return self._rewards.weight_of(DURATION) * surrogate.loss.sum()

    # ── what the log shows ───────────────────────────────────────────────────────────────────────────────────────────
    def _count(
        self,
        prompts: Prompts,
        rewards: Mapping[str, np.ndarray],
        total_BG: np.ndarray,
        has_none_B: np.ndarray,
        ids_BG: np.ndarray,
    ) -> None:
        is_there = ids_BG >= 0
        for name, reward_BG in {"reward": total_BG, **{f"reward_{name}": x for name, x in rewards.items()}}.items():
            is_good = np.isfinite(reward_BG) & is_there
            self._sums.add(name, reward_BG[is_good].sum(), is_good.sum())
        self._sums.add("reward_unknown", (~np.isfinite(total_BG) & is_there).sum(), is_there.sum())
        self._sums.add("groups_without_update", has_none_B.sum(), len(prompts))
        n_distinct = sum(len(np.unique(row[row >= 0])) for row in ids_BG)
        self._sums.add("repetition", is_there.sum() - n_distinct, is_there.sum())
        if self._rewards.share is not None:
            self._sums.add("listed_share", self._rewards.share.is_listed_U[ids_BG][is_there].sum(), is_there.sum())

    def _names(self) -> list[str]:
        names = ["reward", *(f"reward_{term.name}" for term in self._rewards.terms if term.kind != FORMAT)]
        names += ["kl", "clip_fraction", "entropy", "legal_share", "repetition", "groups_without_update", "reward_unknown"]
        return [*names, "loss_next", *(["listed_share"] if self._rewards.share is not None else [])]

    def after_step(self, world: World) -> dict[str, float]:
        """The means of the step over all ranks, to be logged; the share of listed items follows."""
        means = self._sums.means(world, self._names())
        if self._keep is not None:
            terms = self._rewards.item_terms
            proposals = joined(self._kept, self.model.policy.n_levels, len(terms)).gather(world)
            if world.is_root:
                self._keep(self._step, proposals)
        if self._rewards.weight_of(FORMAT):
            means[f"reward_{FORMAT}"] = means["legal_share"]
        if "listed_share" in means:
            weight = _RECENT if self._step else 1.0
            self.model.exposure.lerp_(torch.tensor(means["listed_share"], dtype=torch.float64), weight)
        return {**means, "length": float(self.model.policy.n_levels)}

    def validate(self) -> dict[str, float] | None:
        """What held-out users would get; "score" is their reward."""
        if self._held_out is None:
            return None
        figures = self._held_out.figures(self._held_out.measure(self.model.policy.eval()))
        return {"score": figures["valid_reward"], **figures}

    def _proposals(
        self, prompts: Prompts, group: Group, logp_BGS: Tensor, rewards: Mapping[str, np.ndarray], total_BG: np.ndarray,
        advantages_BG: np.ndarray,
    ) -> Proposals:  # fmt: skip
        row, rank = np.nonzero(group.is_there_BG.cpu().numpy())
        ids = group.ids_BG.cpu().numpy()[row, rank]
        items = np.where(ids >= 0, self._rewards.item_of_id[ids], -1)
        values = np.stack([reward[row, rank] for reward in rewards.values()], axis=1) if rewards else np.empty((len(row), 0))
        return Proposals(
            prompts.users[row], prompts.cuts[row], rank, group.codes_BGS.cpu().numpy()[row, rank].astype(np.int32),
            logp_BGS.float().cpu().numpy()[row, rank], values, total_BG[row, rank], advantages_BG[row, rank], items,
        )  # fmt: skip
