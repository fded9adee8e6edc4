"""Answers to prompts, token by token, with the probability of each: for chat, for evaluation, and for learning from them.

Prompts of any lengths go through the model together and do not attend to one another; a picture is encoded once a prompt, and a
prompt is read once, whatever the number of its answers. What is drawn depends on the seed, the prompt's key and the answer's
number, so prompts of equal keys draw alike; not on the batch, its order or the budget, but for the last bits of products, which
depend on how many rows they have. Not here: text (data/chat_template.py), and what a prompt is made of (data/packing.py).

Legend: S tokens of a row, D width, V vocabulary, M visual tokens, B answers that still grow, G prompts, N tokens of an answer.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvtools.chance import rng_for
from kvtools.keye.model.decode import Decoding, DecodingWeights
from kvtools.keye.model.inputs import Example, Visual
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.language import KVCache
from kvtools.keye.model.sampling import SampledTokens, SamplingConfig, sample_tokens, seen_tokens
from kvtools.keye.model.visual_cache import VisualCache

OnToken = Callable[[str, int, int], None]  # key of the prompt, number of the answer, the token just chosen
OnInsert = Callable[[str, int, Sequence[int]], "Insertion | None"]  # the same, and all tokens of the answer so far
IsOver = Callable[[Sequence[int]], bool]

_BUDGET = 1 << 16  # tokens: 10 GB of keys and values of the 8b size in bfloat16, 0.15 GB of tiny in float32
_DROPPED = 8  # an eighth of a batch: dropping ended answers copies the cache, so it waits until there are some


@dataclass(frozen=True)
class Insertion:
    """What somebody else says within an answer, such as the output of code: it is read, not drawn.

    tokens int32 (I,), positions int32 (3, I) from 0 on, and the pictures among the tokens. is_end: the answer ends here.
    """

    tokens: np.ndarray
    positions: np.ndarray
    visuals: tuple[Visual, ...] = ()
    is_end: bool = False


@dataclass(frozen=True)
class Answer:
    """One answer to the prompt of that key: `number` counts them from 0.

    tokens int32 (N,), the stop token among them where it `ended` by "stop" rather than "length" or "insertion". inserted: the
    insertions, each with the index of its first token; the other tokens, D of them, were drawn. logprobs float32 (D,): of each
    under the model's whole distribution at temperature 1. sampling_logprobs float32 (D,): under the distribution it was drawn
    from, which greedily is 0.
    """

    key: str
    number: int
    tokens: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    ended: Literal["stop", "length", "insertion"]
    inserted: tuple[tuple[int, Insertion], ...] = ()

    @property
    def text_tokens(self) -> np.ndarray:
        """The tokens without the stop token, int32 (N,) or one fewer."""
        return self.tokens[:-1] if self.ended == "stop" else self.tokens


def generate(
    model: Keye,
    prompts: Iterable[Example],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    n_answers: int = 1,
    suppress_tokens: Sequence[int] = (),
    budget: int = _BUDGET,
    on_token: OnToken | None = None,
    insert: OnInsert | None = None,
    is_over: IsOver | None = None,
    visual_cache: VisualCache | None = None,
) -> Iterator[list[Answer]]:
    """The answers to each prompt, in order, as soon as its chunk is done; prompts are taken as they are needed.

    max_new_tokens: the most tokens of an answer. temperature 0 is greedy, and all answers to a prompt are equal. Neither
    suppress_tokens nor the tokens of pictures and videos are drawn. budget: tokens held at a time, of prompts while they are
    read and of answers with their prompts while they grow; one prompt, and one answer, may exceed it. on_token: called with
    each token as it is chosen. insert: called with each answer after each of its tokens; what it returns is read next, with the
    cache kept, and counts neither as drawn nor towards max_new_tokens. is_over: whether an answer of these tokens ends, by
    "insertion". visual_cache: one of an earlier call. Raises ValueError for bad settings, and for logits that are not finite.
    """
    sampling = SamplingConfig(temperature, top_k, top_p, repetition_penalty)
    for name, count in (("max_new_tokens", max_new_tokens), ("n_answers", n_answers), ("budget", budget)):
        if count < 1:
            raise ValueError(f"{name} is {count}, and a whole number of at least 1 is needed")
    config = model.config
    forbidden = {config.image_token, config.video_token, *suppress_tokens} & set(range(config.language.vocabulary))
    generation = _Generation(
        model, sampling, max_new_tokens, frozenset(stop_tokens), seed, sorted(forbidden), budget, on_token,
        insert, is_over, visual_cache or VisualCache(model),
    )  # fmt: skip
    return (answers for chunk in _chunks(prompts, budget) for answers in generation.answers(chunk, n_answers))


def with_answer(prompt: Example, answer: Answer) -> Example:
    """The prompt and its answer as one conversation, whose targets are the answer's drawn tokens."""
    n_new, position = len(answer.tokens), _next_position(prompt)
    targets_N, positions_3N = np.ones(n_new, np.uint8), np.empty((3, n_new), np.int32)
    end = 0  # of the last insertion
    for begin, insertion in (*answer.inserted, (n_new, None)):
        positions_3N[:, end:begin] = np.arange(position, position + begin - end, dtype=np.int32)
        position += begin - end
        if insertion is not None:
            end = begin + len(insertion.tokens)
            targets_N[begin:end], positions_3N[:, begin:end] = 0, position + insertion.positions
            position += _n_positions(insertion)
    return Example(
        prompt.key,
        np.concatenate([prompt.tokens, answer.tokens]),
        np.concatenate([np.zeros(len(prompt), np.uint8), targets_N]),
        np.concatenate([prompt.positions, positions_3N], axis=1),
        (*prompt.visuals, *(visual for _, insertion in answer.inserted for visual in insertion.visuals)),
    )


