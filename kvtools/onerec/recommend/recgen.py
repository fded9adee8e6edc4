"""One run of `recgen`: inputs are opened once, and a model or a baseline recommends to users or is evaluated.

All ranks read the same files, so that all find the same faults; rank 0 reports. Not here: options, and the output.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kvtools.artifact import source_name
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.chance import rng_for
from kvtools.errors import Corrupt, Stopped
from kvtools.onerec.interactions.account import tell
from kvtools.onerec.interactions.features import FeatureEncoder, join_catalogue
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID
from kvtools.onerec.interactions.pair_hashes import pair_hashes
from kvtools.onerec.interactions.split import with_split
from kvtools.onerec.interactions.stream import open_interactions
from kvtools.onerec.interactions.user_list import read_user_list
from kvtools.onerec.interactions.users import Users, Vocabulary, open_users
from kvtools.onerec.items.catalogue import read_titles
from kvtools.onerec.model.batching import Batcher
from kvtools.onerec.recommend import evaluate as evaluation
from kvtools.onerec.recommend.evaluate import Recommend
from kvtools.onerec.recommend.held_out_checks import HeldOutChecks, check_held_out
from kvtools.onerec.recommend.item_counts import Baseline, ItemCounts
from kvtools.onerec.recommend.predictions import read_predictions
from kvtools.onerec.recommend.query import CHUNK, Query, Recommendations, held_out
from kvtools.onerec.recommend.recommend import Recommender, SearchOptions
from kvtools.onerec.run.checkpoint import Checkpoint
from kvtools.onerec.run.longer_catalogue import with_later_items
from kvtools.onerec.semantic_ids.ids import SemanticIds, one_id_each
from kvtools.progress import Ticker
from kvtools.skipped import SkippedRows
from kvtools.world import World, shard

_N_CALIBRATION = 4000  # users of the validation part, a seeded sample


@dataclass(frozen=True)
class UserRecommendations:
    """What one user is recommended."""

    user: str
    items: list[str]
    numbers: np.ndarray  # int32 (k,): the items in the catalogue
    scores: np.ndarray  # float32 (k,)
    codes: np.ndarray  # int32 (k, S)
    is_fallback: bool  # popular items, since the user has no history

    def to_json(self, titles: Mapping[str, str] | None) -> dict[str, Any]:
        """The line of --json, with the items' titles where they are given."""
        beside = {} if titles is None else {"titles": [titles.get(key, "") for key in self.items]}
        scores = [round(float(score), 6) for score in self.scores]
        return {"user": self.user, "items": self.items, **beside, "scores": scores, **self._fallback}

    def rows(self, titles: Mapping[str, str] | None) -> Iterator[tuple[str | int | float, ...]]:
        """A row an item, of user, rank from 1, item, title where they are given, and score."""
        for rank, (item, score) in enumerate(zip(self.items, self.scores.tolist(), strict=True), start=1):
            title = () if titles is None else (titles.get(item, ""),)
            yield (self.user, rank, item, *title, round(score, 6))

    def to_record(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and fields of a `recommendation` record."""
        tensors = {"items": self.numbers.astype(np.int32), "scores": self.scores, "codes": self.codes.astype(np.int32)}
        return tensors, {"items": self.items, **self._fallback}

    @property
    def _fallback(self) -> dict[str, str]:
        return {"fallback": "popular"} if self.is_fallback else {}


@dataclass(frozen=True)
class _Source:
    """A model or a baseline, ready to recommend from histories in its catalogue's numbers."""

    ids: SemanticIds
    histories: Histories
    recommend: Recommend
    fields: dict[str, Any]  # what an evaluation prints of it
    trained_on: np.ndarray | None  # int64, sorted: hashes of its training pairs, where they are known
    unmasked: Recommend | None = None  # the same without leaving out seen items, where both are to be evaluated
    is_bounded: bool = False  # whether it knows a bound on what its search missed


class RecgenRun:
    """The interactions, and what recommends from them. `code` is the exit code so far; `history` that of all opened inputs.

    `n_done`: users that a stopped run has written; `stop`: true when this one is to stop. items: the catalogue of baselines.
    table: the user table. log: prints a line on rank 0; report: one that --quiet keeps.
    """

    def __init__(
        self, src: str, columns: dict[str, str], items: str | None, table: str | None, options: SearchOptions, world: World, *,
        split: str | None, device: str, dtype: torch.dtype, log: Callable[[str], None], report: Callable[[str], None],
        strict: bool, verbose: bool, quiet: bool,
    ) -> None:  # fmt: skip
        self._name = source_name(src)
        self._items, self._table, self._options, self._world = items or "", table, options, world
        self._device, self._dtype, self._log, self._report_line, self._strict = device, dtype, log, report, strict
        self._verbose, self._quiet = verbose, quiet or not world.is_root
        self.code = self.n_users = self.n_done = 0
        self.stop: object = False
        self._users_by_table: dict[tuple[Vocabulary, ...], Users] = {}  # a table may be stdin, which is read once
        read, skipped, before = open_interactions(src, columns=columns)
        self._interactions = with_split(read, split, self._name)
        # who gives the parts, or splits by time, leaves nothing to the order of rows
        self._is_split_by_order = read.has_times and self._interactions.parts is None
        self.history: list[list[Step]] = [before]
        self._untold = self._interactions.account
        self._report(self._name, skipped)

    def evaluate(
        self, model: str, baseline: Baseline | None, part: str, *, calibrate: bool, predictions: str | None = None
    ) -> dict[str, Any]:
        """The figures of a model, a baseline or predictions on a part, `valid` or `test`. A collective."""
        start = time.monotonic()
        at = evaluation.cutoffs(self._options.k)
        k = max(at[-1], *(n for n in evaluation.PASS_AT if n <= max(self._options.beam, at[-1])))
        if predictions is None:
            source = self._source(model, baseline, _with_k(self._options, k=k, certify=at[-1]), calibrate=calibrate)
        else:
            source = self._predictions(predictions)
        if calibrate and part != "test":
            self._log("--blend auto: the weight was chosen by the users that are evaluated, which flatters it. "
                      "Use --evaluate test.")  # fmt: skip
        query, targets = held_out(source.histories, TEST if part == "test" else VALID)
        if not len(query):
            raise Corrupt(
                f"{self._name}: there is no {part} interaction of a known item. Name the column by --column part=COL."
            )
        checks = self._check_held_out(source, query)
        self._tell()
        recommended = evaluation.over_ranks(query, self._world, source.recommend, self._ticker(len(query)))
        figures, n_proven = evaluation.evaluate(query, targets, source.ids.trie.id_of_item, k, recommended, at=at)
        if source.unmasked is not None:
            recommended = evaluation.over_ranks(query, self._world, source.unmasked, self._ticker(len(query)))
            unmasked, _ = evaluation.evaluate(query, targets, source.ids.trie.id_of_item, k, recommended, at=at)
            figures |= {f"unmasked_{name}": unmasked[name] for n in at for name in (f"hr@{n}", f"ndcg@{n}")}
        self._log_unproven(len(query) - n_proven, len(query))
        if source.is_bounded:
            figures["sure_share"] = n_proven / len(query)
        about = {**source.fields, "part": part, "masked": self._options.exclude_seen}
        return {**about, **figures, **checks.to_json(), "seconds": round(time.monotonic() - start, 3)}

    def recommend(
        self, model: str, baseline: Baseline | None, users: str | None, part: str | None, *, calibrate: bool
    ) -> Iterator[UserRecommendations]:
        """Each user's recommendations in order, on rank 0; all ranks must iterate. users: as --users; part: as --shard."""
        source = self._source(model, baseline, self._options, calibrate=calibrate)
        query, names = self._query(source.histories, users, part)
        self._tell()
        self.n_users = len(query)
        cold = np.flatnonzero(query.lengths == 0)
        if len(cold):
            first = ", ".join(names[n] for n in cold[:3]) + ", …" * (len(cold) > 3)
            self._log(f"{self._name}: users without a known item get popular items: {len(cold)} ({first}).")
        return self._recommendations(source, query, names)

    def _tell(self) -> None:
        """Say what was read, once, where nothing is refused any more."""
        tell(self._untold, self._log)
        self._untold = None

    def _recommendations(self, source: _Source, query: Query, names: list[str]) -> Iterator[UserRecommendations]:
        first = self.n_done // CHUNK * CHUNK  # users of a chunk are searched for together, so that whole chunks are done again
        query, names, done, n_proven = query.take(slice(first, None)), names[first:], 0, 0
        recommended = evaluation.over_ranks(query, self._world, source.recommend, self._ticker(len(query)))
        for chunk, top in recommended:
            n_proven += int(top.is_proven.sum())
            for row in range(max(0, self.n_done - first - done), len(chunk) if self._world.is_root else 0):
                numbers = top.items[row][top.items[row] >= 0]
                yield UserRecommendations(
                    names[done + row], source.ids.keys[numbers].tolist(), numbers, top.scores[row][: len(numbers)],
                    source.ids.codes_NS[numbers], is_fallback=bool(chunk.lengths[row] == 0),
                )  # fmt: skip
            done += len(chunk)
            if done < len(query) and self._world.any(self.stop):
                raise Stopped(f"stopped after {first + done} of {first + len(query)} users. Run again to continue.")
        self._log_unproven(len(query) - n_proven, len(query))

    def titles(self, src: str) -> dict[str, str]:
        """Titles of items, {item: title}."""
        titles, skipped = read_titles(src)
        self._report(src, skipped)
        return titles

    # ── who is asked for ─────────────────────────────────────────────────────────────────────────────────────────────
    def _query(self, histories: Histories, users: str | None, part: str | None) -> tuple[Query, list[str]]:
        """The users that are asked for, with all their interactions, and their names."""
        lengths = np.diff(histories.offsets)
        number_of = {str(key): number for number, key in enumerate(histories.user_keys.tolist())}
        names = list(shard(list(number_of) if users is None else read_user_list(users, number_of), part))
        numbers = np.array([number_of.get(name, -1) for name in names], np.int64)
        return Query(np.maximum(numbers, 0), np.where(numbers >= 0, lengths[numbers] if len(lengths) else 0, 0)), names

    def _ticker(self, n_users: int) -> Ticker:
        n_chunks = -(-n_users // (CHUNK * self._world.size))
        return Ticker(total=n_chunks, unit="chunks", label="recgen", quiet=self._quiet)

    # ── what recommends ──────────────────────────────────────────────────────────────────────────────────────────────
    def _source(self, model: str, baseline: Baseline | None, options: SearchOptions, *, calibrate: bool) -> _Source:
        if baseline is not None:
            return self._baseline(baseline, options)
        checkpoint, name = Checkpoint.open(model), source_name(model)
        self._check_table(name, checkpoint)
        self.history.append(checkpoint.history)
        if self._items and self._catalogue.digest != checkpoint.ids.digest:
            n_known = len(checkpoint.ids)
            checkpoint = with_later_items(checkpoint, self._catalogue, name, self._items)
            n_later = len(checkpoint.ids) - n_known
            self._log(
                f"{self._items}: {n_later:,} items came after the training of {name}, which knows them by their codes alone."
            )
        ids = checkpoint.ids
        histories = self._join(ids, name, checkpoint.encoder)
        batcher = self._batcher(checkpoint, histories)
        if calibrate:
            options = replace(options, blend=self._calibrated(checkpoint, batcher, options))
        recommender = Recommender(checkpoint, batcher, options, self._device, self._dtype)
        fields = {"model": model, "beam": options.beam, "sure": options.is_sure, "blend": options.blend}
        # the bound of a mixture is not known, and without the trie it would be one on IDs that no item has
        is_bounded = options.use_trie and not options.blend
        return _Source(ids, histories, recommender.recommend, fields, checkpoint.trained_on, is_bounded=is_bounded)

    def _baseline(self, baseline: Baseline, options: SearchOptions) -> _Source:
        ids = self._catalogue
        self.history.append(ids.history)
        histories = self._join(ids, self._items, None)
        counts = ItemCounts.fit(histories, histories.parts == TRAIN, len(ids))

        def recommend(query: Query) -> Recommendations:
            items, scores = counts.recommend(baseline, query, histories, options.k, exclude_seen=options.exclude_seen)
            numbers = np.where(items >= 0, ids.trie.id_of_item[items], -1)
            return Recommendations(items, scores, numbers, np.zeros(len(query), bool))

        trained_on = np.unique(pair_hashes(histories, ids.keys)[histories.parts == TRAIN])
        return _Source(ids, histories, recommend, {"baseline": baseline}, trained_on)

    def _predictions(self, src: str) -> _Source:
        """Predictions over the items of the catalogue, or of the interactions where there is none."""
        read, skipped = read_predictions(src)
        self._report(source_name(src), skipped)
        ids = self._catalogue if self._items else one_id_each(self._interactions.item_keys)
        histories = self._join(ids, self._items, None)
        users = histories.user_keys[np.diff(histories.offsets) > 0].tolist()
        n_lacking = sum(user not in read.row_of for user in users)
        n_others = len(read.row_of) - (len(users) - n_lacking)
        if n_lacking or n_others:
            self._log(f"{source_name(src)}: {n_lacking:,} of {len(users):,} users have no prediction and count as missed; "
                      f"{n_others:,} users of it have no interactions.")  # fmt: skip
        masked, unmasked = (
            read.recommend(histories, ids.keys, ids.trie.id_of_item, exclude_seen=exclude_seen)
            for exclude_seen in (True, False)
        )
        if not self._options.exclude_seen:
            return _Source(ids, histories, unmasked, {"predictions": src}, None)
        return _Source(ids, histories, masked, {"predictions": src}, None, unmasked)

    def _check_held_out(self, source: _Source, query: Query) -> HeldOutChecks:
        """What to know of the held-out interactions, told on rank 0."""
        hashes = pair_hashes(source.histories, source.ids.keys)
        checks = check_held_out(source.histories, query, hashes, source.trained_on, has_times=self._is_split_by_order)
        for line in checks.warnings(self._name):
            self._report_line(line)
        for line in checks.notes(self._name, exclude_seen=self._options.exclude_seen):
            self._log(line)
        return checks

    @cached_property
    def _catalogue(self) -> SemanticIds:
        return SemanticIds.open(self._items)

    def _check_table(self, model: str, checkpoint: Checkpoint) -> None:
        if checkpoint.user_vocabularies and self._table is None:
            self._log(f"{model}: this model was trained with a user table, and none is given. Give --table for better results.")
        if self._table is not None and not checkpoint.user_vocabularies:
            if self._table != "-":
                open_source(self._table).close()
            self._log(f"{model}: this model was trained without a user table; --table {self._table} is not used.")

    def _batcher(self, checkpoint: Checkpoint, histories: Histories) -> Batcher:
        config, vocabularies, static = checkpoint.model.config, tuple(checkpoint.user_vocabularies), None
        if vocabularies and self._table is None:
            static = np.zeros((len(histories), len(vocabularies)), np.int64)
        elif vocabularies:
            static = self._users(vocabularies).codes_of(histories.user_keys.tolist()).astype(np.int64)
        return Batcher(
            histories, config, static=static, vectors=checkpoint.ids.vectors() if config.lifelong else None,
            time_column=checkpoint.encoder.time_column, seed=checkpoint.seed,
        )  # fmt: skip

    def _users(self, vocabularies: tuple[Vocabulary, ...]) -> Users:
        if vocabularies not in self._users_by_table:
            users, skipped = open_users(self._table, vocabularies)
            self._report(self._table or "", skipped)
            assert users is not None, "a table was named"
            self._users_by_table[vocabularies] = users
        return self._users_by_table[vocabularies]

    def _calibrated(self, checkpoint: Checkpoint, batcher: Batcher, options: SearchOptions) -> float:
        """The weight of --blend auto, the same on all ranks."""
        query, targets = held_out(batcher.histories, VALID)
        if not len(query):
            raise Corrupt(
                f"{self._name}: --blend auto needs valid interactions of known items, and there is none. Give a weight."
            )
        sample = np.sort(rng_for(options.seed, "calibration").permutation(len(query))[:_N_CALIBRATION])
        weight = 0.0
        if self._world.is_root:
            recommender = Recommender(checkpoint, batcher, _with_k(options, k=10), self._device, self._dtype)
            weight = evaluation.calibrate(query.take(sample), targets[sample], recommender)
            self._log(f"--blend auto: {weight:g} by NDCG@10 of {len(sample)} users of the validation part.")
        return float(self._world.broadcast(weight))

    def _join(self, ids: SemanticIds, src: str, encoder: FeatureEncoder | None) -> Histories:
        histories, _, skipped = join_catalogue(self._interactions, ids, src, encoder)
        self._report(self._name, skipped)
        if not len(histories.items):
            raise Corrupt(f"{self._name}: none of the items is in {src}. Give the interactions that belong to it.")
        return histories

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _report(self, name: str, skipped: SkippedRows) -> None:
        self.code = skipped.report(name, self._report_line, strict=self._strict, verbose=self._verbose) or self.code

    def _log_unproven(self, n_unproven: int, n_users: int) -> None:
        if self._options.is_sure and n_unproven:
            self._log(f"--sure: better items may be missing for {n_unproven} of {n_users}, since memory limits the beam. "
                      "Use --exact.")  # fmt: skip


def _with_k(options: SearchOptions, **changes: Any) -> SearchOptions:
    """The same options with another k, and a beam at least as wide."""
    return replace(options, **changes, beam=max(options.beam, changes["k"]))
