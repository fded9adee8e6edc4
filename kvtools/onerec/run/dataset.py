"""From interactions, IDs and users to what training needs: rows, counts, and a model config of the pathways that are on.

A pathway whose features are missing is off, and the model says why. Training sees the TRAIN part alone, also where others
come before it in time. Validation sees the VALID part, and each user's history up to there; nothing looks at the TEST part.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kvtools.chance import rng_for
from kvtools.onerec.interactions.features import FeatureEncoder
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.interactions.log import TRAIN, VALID
from kvtools.onerec.interactions.pair_hashes import pair_hashes
from kvtools.onerec.interactions.users import Users
from kvtools.onerec.model.batching import Batcher, HistoryRows
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.recommend import cooccurrence
from kvtools.onerec.recommend.cooccurrence import Settings
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.onerec.recommend.query import held_out
from kvtools.onerec.run.objectives import ValidationSet
from kvtools.onerec.semantic_ids.ids import SemanticIds

PATHWAYS = ("static", "short", "positive", "lifelong", "near")


@dataclass(frozen=True)
class TrainingSet:
    """Everything that does not change while a model learns."""

    config: ModelConfig
    pathways: dict[str, str]  # name → "on", or why it is off
    counts: ItemCounts
    histories: Histories
    batcher: Batcher
    rows: HistoryRows
    validation: ValidationSet | None
    trained_on: np.ndarray  # int64, sorted: hashes of the pairs of users and items

    @property
    def n_targets(self) -> int:
        """What an epoch teaches."""
        return int((self.rows.ends - self.rows.begins).sum())

    def told_of_validation(self, *, is_any_found: bool) -> str:
        """What to know of the validation set after a training; empty where it was as it should be.

        is_any_found: whether any validation has found an item.
        """
        if self.validation is None:
            return "there is no interaction to validate on: the weights of the last step are kept."
        n, n_repeats = len(self.validation.targets), self.validation.n_repeats
        repeats = f"{n_repeats:,} of {n:,} validation interactions repeat an earlier item of the user, and count as missed."
        if is_any_found:
            return repeats if n_repeats else ""
        kept = f"no validation found any of its {n:,} items, which tells nothing: the weights of the last step are kept."
        return f"{kept} {repeats}" if n_repeats else kept

    @property
    def digest(self) -> str:
        """A hash of the interactions and the users' features."""
        digest, histories = hashlib.blake2b(digest_size=12), self.histories
        for array in (histories.offsets, histories.items, histories.parts, histories.features, self.batcher.static):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def build_training_set(
    histories: Histories, encoder: FeatureEncoder, ids: SemanticIds, users: Users | None, config: ModelConfig, *,
    without: Sequence[str], n_valid: int, seed: int,
) -> TrainingSet:  # fmt: skip
    """without: pathways that are switched off. n_valid: users of validation, a seeded sample; 0 is none."""
    is_train = histories.parts == TRAIN
    config, pathways = _choose_pathways(histories, encoder, users, config, is_train, without)
    offsets, items = histories.only(is_train)
    neighbours = None
    if config.near:
        neighbours = cooccurrence.leave_own_out(offsets, items, len(ids), config.near, Settings(), exclude_seen=True)
    counts = ItemCounts.fit(histories, is_train, len(ids))
    batcher_of = partial(
        Batcher,
        config=config,
        static=None if users is None or pathways["static"] != "on" else users.codes_of(histories.user_keys.tolist()),
        vectors=ids.vectors() if config.lifelong else None,
        time_column=encoder.time_column,
        seed=seed,
    )
    learnt = histories.of(is_train)
    batcher = batcher_of(learnt, neighbours=neighbours)
    validation = _validation_set(counts, batcher_of(histories), ids, n_valid) if n_valid else None
    rows = batcher.training_rows(learnt.parts == TRAIN)
    trained_on = np.unique(pair_hashes(histories, ids.keys)[is_train])
    return TrainingSet(config, pathways, counts, histories, batcher, rows, validation, trained_on)


def _choose_pathways(
    histories: Histories,
    encoder: FeatureEncoder,
    users: Users | None,
    config: ModelConfig,
    is_train: np.ndarray,
    without: Sequence[str],
) -> tuple[ModelConfig, dict[str, str]]:
    """The config without the pathways that are off, and of each pathway "on" or why it is off."""
    longest = int(np.diff(histories.only(is_train)[0]).max(initial=0))
    shown = config.short if config.attention == "full" else 2 * config.short  # items of the short pathway, at most
    reasons = {
        "static": "no user table" if users is None or not users.vocabularies else "",
        "positive": "no ratings" if encoder.positive_from is None else "",
        "lifelong": f"no history is longer than {shown}" if longest <= shown else "",
    }
    pathways = {}
    for name in PATHWAYS:
        is_asked_for = name == "static" or getattr(config, name)
        reason = "switched off" if name in without else reasons.get(name, "") if is_asked_for else "not asked for"
        pathways[name] = f"off: {reason}" if reason else "on"
    off: dict[str, Any] = {name: 0 for name in ("positive", "lifelong", "near") if pathways[name] != "on"}
    return replace(config, **off), pathways


def _validation_set(counts: ItemCounts, batcher: Batcher, ids: SemanticIds, n_valid: int) -> ValidationSet | None:
    histories, n_neighbours = batcher.histories, batcher.config.near
    query, targets = held_out(histories, VALID)
    if not len(query):
        return None
    sample = np.sort(rng_for(batcher.seed, "validation").permutation(len(query))[:n_valid])
    query, targets = query.take(sample), targets[sample]
    neighbours = None
    if n_neighbours:
        neighbours = counts.cooccurrence.nearest(*query.past(histories), n_neighbours, exclude_seen=True)
    return ValidationSet(batcher, batcher.next_rows(query.users, query.lengths), targets, ids.trie, neighbours)
