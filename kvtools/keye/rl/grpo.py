"""The task of `rl grpo`: each step samples groups of answers from the model as it is, rewards them, and learns from them.

The prompts of a step are cut into chunks, which the ranks share; a rank samples, rewards and learns its own, and the loop adds
gradients. Chunks, rows and the order of sums are those of one rank, and so are weights and records, to the bit where each rank
has as many threads. The generator's log-probabilities are those that the ratio is taken against. Answers that were set aside or
filtered carry no loss; groups whose rewards are equal or not finite teach nothing, and a step of such groups alone changes
nothing. With several updates a step of sampling, the loop stops between steps of sampling only, since answers are not kept.

Legend: S tokens of a row, N answers, T tokens of the longest.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kvtools.chance import rng_for, seed_for
from kvtools.keye.model.flops import row_flops
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.log_probs import log_probabilities
from kvtools.keye.rl.prompts import Prompt, deal_modes
from kvtools.keye.rl.rollouts import Group, Sampler, Tally, tally_of
from kvtools.keye.rl.rows import AnswerRow, rows_of, shape_of
from kvtools.keye.rl.sample import total_of_ranks
from kvtools.train.loop import Loss
from kvtools.train.objectives.policy import grpo, gspo, kl_k3, per_answer
from kvtools.world import World

_MAX_NAMES = 8


@dataclass(frozen=True)
class PolicyConfig:
    """The objective. kl: weight of the k3 estimate of KL(model | start). updates: parts in which sampled answers are learnt."""

    objective: Literal["grpo", "gspo"] = "grpo"
    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0
    updates: int = 1


@dataclass(frozen=True)
class StepPrompts:
    """The prompts of an update. name: of the step of sampling, in the run; update: which part of its answers is learnt."""

    name: str
    prompts: Sequence[Prompt]
    seed: int
    update: int


@dataclass
class GrpoTask:
    """Steps of sampling and learning: a `train.loop.Task`. reference: the start model's log-probabilities of a row, for KL.

    chunk: prompts that grow together. keep: called with a name and the groups of each chunk of a step. `figures`: of the last
    step, for its line in the log. `seen`: what all steps of this run sampled, over all ranks; `seen_held_out`: what its
    validations did, on rank 0.
    """

    model: Keye
    sampler: Sampler
    held_out_sampler: Sampler  # greedy
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    shares: dict[str, float]
    config: PolicyConfig
    reference: Callable[[PackedRow], Tensor] | None
    batch: int
    chunk: int
    row_tokens: int
    trains: frozenset[str]
    world: World
    seed: int
    in_dtype: Callable[[], AbstractContextManager[object]]
    keep: Callable[[str, Sequence[Group]], None] | None = None
    figures: dict[str, float] = field(default_factory=dict)
    seen: Tally = field(default_factory=Tally)
    seen_held_out: Tally = field(default_factory=Tally)
    is_between: bool = True
    _chunks: list[list[Group]] = field(default_factory=list)  # this rank's; as many on every rank, the last perhaps empty

    @property
    def n_steps(self) -> int:
        """Updates of an epoch."""
        return -(-len(self.prompts) // self.batch) * self.config.updates

    def epoch(self, number: int) -> Iterator[StepPrompts]:
        """The prompts of each update, in an order and in modes of the epoch's own."""
        order = rng_for(self.seed, "prompts", number).permutation(len(self.prompts)).tolist()
        asked = list(deal_modes([self.prompts[index] for index in order], self.shares))
        for step, begin in enumerate(range(0, len(asked), self.batch)):
            seed = seed_for(self.seed, "rollouts", number, step)
            for update in range(self.config.updates):
                yield StepPrompts(f"{number}.{step}", asked[begin : begin + self.batch], seed, update)

    def microbatches(self, batch: StepPrompts, _n: int, _own: slice, /) -> Sequence[AnswerRow]:
        """This rank's answers in packed rows, at its own places. Collective: the answers are sampled and rewarded first."""
        if batch.update == 0:
            self._sample(batch)
        self.is_between = batch.update == self.config.updates - 1
        rows_of_chunks = [rows_of(groups, self.row_tokens, batch.update, self.config.updates) for groups in self._chunks]
        if not self.world.any(any(row.answers for rows in rows_of_chunks for row in rows)):
            return [AnswerRow(keys=tuple(prompt.key for prompt in batch.prompts))]  # counts nothing, so that nothing changes
        # the first row of each chunk, then the second of each, and so on: one order of all rows for any number of ranks
        n_rows, width = self.world.max(max(map(len, rows_of_chunks))), len(self._chunks) * self.world.size
        places = [AnswerRow()] * (n_rows * width)
        for number, rows in enumerate(rows_of_chunks):
            for depth, row in enumerate(rows):
                places[depth * width + number * self.world.size + self.world.rank] = row
        return places

    def loss(self, row: AnswerRow) -> Loss:
        """The summed loss of a row's answers."""
        nothing = next(p for p in self.model.parameters() if p.requires_grad).sum() * 0
        if not row.answers:
            return Loss(nothing, row.n_counted, {"loss": 0.0, "clip_fraction": 0.0, "kl": 0.0})
        packed = row.packed()
        device = self.model.output_VD.device
        lengths = [len(answer.logprobs) for answer in row.answers]
        mask_NT = pad_sequence([torch.ones(n, device=device) for n in lengths], batch_first=True)
        advantages_N = torch.tensor([answer.advantage for answer in row.answers], dtype=torch.float32, device=device)
        old_NT = pad_sequence(
            [torch.from_numpy(answer.logprobs).to(device) for answer in row.answers], batch_first=True
        )  # fmt: skip
        is_target_S = torch.from_numpy(packed.targets.astype(bool)).to(device)
        logp_NT = _by_answer(log_probabilities(self.model, packed), is_target_S, lengths)
        loss_N, clipped_N = self._surrogate(logp_NT, old_NT, advantages_N, mask_NT)
        flops = row_flops(self.model.config, shape_of(packed))
        n_flops = flops.training(self.trains)
        if self.reference is not None and self.config.kl > 0:
            kl_N = per_answer(kl_k3(logp_NT, _by_answer(self.reference(packed), is_target_S, lengths)), mask_NT)
            loss_N, n_flops = loss_N + self.config.kl * kl_N, n_flops + flops.forward
        else:
            kl_N = per_answer(kl_k3(logp_NT.detach(), old_NT), mask_NT)
        logged: dict[str, Tensor | float] = {
            "loss": loss_N.detach().sum(), "clip_fraction": clipped_N.sum(), "kl": kl_N.detach().sum(),
        }  # fmt: skip
        return Loss(loss_N.sum(), row.n_counted, logged, tokens=len(packed), flops=n_flops)

    def after_step(self, _world: World) -> dict[str, float]:
        """Nothing follows an update."""
        return {}

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Rewards of greedy answers to the held-out prompts, in all and by mode; the score is the mean reward."""
        if not self.held_out:
            return None
        with self.in_dtype():
            groups = list(self.held_out_sampler.groups(self.held_out, seed=seed_for(self.seed, "valid")))
        self.seen_held_out.add_sums(tally_of(groups))
        names = self.held_out_sampler.rewards.names
        figures: dict[str, float] = {"valid_n": float(len(groups))}
        asked = sorted({group.prompt.mode for group in groups})
        for mode in [None, *(asked if len(asked) > 1 else [])]:
            part = tally_of(group for group in groups if mode in (None, group.prompt.mode)).figures(names)
            wanted = (
                "reward",
                *(f"reward_{name}" for name in names),
                "length",
                "repetition",
                "thinking",
                "overlong",
                "set_aside",
            )
            figures |= {f"valid_{name}{f'_{mode}' if mode else ''}": part[name] for name in wanted if name in part}
        return figures | ({"score": figures["valid_reward"]} if "valid_reward" in figures else {})

    def describe(self, batch: StepPrompts) -> str:
        """The keys of the first prompts of the step."""
        keys = [prompt.key for prompt in batch.prompts]
        return ", ".join(keys[:_MAX_NAMES]) + (f" and {len(keys) - _MAX_NAMES} more" if len(keys) > _MAX_NAMES else "")

    def _sample(self, batch: StepPrompts) -> None:
        # slow rewards of a chunk are given while the next one grows
        size = min(self.chunk, -(-len(batch.prompts) // 2)) if self.sampler.rewards.has_slow else self.chunk
        chunks = [batch.prompts[begin : begin + size] for begin in range(0, len(batch.prompts), size)]
        mine = self.world.shard(chunks)
        chunk_of = {prompt.key: number for number, prompts in enumerate(mine) for prompt in prompts}
        self._chunks = [[] for _ in range(-(-len(chunks) // self.world.size))]
        self.model.eval()
        with self.in_dtype():
            for group in self.sampler.groups([p for prompts in mine for p in prompts], seed=batch.seed, chunk=size):
                self._chunks[chunk_of[group.prompt.key]].append(group)
        self.model.train()
        total = total_of_ranks(tally_of(group for groups in self._chunks for group in groups), self.world)
        self.seen.add_sums(total)
        self.figures = total.figures(self.sampler.rewards.names)
        if self.keep is not None:
            for groups in self._chunks:
                self.keep(batch.name, groups)

    def _surrogate(
        self, logp_NT: Tensor, old_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The loss of each answer and the fraction of it that is clipped, float (N,) each."""
        config = self.config
        if config.objective == "gspo":
            whole = gspo(logp_NT, old_NT, advantages_N, mask_NT, clip=config.clip, clip_high=config.clip_high)
            return whole.loss, whole.is_clipped.float()
        tokens = grpo(logp_NT, old_NT, advantages_N[:, None], clip=config.clip, clip_high=config.clip_high)
        return per_answer(tokens.loss, mask_NT), per_answer(tokens.is_clipped.float(), mask_NT)


class StopBetween:
    """Whether to stop, asked only where the answers of a step of sampling have all been learnt."""

    def __init__(self, stop: object, task: GrpoTask) -> None:
        self._stop, self._task = stop, task

    def __bool__(self) -> bool:
        return self._task.is_between and bool(self._stop)


def _by_answer(logp_S: Tensor, is_target_S: Tensor, lengths: Sequence[int]) -> Tensor:
    """Log-probabilities of a row's targets, one answer a row, (N, T), 0 beyond its end."""
    return pad_sequence(list(torch.split(logp_S[is_target_S], list(lengths))), batch_first=True)
