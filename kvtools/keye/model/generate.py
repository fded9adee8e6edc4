"""Answers to prompts, token by token, with the probability of each: for chat, for evaluation, and for learning from them.

Prompts of any lengths go through the model together and do not see one another; pictures are looked at once a prompt, and a
prompt is read once, whatever the number of its answers. What is drawn depends on the seed, the prompt's key and the answer's
number: not on the batch, its order or the budget, but for the last bits of products, which depend on how many rows they have.
Prompts of equal keys share their chance. Not here: text (chat.py), what a prompt is made of (rows.prompt).

Legend: S tokens of a row, D width, V vocabulary, M visual tokens, B answers that go on, G prompts.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvtools.chance import rng_for
from kvtools.keye.model.inputs import Example, PackedRow, Visual
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.language import KVCache
from kvtools.keye.model.sampling import SamplingConfig, sample_tokens

OnToken = Callable[[str, int, int], None]  # key of the prompt, number of the answer, the token just chosen

_BUDGET = 1 << 16  # tokens: 10 GB of keys and values of the 8b size in bfloat16, 0.15 GB of tiny in float32
_DROPPED = 8  # an eighth of a batch: dropping ended answers copies the cache, so it waits until there are some
_CHUNK_LOGITS = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True)
class Answer:
    """One answer to the prompt of that key: the `number`-th of its n.

    tokens int32 (N,), the stop token among them where it `ended` by "stop" rather than "length". logprobs float32 (N,): of each
    token under the whole model at temperature 1. drawn float32 (N,): under what it was drawn from, which greedily is 0.
    """

    key: str
    number: int
    tokens: np.ndarray
    logprobs: np.ndarray
    drawn: np.ndarray
    ended: Literal["stop", "length"]

    @property
    def text_tokens(self) -> np.ndarray:
        """The tokens without the one that stopped it."""
        return self.tokens[:-1] if self.ended == "stop" else self.tokens


class VisualCache:
    """Visual tokens of what was looked at last: what several prompts show, one object, is looked at once."""

    def __init__(self, model: Keye) -> None:
        self._model = model
        self._seen: dict[int, tuple[Visual, Tensor]] = {}  # by id, which is a visual's own for as long as it is held here

    @torch.inference_mode()
    def encode(self, visuals: Sequence[Visual]) -> Tensor | None:
        """Visual tokens of all of them in order, (M, D); those of the call before need no second look."""
        known = {key: kept for key, kept in self._seen.items() if key in set(map(id, visuals))}
        new = {id(visual): visual for visual in visuals if id(visual) not in known}
        if new:
            pixels = torch.from_numpy(np.concatenate([visual.pixels_P3HW for visual in new.values()]))
            grids = [grid for visual in new.values() for grid in _grids(visual.grid[None])]
            seen_MD = self._model.encode_images(pixels.to(self._model.output_VD.device), grids)
            parts = torch.split(seen_MD, [t * h * w // self._model.config.merge**2 for t, h, w in grids])
            known |= {key: (visual, part) for (key, visual), part in zip(new.items(), parts, strict=True)}
        self._seen = known
        return torch.cat([known[id(visual)][1] for visual in visuals]) if visuals else None


def generate(
    model: Keye,
    prompts: Iterable[Example],
    *,
    max_new: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    n: int = 1,
    never: Sequence[int] = (),
    budget: int = _BUDGET,
    on_token: OnToken | None = None,
    visual_cache: VisualCache | None = None,
) -> Iterator[list[Answer]]:
    """The n answers to each prompt, in order, as soon as its chunk is done; prompts are taken as they are needed.

    max_new: tokens an answer may have. temperature 0 is greedy, and its n answers are equal. never: tokens that are not drawn;
    those of pictures and videos never are. budget: tokens held at a time, of prompts while they are read and of answers with
    theirs while they grow; one prompt, and one answer, may exceed it. tell: called with each token as it is chosen. eyes: those
    that have seen the pictures of an earlier call. Raises ValueError for settings that cannot be meant, and where what the
    model gives is not finite.
    """
    sampling = SamplingConfig(temperature, top_k, top_p)
    for name, count in (("max_new", max_new), ("n", n), ("budget", budget)):
        if count < 1:
            raise ValueError(f"{name}: {count} found, at least 1 expected")
    config = model.config
    shut = sorted({config.image_token, config.video_token, *never} & set(range(config.language.vocabulary)))
    run = _Run(
        model, sampling, max_new, frozenset(stop_tokens), seed, shut, budget, on_token, visual_cache or VisualCache(model)
    )
    return (answers for chunk in _chunks(prompts, budget) for answers in run.answers(chunk, n))


def with_answer(prompt: Example, answer: Answer) -> Example:
    """The prompt and its answer as one conversation, whose targets are the answer's tokens."""
    n_new = len(answer.tokens)
    begin = _next_position(prompt)
    place = np.broadcast_to(np.arange(begin, begin + n_new, dtype=np.int32), (3, n_new))
    return Example(
        prompt.key,
        np.concatenate([prompt.tokens, answer.tokens]),
        np.concatenate([np.zeros(len(prompt), np.uint8), np.ones(n_new, np.uint8)]),
        np.concatenate([prompt.positions, place], axis=1),
        prompt.visuals,
    )


