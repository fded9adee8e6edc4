"""Rollouts: several answers to a prompt, each with its log-probabilities, rewards by term, and advantage within the group.

A prompt is read once, whatever the number of its answers, and prompts of a chunk grow together. What is drawn depends on the
seed, the prompt's key and the answer's number. Slow rewards, such as a judge's, are given while the next chunk grows. Code in
answers to agentic prompts runs in the sandbox, and they go on after what it gave. Not here: what is learnt from them (grpo.py),
files (records.py). Legend: G answers of a group.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kvtools.errors import Corrupt, reason_of
from kvtools.keye.data.conversations import BAD
from kvtools.keye.data.dataloader import UNREADABLE
from kvtools.keye.data.media import Unreadable
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.generate import Answer, Insertion, generate
from kvtools.keye.model.inputs import Example
from kvtools.keye.model.keye import Keye
from kvtools.keye.rl.prompts import Prompt
from kvtools.keye.rl.rewards import Reply, Rewards, Scored, is_well_formed, repetition
from kvtools.keye.run.agentic import CodeRunner
from kvtools.keye.run.session import PICTURE, answer_content
from kvtools.keye.sandbox.session import Sandbox
from kvtools.skipped import SkippedRows
from kvtools.train.objectives.policy import group_advantages

SET_ASIDE = "answers that could not be scored"
NOT_FINITE = "groups with a reward that is not finite"
CONSTANT = "groups of equal rewards"
OVERLONG = "answers cut at the most tokens"


@dataclass(frozen=True)
class SamplingPlan:
    """How answers are drawn and which count. overlong: whether answers that were cut count, or are left out of their group."""

    n_answers: int = 8
    max_new: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    overlong: Literal["filter", "keep"] = "filter"


@dataclass(frozen=True)
class Group:
    """The answers to one prompt. contents: as parts of messages, with the outputs of code; texts: PICTURE stands for one.

    advantages_G: float64 (G,), 0 where nothing is to be learnt; is_kept_G: bool, which of them count; has_signal: whether any
    advantage is not 0.
    """

    prompt: Prompt
    example: Example
    answers: Sequence[Answer]
    contents: Sequence[Sequence[dict[str, Any]]]
    texts: Sequence[str]
    scored: Sequence[Scored]
    advantages_G: np.ndarray
    is_kept_G: np.ndarray
    why_none: str | None = None

    @property
    def has_signal(self) -> bool:
        """Whether there is anything to learn from its rewards."""
        return bool(self.advantages_G.any())


@dataclass
class Tally:
    """What was seen in some rollouts, as sums, so that those of several ranks can be added."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, group: Group) -> None:
        """Count a group."""
        self.sums["groups"] += 1
        self.sums[f"mode_{group.prompt.mode}"] += 1
        if group.why_none is not None:
            self.sums[group.why_none] += 1
        for answer, text, scored in zip(group.answers, group.texts, group.scored, strict=True):
            self.sums["answers"] += 1
            self.sums["tokens"] += len(answer.logprobs)
            self.sums["runs"] += len(answer.inserted)
            self.sums["neg_logprob"] -= float(answer.logprobs.sum())
            self.sums["repetition"] += repetition(text)
            self.sums["thinking"] += int("<think>" in text)
            self.sums["legal"] += int(is_well_formed(text, group.prompt.mode))
            self.sums[OVERLONG] += int(answer.ended == "length")
            if scored.reward is None:
                self.sums[SET_ASIDE] += 1
            elif math.isfinite(scored.reward):
                self.sums["rewarded"] += 1
                self.sums["reward"] += scored.reward
            else:
                self.sums["bad_rewards"] += 1
            for name, score in scored.scores.items():
                if score is not None and math.isfinite(score):
                    self.sums[f"n_{name}"] += 1
                    self.sums[f"reward_{name}"] += score

    @property
    def has_no_signal(self) -> bool:
        """Whether there were groups, and none had rewards to learn from."""
        return 0 < self.sums["groups"] == self.sums[CONSTANT] + self.sums[NOT_FINITE]

    def add_sums(self, other: "Tally") -> None:
        """Add another tally."""
        for name, total in other.sums.items():
            self.sums[name] += total

    def report(self, name: str, rewards: Rewards, warn: Callable[[str], None]) -> int:
        """Warn of answers without a reward that is a number; returns 65 where none has one, else 0."""
        n_answers, n_set_aside, n_bad = (int(self.sums[which]) for which in ("answers", SET_ASIDE, "bad_rewards"))
        if not rewards.terms or not n_set_aside + n_bad:
            return 0
        why = f" ({rewards.fault})" if rewards.fault is not None else ""
        lost = f"{n_set_aside} of {n_answers} answers have no reward and were set aside{why}" if n_set_aside else ""
        bad = f"{n_bad} of {n_answers} rewards are no finite numbers" if n_bad else ""
        warn(f"{name}: {'; '.join(filter(None, (lost, bad)))}. Look at the programs and judges of --reward.")
        return Corrupt.code if n_set_aside + n_bad == n_answers else 0

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """Means for a log line, of the terms of these names, over rewards that are finite; those of nothing are left out."""
        sums = self.sums
        n_answers, n_groups = max(1, sums["answers"]), max(1, sums["groups"])
        means = {"reward": (sums["reward"], sums["rewarded"])}
        means |= {f"reward_{name}": (sums[f"reward_{name}"], sums[f"n_{name}"]) for name in names}
        figures = {name: total / n for name, (total, n) in means.items() if n}
        figures |= {
            "entropy": sums["neg_logprob"] / max(1, sums["tokens"]),
            "length": sums["tokens"] / n_answers,
            "repetition": sums["repetition"] / n_answers,
            "legal_share": sums["legal"] / n_answers,
            "thinking": sums["thinking"] / n_answers,
            "runs": sums["runs"] / n_answers,
            "overlong": sums[OVERLONG] / n_answers,
            "constant": sums[CONSTANT] / n_groups,
            "not_finite": sums[NOT_FINITE] / n_groups,
            "set_aside": sums[SET_ASIDE] / n_answers,
        }
        modes = sorted(name for name in sums if name.startswith("mode_"))
        return figures | {name: sums[name] / n_groups for name in modes}


