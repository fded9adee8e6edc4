"""What the options of `rl` open: a model, prompts, rewards, a judge."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kvtools.artifact.blob import canonical
from kvtools.artifact.history import Step
from kvtools.errors import Corrupt, Usage, os_reason
from kvtools.keye.checkpoint.weights import Weights
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.conversations import Conversations, open_conversations
from kvtools.keye.data.media import Media
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.keye import Keye
from kvtools.keye.rl.mpo import PairSet
from kvtools.keye.rl.pairs import Pair, pairs_of
from kvtools.keye.rl.program import Program
from kvtools.keye.rl.prompts import Prompt, Prompts, prompts_of
from kvtools.keye.rl.rewards import RULES, Rewards, RewardSpec, Rule, Scorer
from kvtools.keye.run.session import open_checkpoint
from kvtools.keye.run.setup import weights_digest
from kvtools.keye.sandbox.session import Sandbox
from kvtools.option_values import refuse_if
from kvtools.skipped import counted

_JUDGE_CACHE = "judge.jsonl"
_JUDGED = ("correct", "consistency")


def judge_cache_of(folder: str | None, judges: Sequence[str], cache: str | None) -> str | None:
    """The file of a judge's answers: --judge-cache, or one in the folder of a run's state, so that no judge is asked twice."""
    return cache or (os.path.join(folder, _JUDGE_CACHE) if folder and judges else None)


def parse_rewards(texts: Sequence[str], judges: Sequence[str]) -> list[RewardSpec]:
    """What --reward says, in order; of programs of one name the second is NAME-2. Raises Usage for unknown names, a term given
    twice, and a judge without a term to judge."""
    specs = [RewardSpec.parse(text) for text in texts]
    terms = [spec.name if spec.program is None else f"cmd:{spec.program}" for spec in specs]
    twice = next((term for term in terms if terms.count(term) > 1), None)
    names = [spec.name for spec in specs]
    for index, name in enumerate(names):
        if (number := names[:index].count(name)) and specs[index].program is not None:
            specs[index] = replace(specs[index], name=f"{name}-{number + 1}")
    refuse_if(
        (twice, f"--reward {twice} is given twice. Give it once, with one weight."),
        (
            judges and not set(names) & set(_JUDGED),
            "--judge is given, and no reward is judged. Give --reward correct or --reward consistency, or leave it out.",
        ),
    )
    return specs


@dataclass(frozen=True)
class Policy:
    """A model that answers, and may learn; the weights that it was built from, and what a resumed run knows them by."""

    model: Keye
    template: ChatTemplate
    weights: Weights
    digest: str

    @property
    def n_trained(self) -> str:
        """How many parameters are trained, as "1,000 of 2,000"."""
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return f"{sum(n for n, is_trained in counts if is_trained):,} of {sum(n for n, _ in counts):,}"


def open_policy(src: str, tokenizer: str | None, *, device: str, dtype: str) -> Policy:
    """The model of a path. Raises Corrupt for a part of a Keye-VL, and for a tokenizer that does not fit."""
    model, template, weights = open_checkpoint(src, tokenizer, device=device, dtype=dtype)
    return Policy(model, template, weights, weights_digest([weights], template))


def open_prompts(src: str, specs: Sequence[RewardSpec]) -> Prompts:
    """The prompts of a path or `-`. Raises Corrupt where none is left."""
    needs_answers = any(spec.name == "correct" for spec in specs)
    prompts = prompts_of(open_conversations(src), needs_answers=needs_answers)
    if not prompts.prompts:
        why = "; ".join(prompts.skipped.lines())
        raise Corrupt(f"{prompts.name}: no prompt is left ({why}). Give prompts, with an answer each for --reward correct.")
    return prompts


@dataclass
class PairData:
    """The pairs of a training and their media. `code` is 65 once `read` has met something that had to be left out."""

    inputs: list[tuple[Conversations, list[Pair]]]
    held_out: tuple[Conversations, list[Pair]] | None
    media: Media
    code: int = 0

    @property
    def histories(self) -> list[list[Step]]:
        """The histories of the inputs."""
        return [source.history for source, _ in self.inputs]

    def summary(self, learnt: PairSet, held_out: PairSet | None) -> str:
        """What was read, as one sentence."""
        more = "" if held_out is None else f", and {len(held_out):,} held out"
        name = ", ".join(source.name for source, _ in self.inputs)
        return f"{name}: {counted(len(learnt), 'pair')} of {counted(sum(learnt.lengths), 'token')}{more}."

    @property
    def digest(self) -> str:
        """Of all pairs in order, learnt or held out."""
        digest = hashlib.blake2b(digest_size=8)
        for role, sources in (("learnt", self.inputs), ("held out", [self.held_out] if self.held_out else [])):
            digest.update(role.encode())
            for _, pairs in sources:
                for pair in pairs:
                    digest.update(canonical([pair.key, pair.chosen, pair.rejected]))
        return digest.hexdigest()

    def read(
        self, processor: Processor, row_tokens: int, log: Callable[[str], None], *, strict: bool
    ) -> tuple[PairSet, PairSet | None]:  # fmt: skip
        """The pairs that can be read, to learn and held out; reports the others. Raises Corrupt where none is left."""
        name = ", ".join(source.name for source, _ in self.inputs)
        learnt = PairSet([pair for _, pairs in self.inputs for pair in pairs], processor, row_tokens)
        held_out = PairSet(self.held_out[1], processor, row_tokens) if self.held_out else None
        rows = [(source.name, source.skipped) for source, _ in self.inputs] + [(name, learnt.skipped)]
        if self.held_out and held_out is not None:
            rows += [("--valid", self.held_out[0].skipped), ("--valid", held_out.skipped)]
        self.code = max(skipped.report(src, log, strict=strict) for src, skipped in rows)
        for src, found in ((name, learnt), ("--valid", held_out)):
            if found is not None and not len(found):
                raise Corrupt(
                    f"{src}: no pair of a better and a worse answer is left. Look at the lines above, or at kvtools rl pairs."
                )
        return learnt, held_out


@contextmanager
def open_pairs(sources: Sequence[str], valid: str | None, media: Sequence[str]) -> Iterator[PairData]:
    """The pairs of these sources, each a path or `-`; their media are closed at the end."""
    read = [open_conversations(src) for src in sources]
    inputs = [(source, pairs_of(source)) for source in read]
    held_out = None
    if valid is not None:
        source = open_conversations(valid)
        held_out = (source, pairs_of(source))
    roots = [source.root for source, _ in [*inputs, *([held_out] if held_out else [])]]
    with Media(media, roots=roots) as opened:
        yield PairData(inputs, held_out, opened)


@contextmanager
def open_sandbox(prompts: Iterable[Prompt], shares: Mapping[str, float]) -> Iterator[Sandbox | None]:
    """Where code in answers runs; None where no prompt is agentic."""
    if "agentic" not in shares and (shares or not any(prompt.mode == "agentic" for prompt in prompts)):
        yield None
        return
    with Sandbox() as sandbox:
        yield sandbox


@contextmanager
def open_rewards(
    specs: Sequence[RewardSpec], judges: Sequence[str], *, model: str | None, cache: str | None, timeout_s: float, seed: int
) -> Iterator[Rewards]:
    """The rewards of these terms; a judge and its cache are closed at the end. Raises Usage for an address that is none."""
    judge = None
    if judges:
        from kvtools.keye.endpoint.endpoint import Endpoint

        try:
            judge = Endpoint(judges, model, cache=cache, seed=seed, timeout_s=timeout_s, retries=4)
        except ValueError as error:
            raise Usage(f"--judge: {error}. Name the server of the judge.") from None
        except OSError as error:
            raise Usage(f"--judge: {cache}: {os_reason(error)}. Give a file for --judge-cache that can be written.") from None
    terms = [(_scorer(spec, judge, timeout_s), spec.weight) for spec in specs]
    rewards = Rewards(terms, judge.name_of_model() if judge is not None else None)
    try:
        yield rewards
    finally:
        rewards.close()
        if judge is not None:
            judge.close()


def _scorer(spec: RewardSpec, judge: object, timeout_s: float) -> Scorer:
    if spec.program is not None:
        return Program(spec.name, spec.program, timeout_s)
    if judge is not None and spec.name in _JUDGED:
        from kvtools.keye.endpoint.endpoint import Endpoint
        from kvtools.keye.rl.judge import JudgedConsistency, JudgedCorrectness

        assert isinstance(judge, Endpoint), "it was opened above"
        return JudgedCorrectness(judge) if spec.name == "correct" else JudgedConsistency(judge)
    return Rule(spec.name, RULES[spec.name])