def log_probabilities(model: Keye, row: PackedRow, *, everywhere: bool = False) -> Tensor:
    """Log-probability of each target of a packed row given what stands before it, float32 (S,), with gradients; 0 elsewhere.

    everywhere: of all tokens but the first of each conversation, targets or not. Logits exist for a chunk of targets at a time,
    and are computed again for gradients. Raises ValueError for a target at the beginning of a conversation.
    """
    device = model.output_VD.device
    is_first = np.zeros(len(row), bool)
    is_first[row.segments] = True
    is_wanted = ~is_first if everywhere else row.targets.astype(bool)
    if (is_wanted & is_first).any():
        raise ValueError("a target at the beginning of a conversation found; nothing stands before it")
    seen_MD = None if row.pixels is None else model.encode_images(torch.tensor(row.pixels, device=device), _grids(row.grid))
    tokens_S = torch.tensor(row.tokens, dtype=torch.long, device=device)
    positions_3S = torch.tensor(row.positions, device=device)
    hidden_SD = model.hidden(tokens_S, positions_3S, row.segments.tolist(), seen_MD)
    places = torch.from_numpy(np.flatnonzero(is_wanted)).to(device)
    chunk = max(1, _CHUNK_LOGITS // model.config.language.vocabulary)
    parts = [
        checkpoint(_scores, model, hidden_SD[some - 1], tokens_S[some], use_reentrant=False)
        for some in torch.split(places, chunk)
    ]
    empty = hidden_SD.new_zeros(len(row), dtype=torch.promote_types(hidden_SD.dtype, torch.float32))
    return empty.index_copy(0, places, torch.cat(parts))


def _scores(model: Keye, hidden_SD: Tensor, tokens_S: Tensor) -> Tensor:
    logits_SV = model.logits(hidden_SD)
    wide = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    return wide.gather(1, tokens_S[:, None])[:, 0] - wide.logsumexp(1)


@dataclass(frozen=True)
class _Prefilled:
    """Prompts that have been read: what the model keeps of each, its state after the last token, and the next position."""

    cache: KVCache
    hidden_GD: Tensor
    next_G: Tensor


class _Growing:
    """An answer while it grows."""

    def __init__(self, prompt: Example, number: int, chance: np.random.Generator) -> None:
        self.key, self.number, self.chance = prompt.key, number, chance
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.drawn: list[float] = []
        self.has_stopped = False

    def whole(self) -> Answer:
        logprobs, drawn = np.array(self.logprobs, np.float32), np.array(self.drawn, np.float32)
        ended: Literal["stop", "length"] = "stop" if self.has_stopped else "length"
        return Answer(self.key, self.number, np.array(self.tokens, np.int32), logprobs, drawn, ended)


@dataclass(frozen=True)
class _Run:
    """One call of `generate`."""

    model: Keye
    sampling: SamplingConfig
    max_new: int
    stops: frozenset[int]
    seed: int
    never: Sequence[int]
    budget: int
    on_token: OnToken | None
    visual_cache: VisualCache

    @torch.inference_mode()
    def answers(self, chunk: Sequence[Example], n: int) -> list[list[Answer]]:
        """The answers to some prompts that are read together."""
        read = self._read(chunk)
        growing = [[_Growing(p, k, rng_for(self.seed, "answer", p.key, k)) for k in range(n)] for p in chunk]
        line = [(place, answer) for place, some in enumerate(growing) for answer in some]
        while line:
            longest, n_rows = 0, 0
            for place, _ in line:
                longest = max(longest, len(chunk[place]) + self.max_new)
                if n_rows and (n_rows + 1) * longest > self.budget:
                    break
                n_rows += 1
            self._grow(read, *zip(*line[:n_rows], strict=True))
            line = line[n_rows:]
        return [[answer.whole() for answer in some] for some in growing]

    def _read(self, chunk: Sequence[Example]) -> _Prefilled:
        model, device = self.model, self.model.output_VD.device
        tokens_S = torch.from_numpy(np.concatenate([p.tokens for p in chunk])).long().to(device)
        positions_3S = torch.from_numpy(np.concatenate([p.positions for p in chunk], axis=1)).to(device)
        ends = np.cumsum([len(p) for p in chunk])
        seen_MD = self.visual_cache.encode([visual for prompt in chunk for visual in prompt.visuals])
        cache = KVCache()
        hidden_SD = model.hidden(tokens_S, positions_3S, [0, *ends[:-1].tolist()], seen_MD, cache)
        following = torch.tensor([_next_position(p) for p in chunk], device=device)
        return _Prefilled(cache, hidden_SD[torch.from_numpy(ends - 1).to(device)], following)

    def _grow(self, read: _Prefilled, places: Sequence[int], answers: Sequence[_Growing]) -> None:
        """Let answers to the prompts at these places grow until all have ended."""
        model, device = self.model, read.hidden_GD.device
        never = torch.tensor(self.never, dtype=torch.long, device=device)
        cache, rows, numbers = copy.copy(read.cache), list(answers), torch.tensor(places, device=device)
        if places != tuple(range(len(read.next_G))):
            cache.select(numbers)  # copies, so that what was read stays for others
        hidden_BD, next_B = read.hidden_GD[numbers], read.next_G[numbers]
        while True:
            chance_B = torch.tensor([row.chance.random() for row in rows], dtype=torch.float64, device=device)
            chosen = sample_tokens(model.logits(hidden_BD), self.sampling, chance_B, never)
            self._note(rows, chosen.tokens_B.tolist(), chosen.logprobs_B.tolist(), chosen.drawn_B.tolist())
            going = [place for place, row in enumerate(rows) if not self._has_ended(row)]
            if not going:
                return
            tokens_B = chosen.tokens_B
            if (len(rows) - len(going)) * _DROPPED >= len(rows):
                numbers, rows = torch.tensor(going, device=device), [rows[place] for place in going]
                cache.select(numbers)
                tokens_B, next_B = tokens_B[numbers], next_B[numbers]
            hidden_BD = model.hidden(tokens_B, next_B.expand(3, -1), range(len(rows)), None, cache)
            next_B = next_B + 1

    def _note(self, rows: Sequence[_Growing], *chosen: Sequence[float]) -> None:
        for row, token, logprob, drawn in zip(rows, *chosen, strict=True):
            if self._has_ended(row):
                continue  # it waits to be dropped
            row.tokens.append(int(token))
            row.logprobs.append(logprob)
            row.drawn.append(drawn)
            row.has_stopped = token in self.stops
            if self.on_token is not None:
                self.on_token(row.key, row.number, int(token))

    def _has_ended(self, row: _Growing) -> bool:
        return row.has_stopped or len(row.tokens) >= self.max_new


def _chunks(prompts: Iterable[Example], budget: int) -> Iterator[list[Example]]:
    """Neighbours that fit the budget together, were each as long as the longest: so long is each one's part of the cache."""
    held: list[Example] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt))
        if held and (len(held) + 1) * longest > budget:
            yield held
            held, longest = [], len(prompt)
        held.append(prompt)
    if held:
        yield held


def _grids(grid_V3: np.ndarray) -> list[tuple[int, int, int]]:
    return [(int(t), int(h), int(w)) for t, h, w in grid_V3]


def _next_position(prompt: Example) -> int:
    """Where the first token of the answer stands, on all axes (rope.rope_delta, counted from the beginning)."""
    return int(prompt.positions.max()) + 1
