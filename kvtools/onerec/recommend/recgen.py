"""What `recgen` does between opening and writing: who asks, who answers, and what is told about both.

One rank of several may know a fault alone only where all read the same files, so all find it; skipped are told by rank 0.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import typer

from kvtools.artifact import open_artifact, source_name
from kvtools.artifact.delimited import read_lines
from kvtools.artifact.files import Sink, open_source
from kvtools.artifact.history import Step, extend
from kvtools.artifact.stream import Head, Writer
from kvtools.chance import rng_for as chance
from kvtools.errors import Corrupt, Missing, Usage
from kvtools.onerec.interactions.features import Codings, Histories, join
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID
from kvtools.onerec.interactions.stream import open_interactions
from kvtools.onerec.interactions.users import Users, Vocabulary, open_users
from kvtools.onerec.items.titles import read_titles
from kvtools.onerec.model.batching import Batcher
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import cooccurrence
from kvtools.onerec.recommend import evaluate as evaluating
from kvtools.onerec.recommend.cooccurrence import Settings
from kvtools.onerec.recommend.recommend import CHUNK, Ask, Choice, Found, Recommender, by_counting, count
from kvtools.onerec.run import checkpoint as generator
from kvtools.onerec.run.checkpoint import Counted, Generator
from kvtools.onerec.run.dataset import held_out
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.progress import Ticker
from kvtools.skipped import SkippedRows
from kvtools.world import World, shard

Baseline = Literal["popular", "co-occurrence"]
_CALIBRATION = 4000  # users of the validation part, a seeded sample


@dataclass(frozen=True)
class Answer:
    """What one user is recommended."""

    user: str
    items: list[str]
    numbers: np.ndarray  # int32 (k,): the items in the catalogue
    scores: np.ndarray  # float32 (k,)
    codes: np.ndarray  # int32 (k, S)
    is_fallback: bool


class Serving:
    """Interactions that ask, and a model or a baseline that answers. `code` is what to exit with."""

    def __init__(
        self, src: str, columns: dict[str, str], items: str | None, table: str | None, choice: Choice, world: World, *,
        device: str, dtype: torch.dtype, tell: Callable[[str], None], tell_loss: Callable[[str], None], strict: bool,
        is_told: bool, is_quiet: bool,
    ) -> None:  # fmt: skip
        self._name = "stdin" if src == "-" else src
        self._items, self._table, self._choice, self._world = items, table, choice, world
        self._device, self._dtype, self._tell, self._tell_loss, self._strict = device, dtype, tell, tell_loss, strict
        self._is_told, self._is_quiet = is_told, is_quiet or not world.is_root
        self.code = self.n_users = 0
        self._known: dict[tuple[Vocabulary, ...], Users] = {}  # a table may be stdin, which is read once
        self.history: list[list[Step]] = []
        self._log, skipped, before = open_interactions(src, columns=columns)
        self.history.append(before)
        self._report(self._name, skipped)

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────
    def evaluate(self, model: str, baseline: Baseline | None, part: str, *, calibrate: bool) -> dict[str, Any]:
        """The figures of one model or baseline on a part, on rank 0; a collective."""
        begun = time.monotonic()
        longest = evaluating.LONGEST
        k = max(longest, *(n for n in evaluating.PASSES if n <= max(self._choice.beam, longest)))
        choice = _with(self._choice, k=k, sure_of=longest)
        told: dict[str, Any] = {"model": model} if baseline is None else {"baseline": baseline}
        if baseline is not None:
            ids, histories, counted = self._counted()
            recommend = self._counting(baseline, counted, histories, ids, choice)
            ids_of = Trie(ids.codes_NS).id_of_item
        else:
            made, histories = self._generator(model)
            if calibrate:
                choice = _with(choice, blend=self._calibrated(made, histories, choice))
                if part != "test":
                    self._tell("--blend auto: users it was chosen by are evaluated, which flatters it. See --evaluate test.")
            recommender = self._recommender(made, histories, choice)
            recommend, ids_of = recommender.recommend, recommender.trie.id_of_item
            told |= {"beam": choice.beam, "sure": choice.widens, "blend": choice.blend}
        ask, targets = held_out(histories, TEST if part == "test" else VALID)
        if not len(ask):
            raise Corrupt(f"{self._name}: no {part} interactions of known items found, some expected. See --column part=COL.")
        ranked = evaluating.rank(ask, targets, ids_of, self._world, self._ticking(recommend, len(ask)))
        told |= {"part": part, "masked": self._choice.mask_seen}
        if self._world.is_root:
            # of a mixture the bound is not known, and without the trie it counts what no item has
            is_bounded = baseline is None and choice.is_legal and not choice.blend
            told |= evaluating.describe(ranked, k, tells_sure=is_bounded)
            self._tell_unsure(len(ask) - ranked.n_sure, len(ask))
        return {**told, "seconds": round(time.monotonic() - begun, 3)}

    def print_figures(self, lines: Sequence[dict[str, Any]], *, as_json: bool) -> None:
        """On rank 0: a line each, and their mean where there are several."""
        if not self._world.is_root:
            return
        whole = [*lines, evaluating.spread(lines)] if len(lines) > 1 else list(lines)
        for line in map(json.dumps, whole) if as_json else evaluating.as_table(whole):
            typer.echo(line)

    def _calibrated(self, made: Generator, histories: Histories, choice: Choice) -> float:
        ask, targets = held_out(histories, VALID)
        if not len(ask):
            raise Corrupt(
                f"{self._name}: no valid interactions of known items found, which --blend auto calibrates on. Give X."
            )
        chosen = np.sort(chance(choice.seed, "calibration").permutation(len(ask))[:_CALIBRATION])
        recommender = self._recommender(made, histories, _with(choice, k=10))
        weight = 0.0
        if self._world.is_root:
            weight = evaluating.calibrate(ask.only(chosen), targets[chosen], recommender)
            self._tell(f"--blend auto: {weight:g} by NDCG@10 of {len(chosen)} users of the validation part.")
        return float(self._world.broadcast(weight))

    # ── recommendations ──────────────────────────────────────────────────────────────────────────────────────────────
    def answers(
        self, model: str, baseline: Baseline | None, users: str | None, part: str | None, *, calibrate: bool
    ) -> Iterator[Answer]:
        """Each user's recommendations in order, on rank 0; a collective that all ranks go through."""
        choice = self._choice
        if baseline is not None:
            ids, histories, counted = self._counted()
            recommend = self._counting(baseline, counted, histories, ids, choice)
        else:
            made, histories = self._generator(model)
            ids, counted = made.ids, made.counted
            if calibrate:
                choice = _with(choice, blend=self._calibrated(made, histories, choice))
            recommend = self._recommender(made, histories, choice).recommend
        ask, names = self._asked(histories, users, part)
        self.n_users = len(ask)
        n_cold = int((ask.lengths == 0).sum())
        if n_cold:
            some = ", ".join(names[n] for n in np.flatnonzero(ask.lengths == 0)[:3])
            self._tell(f"{self._name}: {n_cold} users without a known item get what is popular ({some}{', …' * (n_cold > 3)}).")
        done = n_sure = 0
        for some_asked, found in evaluating.over_ranks(ask, self._world, self._ticking(recommend, len(ask))):
            n_sure += found.n_sure
            if self._world.is_root:
                for row in range(len(some_asked)):
                    numbers = found.items[row][found.items[row] >= 0]
                    keys, codes = ids.keys[numbers].tolist(), ids.codes_NS[numbers]
                    is_cold = bool(some_asked.lengths[row] == 0)
                    yield Answer(names[done + row], keys, numbers, found.scores[row][: len(numbers)], codes, is_cold)
                done += len(some_asked)
        self._tell_unsure(len(ask) - n_sure, len(ask))

    def _tell_unsure(self, n_unsure: int, n_asked: int) -> None:
        if self._choice.widens and n_unsure:
            self._tell(f"--sure: {n_unsure} of {n_asked} may have missed better items, for want of memory. See --exact.")

    def _asked(self, histories: Histories, users: str | None, part: str | None) -> tuple[Ask, list[str]]:
        lengths = np.diff(histories.offsets)
        names = [str(key) for key in histories.user_keys.tolist()]
        numbers = list(range(len(names)))
        if users is not None:
            wanted = [name for name in dict.fromkeys(_names(users)) if name]
            if not wanted:
                raise Usage(f"--users {users!r}: no name in it, some expected.")
            known = {name: number for number, name in enumerate(names)}
            if _looks_like_a_path(users) and users not in known and not _is_listed(users):
                raise Missing(f"--users {users}: no such file, and no such user.")
            numbers, names = [known.get(name, -1) for name in wanted], wanted
        chosen = list(shard(range(len(numbers)), part))
        names = [names[n] for n in chosen]
        at = np.array([numbers[n] for n in chosen], np.int64)
        return Ask(np.maximum(at, 0), np.where(at >= 0, lengths[at] if len(lengths) else 0, 0)), names

    # ── who answers ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _generator(self, src: str) -> tuple[Generator, Histories]:
        made = generator.load(open_artifact(src), src)
        if made.static and self._table is None:
            self._tell(f"{src}: knows of users, and is told nothing of them without --table.")
        if self._table is not None and not made.static:
            if self._table != "-":
                open_source(self._table).close()
            self._tell(f"{src}: knows nothing of users; --table {self._table} is not used.")
        self.history.append(made.history)
        if self._items is not None and self._catalogue.digest != made.ids.digest:
            raise Corrupt(f"{src}: trained with other IDs than those of {self._items}. Give the IDs it was trained with.")
        return made, self._join(made.ids, src, made.codings)

    def _recommender(self, made: Generator, histories: Histories, choice: Choice) -> Recommender:
        static = None
        if made.static:
            if self._table is None:
                static = np.zeros((len(histories), len(made.static)), np.int64)
            else:
                static = self._users(made).codes_of(histories.user_keys.tolist()).astype(np.int64)
        config = made.model.config
        batcher = Batcher(
            histories, config, static=static, vectors=made.ids.vectors() if config.lifelong else None,
            time_column=made.time_column, seed=int(made.recipe.get("seed", 0)),
        )  # fmt: skip
        return Recommender(made, batcher, choice, self._device, self._dtype)

    def _users(self, made: Generator) -> Users:
        names = tuple(made.static)
        if names not in self._known:
            users, skipped = open_users(self._table, made.static)
            self._report(self._table or "", skipped)
            assert users is not None, "a table was named"
            self._known[names] = users
        return self._known[names]

    @cached_property
    def _catalogue(self) -> SemanticIds:
        return SemanticIds.open(self._items or "")

    def _counted(self) -> tuple[SemanticIds, Histories, Counted]:
        ids = self._catalogue
        self.history.append(ids.history)
        histories = self._join(ids, self._items or "", None)
        is_train = histories.parts == TRAIN
        near = cooccurrence.fit(*histories.only(is_train), len(ids), Settings())
        return ids, histories, count(histories, is_train, len(ids), near, histories.times)

    def _counting(
        self, baseline: Baseline, counted: Counted, histories: Histories, ids: SemanticIds, choice: Choice
    ) -> Callable[[Ask], Found]:
        id_of_item = Trie(ids.codes_NS).id_of_item

        def recommend(ask: Ask) -> Found:
            items, scores = by_counting(baseline, counted, ask, histories, choice.k, mask_seen=choice.mask_seen)
            return Found(items, scores, np.where(items >= 0, id_of_item[items], -1))

        return recommend

    def _join(self, ids: SemanticIds, src: str, codings: Codings | None) -> Histories:
        histories, _, skipped = join(self._log, ids, src, codings)
        self._report(self._name, skipped)
        if not len(histories.items):
            raise Corrupt(f"{self._name}: not one item that {src} knows. Give the interactions that belong to it.")
        return histories

    def _ticking(self, recommend: Callable[[Ask], Found], n_users: int) -> Callable[[Ask], Found]:
        n_chunks = -(-n_users // (CHUNK * self._world.size))
        ticker = Ticker(total=n_chunks, unit="chunks", label="recgen", quiet=self._is_quiet)

        def ticked(ask: Ask) -> Found:
            found = recommend(ask)
            ticker()
            return found

        return ticked

    def titles(self, src: str) -> dict[str, str]:
        """What items are called, {item: title}."""
        called, skipped = read_titles(src)
        self._report(src, skipped)
        return called

    def _report(self, name: str, skipped: SkippedRows) -> None:
        self.code = skipped.report(name, self._tell_loss, strict=self._strict, verbose=self._is_told) or self.code


def write_json(answers: Iterator[Answer], called: Mapping[str, str] | None) -> None:
    """A line a user on stdout, with what items are called where that is known; of a fallback it says so."""
    for answer in answers:
        line: dict[str, Any] = {"user": answer.user, "items": answer.items}
        if called is not None:
            line["titles"] = [called.get(key, "") for key in answer.items]
        line["scores"] = [round(float(score), 6) for score in answer.scores]
        if answer.is_fallback:
            line["fallback"] = "popular"
        typer.echo(json.dumps(line, ensure_ascii=False))


def write_stream(
    answers: Iterator[Answer], dst: str, argv: Sequence[str], serving: Serving, *, force: bool, level: int | None, stamp: bool
) -> None:
    """A `recommendation` record a user."""
    first = next(answers, None)  # the history of all inputs is known once they have been opened
    head = Head("recommendation", extend("recgen", argv, before=serving.history, stamp=stamp))
    with Writer(Sink(dst, force=force), head, level=level) as writer:
        while first is not None:
            codes = first.codes.astype(np.int32)
            tensors = {"items": first.numbers.astype(np.int32), "scores": first.scores, "codes": codes}
            fallback = {"fallback": "popular"} if first.is_fallback else {}
            writer.write(first.user, tensors, items=first.items, **fallback)
            first = next(answers, None)


def _names(words: str) -> list[str]:
    """Names from a file or a pipe, one a line, or with commas between."""
    if not _is_listed(words):
        return [name.strip() for name in words.split(",")]
    return [line.strip() for line in read_lines(open_source(words), source_name(words))]


def _is_listed(words: str) -> bool:
    # unlike Path.exists, os.path's takes a long list of names for what it is
    return words == "-" or (os.path.exists(words) and not os.path.isdir(words))


def _looks_like_a_path(words: str) -> bool:
    return "," not in words and (os.sep in words or os.path.splitext(words)[1] != "")


def _with(choice: Choice, **changed: Any) -> Choice:
    """Another choice, whose beam is as wide at least as what is asked for."""
    return replace(choice, **changed, beam=max(choice.beam, changed.get("k", 0)))