class Sampler:
    """Draws answers from a model as it is at the moment, and rewards them. `skipped`: prompts that could not be read.

    sandbox: where code in answers to agentic prompts runs; None: it is text.
    """

    def __init__(
        self, model: Keye, processor: Processor, rewards: Rewards, plan: SamplingPlan, sandbox: Sandbox | None = None
    ) -> None:  # fmt: skip
        self.model, self.processor, self.rewards, self.plan = model, processor, rewards, plan
        self._sandbox = sandbox
        self.skipped = SkippedRows()

    def groups(self, prompts: Sequence[Prompt], *, seed: int, chunk: int = 16) -> Iterator[Group]:
        """The group of each prompt that can be read, in order. chunk: prompts that grow together."""
        waiting: deque[Callable[[], list[Group]]] = deque()
        for begin in range(0, len(prompts), chunk):
            waiting.append(self._started(prompts[begin : begin + chunk], seed))
            if len(waiting) > 1:
                yield from waiting.popleft()()
        for groups in waiting:
            yield from groups()

    def _started(self, prompts: Sequence[Prompt], seed: int) -> Callable[[], list[Group]]:
        """Answers drawn and handed to the rewards; call what is returned for the groups."""
        plan, template = self.plan, self.processor.template
        runner = None if self._sandbox is None else CodeRunner(self.processor, self._sandbox)
        read = [(prompt, example) for prompt in prompts if (example := self._example(prompt, runner)) is not None]
        agentic = {prompt.key for prompt, _ in read if prompt.mode == "agentic"}

        def insert(key: str, number: int, tokens: Sequence[int]) -> Insertion | None:
            return runner.insert(key, number, tokens) if runner is not None and key in agentic else None

        drawn = generate(
            self.model, [example for _, example in read], max_new_tokens=plan.max_new, temperature=plan.temperature,
            top_k=plan.top_k, top_p=plan.top_p, stop_tokens=template.stop_tokens, seed=seed, n_answers=plan.n_answers,
            suppress_tokens=range(template.size, self.model.config.language.vocabulary), insert=insert if agentic else None,
        )  # fmt: skip
        answers = list(drawn)
        outputs = {} if runner is None else runner.outputs
        contents = [
            [answer_content(template, answer, outputs.get((answer.key, answer.number), [])) for answer in group]
            for group in answers
        ]
        texts = [[_text(content) for content in group] for group in contents]
        replies = [
            Reply(f"{prompt.key}#{answer.number}", prompt, text, len(answer.logprobs), plan.max_new)
            for (prompt, _), group, group_texts in zip(read, answers, texts, strict=True)
            for answer, text in zip(group, group_texts, strict=True)
        ]
        scores = self.rewards.submit(replies)

        def groups() -> list[Group]:
            rows = iter(scores() if self.rewards.terms else [Scored({}, 0.0)] * len(replies))
            return [
                judged(prompt, example, group, parts, group_texts, [next(rows) for _ in group], plan.overlong)
                for (prompt, example), group, parts, group_texts in zip(read, answers, contents, texts, strict=True)
            ]

        return groups

    def _example(self, prompt: Prompt, runner: CodeRunner | None) -> Example | None:
        reader = self.processor if runner is None or prompt.mode != "agentic" else runner
        try:
            return reader.prompt({**prompt.conversation, "id": prompt.key})
        except Unreadable as fault:
            self.skipped.skip(UNREADABLE, f"{prompt.key}: {fault}")
        except (ValueError, KeyError, TypeError) as fault:
            self.skipped.skip(BAD, f"{prompt.key}: {reason_of(fault)}")
        return None


def _text(content: Sequence[Mapping[str, Any]]) -> str:
    """An answer as text, PICTURE for each picture that its code gave."""
    return "".join(part["text"] if part["type"] == "text" else PICTURE for part in content)


def judged(
    prompt: Prompt, example: Example, answers: Sequence[Answer], contents: Sequence[Sequence[dict[str, Any]]],
    texts: Sequence[str], scored: Sequence[Scored], overlong: Literal["filter", "keep"],
) -> Group:  # fmt: skip
    """A group with the advantages of its answers: those set aside, and overlong ones under `filter`, are in no mean."""
    is_kept_G = np.array([score.reward is not None for score in scored], bool)
    if overlong == "filter":
        is_kept_G &= np.array([answer.ended == "stop" for answer in answers], bool)
    rewards_G = np.array([0.0 if score.reward is None else score.reward for score in scored], np.float64)
    advantages_1G, has_none_1 = group_advantages(rewards_G[None], is_kept_G[None])
    why_none = None
    if has_none_1[0]:
        why_none = CONSTANT if np.isfinite(rewards_G[is_kept_G]).all() else NOT_FINITE
    return Group(prompt, example, answers, contents, texts, scored, advantages_1G[0], is_kept_G, why_none)


def tally_of(groups: Iterable[Group]) -> Tally:
    """The tally of some groups."""
    tally = Tally()
    for group in groups:
        tally.add(group)
    return tally