@dataclass(frozen=True)
class _Prefilled:
    """Prompts that have been read: their keys and values, the hidden state of each one's last token, its next position."""

    prompts: Sequence[Example]
    cache: KVCache
    hidden_GD: Tensor
    next_G: Tensor


class _GrowingAnswer:
    """An answer while it grows; `prompt` is the index of its prompt in the chunk."""

    def __init__(self, prompt: int, key: str, number: int, rng: np.random.Generator) -> None:
        self.prompt, self.key, self.number, self.rng = prompt, key, number, rng
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampling_logprobs: list[float] = []
        self.inserted: list[tuple[int, Insertion]] = []
        self.has_stopped = self.is_closed = False

    def finished(self) -> Answer:
        logprobs, sampling = np.array(self.logprobs, np.float32), np.array(self.sampling_logprobs, np.float32)
        ended: Literal["stop", "length", "insertion"]
        ended = "stop" if self.has_stopped else "insertion" if self.is_closed else "length"
        tokens, inserted = np.array(self.tokens, np.int32), tuple(self.inserted)
        return Answer(self.key, self.number, tokens, logprobs, sampling, ended, inserted)

    def add(self, insertion: Insertion) -> None:
        self.inserted.append((len(self.tokens), insertion))
        self.tokens += insertion.tokens.tolist()
        self.is_closed = insertion.is_end


@dataclass(frozen=True)
class _UnequalGrowth:
    """Answers of any lengths, with a cache of all tokens of each: `Decoding`, where something is inserted."""

    model: Keye
    cache: KVCache

    def select(self, rows: Sequence[int]) -> None:
        assert self.cache.lengths_G is not None, "the prompts have been read"
        self.cache.select(torch.tensor(rows, device=self.cache.lengths_G.device))

    def step(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        return self.model.hidden(tokens_B, positions_B.expand(3, -1), range(len(tokens_B)), None, self.cache)


@dataclass(frozen=True)
class _Generation:
    """One call of `generate`."""

    model: Keye
    sampling: SamplingConfig
    max_new_tokens: int
    stops: frozenset[int]
    seed: int
    forbidden: Sequence[int]
    budget: int
    on_token: OnToken | None
    insert: OnInsert | None
    is_over: IsOver | None
    visual_cache: VisualCache

    @cached_property
    def weights(self) -> DecodingWeights:
        return DecodingWeights(self.model)

    @torch.inference_mode()
    def answers(self, chunk: Sequence[Example], n: int) -> list[list[Answer]]:
        """The answers to some prompts that are read together."""
        prefilled = self._prefill(chunk)
        answers = [
            _GrowingAnswer(index, prompt.key, number, rng_for(self.seed, "answer", prompt.key, number))
            for index, prompt in enumerate(chunk)
            for number in range(n)
        ]
        waiting = answers
        while waiting:
            n_rows = self._n_fitting([len(chunk[answer.prompt]) for answer in waiting])
            self._grow(prefilled, waiting[:n_rows])
            waiting = waiting[n_rows:]
        finished = [answer.finished() for answer in answers]
        return [finished[begin : begin + n] for begin in range(0, len(finished), n)]

    def _n_fitting(self, lengths: Sequence[int]) -> int:
        """How many of the answers to prompts of those lengths fit the budget together; one at least."""
        longest = 0
        for n_rows, length in enumerate(lengths):
            longest = max(longest, length + self.max_new_tokens)
            if n_rows and (n_rows + 1) * longest > self.budget:
                return n_rows
        return len(lengths)

    def _prefill(self, chunk: Sequence[Example]) -> _Prefilled:
        model, device = self.model, self.model.output_VD.device
        tokens_S = torch.from_numpy(np.concatenate([prompt.tokens for prompt in chunk])).long().to(device)
        positions_3S = torch.from_numpy(np.concatenate([prompt.positions for prompt in chunk], axis=1)).to(device)
        ends_G = np.cumsum([len(prompt) for prompt in chunk])
        visual_MD = self.visual_cache.encode([visual for prompt in chunk for visual in prompt.visuals])
        cache = KVCache()
        hidden_SD = model.hidden(tokens_S, positions_3S, [0, *ends_G[:-1].tolist()], visual_MD, cache)
        next_G = torch.tensor([_next_position(prompt) for prompt in chunk], device=device)
        return _Prefilled(chunk, cache, hidden_SD[torch.from_numpy(ends_G - 1).to(device)], next_G)

    def _grow(self, prefilled: _Prefilled, answers: Sequence[_GrowingAnswer]) -> None:
        """Let answers grow until all have ended. An ended one stays in the batch until enough have, and is ignored."""
        device = prefilled.hidden_GD.device
        forbidden_F = torch.tensor(self.forbidden, dtype=torch.long, device=device)
        prompts = [answer.prompt for answer in answers]
        index_B, rows = torch.tensor(prompts, device=device), list(answers)
        growth = self._growth(prefilled, prompts)
        seen = seen_tokens(self.sampling, [prefilled.prompts[n].tokens for n in prompts], self.model.output_VD)
        hidden_BD, next_B = prefilled.hidden_GD[index_B], prefilled.next_G[index_B]
        while True:
            uniform_B = torch.tensor([row.rng.random() for row in rows], dtype=torch.float64, device=device)
            sampled = sample_tokens(self.model.logits(hidden_BD), self.sampling, uniform_B, forbidden_F, seen)
            self._append(rows, sampled)
            inserted = [self._insertion(row) for row in rows]
            growing = [index for index, row in enumerate(rows) if not self._has_ended(row)]
            if not growing:
                return
            tokens_B = sampled.tokens_B
            if (len(rows) - len(growing)) * _DROPPED >= len(rows):
                index_B, rows = torch.tensor(growing, device=device), [rows[index] for index in growing]
                inserted = [inserted[index] for index in growing]
                growth.select(growing)
                seen = seen and seen.select(index_B)
                tokens_B, next_B = tokens_B[index_B], next_B[index_B]
            if any(inserted):
                assert isinstance(growth, _UnequalGrowth), "only with `insert` can there be an insertion"
                hidden_BD, next_B = self._read(tokens_B, next_B, inserted, growth.cache)
            else:
                hidden_BD, next_B = growth.step(tokens_B, next_B), next_B + 1

    def _growth(self, prefilled: _Prefilled, prompts: Sequence[int]) -> "Decoding | _UnequalGrowth":
        """What answers to those prompts grow by. Insertions make them unequally long, and then each has a cache of its own."""
        if self.insert is None:
            return Decoding(self.weights, prefilled.cache, prompts, prefilled.next_G.tolist())
        cache = copy.copy(prefilled.cache)
        if prompts != list(range(len(prefilled.next_G))):
            # copies, so that the prompts' keys and values stay for other answers
            cache.select(torch.tensor(prompts, device=prefilled.next_G.device))
        return _UnequalGrowth(self.model, cache)

    def _insertion(self, row: _GrowingAnswer) -> Insertion | None:
        """What is to be read after the token just drawn; it is the row's from now on."""
        if self.insert is None or self._has_ended(row):
            return None
        insertion = self.insert(row.key, row.number, row.tokens)
        if insertion is not None:
            row.add(insertion)
        return insertion

    def _read(
        self, tokens_B: Tensor, next_B: Tensor, inserted: Sequence[Insertion | None], cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """The hidden state of each row's last token, (B, D), and its next position, after a token and its insertion a row."""
        device = tokens_B.device
        tokens, positions, lengths, next_ = [], [], [], []
        for token, position, insertion in zip(tokens_B.tolist(), next_B.tolist(), inserted, strict=True):
            tokens.append(np.array([token]))
            positions.append(np.full((3, 1), position))
            if insertion is not None:
                tokens.append(insertion.tokens)
                positions.append(position + 1 + insertion.positions)
            lengths.append(1 if insertion is None else 1 + len(insertion.tokens))
            next_.append(position + 1 + (0 if insertion is None else _n_positions(insertion)))
        ends_B = np.cumsum(lengths)
        visuals = [visual for insertion in inserted if insertion is not None for visual in insertion.visuals]
        tokens_S = torch.from_numpy(np.concatenate(tokens)).long().to(device)
        positions_3S = torch.from_numpy(np.concatenate(positions, axis=1)).to(device)
        starts = [0, *ends_B[:-1].tolist()]
        hidden_SD = self.model.hidden(tokens_S, positions_3S, starts, VisualCache(self.model).encode(visuals), cache)
        return hidden_SD[torch.from_numpy(ends_B - 1).to(device)], torch.tensor(next_, device=device)

    def _append(self, rows: Sequence[_GrowingAnswer], sampled: SampledTokens) -> None:
        columns = (sampled.tokens_B.tolist(), sampled.logprobs_B.tolist(), sampled.sampling_logprobs_B.tolist())
        for row, token, logprob, sampling_logprob in zip(rows, *columns, strict=True):
            if self._has_ended(row):
                continue
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.sampling_logprobs.append(sampling_logprob)
            row.has_stopped, row.is_closed = token in self.stops, self.is_over is not None and self.is_over(row.tokens)
            if self.on_token is not None:
                self.on_token(row.key, row.number, token)

    def _has_ended(self, row: _GrowingAnswer) -> bool:
        return row.has_stopped or row.is_closed or len(row.logprobs) >= self.max_new_tokens


def _chunks(prompts: Iterable[Example], budget: int) -> Iterator[list[Example]]:
    """Neighbours that fit the budget together, were each as long as the longest: so long is each one's part of the cache."""
    chunk: list[Example] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt))
        if chunk and (len(chunk) + 1) * longest > budget:
            yield chunk
            chunk, longest = [], len(prompt)
        chunk.append(prompt)
    if chunk:
        yield chunk


def _next_position(prompt: Example) -> int:
    """The position of the answer's first token, on all axes: one after the prompt's largest."""
    return int(prompt.positions.max()) + 1


def _n_positions(insertion: Insertion) -> int:
    """How far the next position is behind the insertion's first."""
    return int(insertion.positions.max()) + 1 if insertion.positions.size else 0
