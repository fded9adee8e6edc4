"""From interactions, IDs and users to what training needs: rows, counts, and an architecture of the pathways there are.

A pathway whose features are missing is off, and the model says why. Training looks at the TRAIN part alone, also where others
come before it in time. Validation looks at the VALID part, each user's history up to there; nothing is told of what TEST asks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kvtools.chance import rng_for
from kvtools.onerec.interactions.features import Codings, Histories
from kvtools.onerec.interactions.log import TRAIN, VALID
from kvtools.onerec.interactions.users import Users
from kvtools.onerec.model.batching import Batcher, HistoryRows
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.recommend import cooccurrence
from kvtools.onerec.recommend.cooccurrence import Settings
from kvtools.onerec.recommend.recommend import Ask, count
from kvtools.onerec.run.checkpoint import Counted
from kvtools.onerec.run.objective import Held
from kvtools.onerec.semantic_ids.ids import SemanticIds

PATHWAYS = ("static", "short", "positive", "lifelong", "near")


@dataclass(frozen=True)
class Prepared:
    """Everything that stands still while a model learns."""

    config: ModelConfig
    pathways: dict[str, str]
    counted: Counted
    histories: Histories
    batcher: Batcher
    rows: HistoryRows
    held: Held | None

    @property
    def digest(self) -> str:
        """What tells these interactions and users from others."""
        told, seen = hashlib.blake2b(digest_size=12), self.histories
        for array in (seen.offsets, seen.items, seen.parts, seen.features, self.batcher.static):
            told.update(np.ascontiguousarray(array).tobytes())
        return told.hexdigest()


def prepare(
    histories: Histories, codings: Codings, ids: SemanticIds, users: Users | None, config: ModelConfig, *,
    without: Sequence[str], n_valid: int, seed: int,
) -> Prepared:  # fmt: skip
    """without: pathways switched off by wish. n_valid: users that validation looks at, a seeded sample; 0 is none."""
    is_train = histories.parts == TRAIN
    config, pathways = _switched(histories, codings, users, config, is_train, without)
    settings = Settings()
    offsets, items = histories.only(is_train)
    near = None
    if config.near:
        near = cooccurrence.leave_own_out(offsets, items, len(ids), config.near, settings, exclude_seen=True)
    counted = count(histories, is_train, len(ids), cooccurrence.fit(offsets, items, len(ids), settings), histories.times)
    cut = partial(
        Batcher,
        config=config,
        static=None if users is None or pathways["static"] != "on" else users.codes_of(histories.user_keys.tolist()),
        vectors=ids.vectors() if config.lifelong else None,
        time_column=list(codings.features).index("time") if "time" in codings.features else None,
        seed=seed,
    )
    learnt = histories.of(is_train)
    batcher = cut(learnt, neighbours=near)
    held = _held(histories, counted, cut(histories), config, n_valid, seed) if n_valid else None
    return Prepared(config, pathways, counted, histories, batcher, batcher.training_rows(learnt.parts == TRAIN), held)


def _switched(
    histories: Histories,
    codings: Codings,
    users: Users | None,
    config: ModelConfig,
    is_train: np.ndarray,
    without: Sequence[str],
) -> tuple[ModelConfig, dict[str, str]]:
    longest = int(np.diff(histories.only(is_train)[0]).max(initial=0))
    shown = config.short if config.attention == "full" else 2 * config.short  # what the short pathway has of a history at most
    reasons = {
        "static": "no user table" if users is None or not users.vocabularies else "",
        "positive": "no ratings" if codings.positive_from is None else "",
        "lifelong": f"no history is longer than {shown}" if longest <= shown else "",
    }
    sizes = {"static": 1, "short": config.short, "positive": config.positive, "lifelong": config.lifelong, "near": config.near}
    told: dict[str, str] = {}
    for name, size in sizes.items():
        reason = "switched off" if name in without else reasons.get(name, "") if size else "not asked for"
        told[name] = f"off: {reason}" if reason else "on"
    off: dict[str, Any] = {name: 0 for name in ("positive", "lifelong", "near") if told[name] != "on"}
    return replace(config, **off), told


def held_out(histories: Histories, part: int) -> tuple[Ask, np.ndarray]:
    """Every interaction of a part that has one before it: whom to recommend to, knowing what, and the item that came."""
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    places = np.arange(len(users)) - histories.offsets[users]
    wanted = np.flatnonzero((histories.parts == part) & (places > 0))
    return Ask(users[wanted], places[wanted]), histories.items[wanted]


def _held(
    histories: Histories, counted: Counted, batcher: Batcher, config: ModelConfig, n_valid: int, seed: int
) -> Held | None:
    ask, targets = held_out(histories, VALID)
    if not len(ask):
        return None
    chosen = np.sort(rng_for(seed, "validation").permutation(len(ask))[:n_valid])
    ask, targets = ask.only(chosen), targets[chosen]
    near = counted.near.nearest(*ask.past(histories), config.near, exclude_seen=True) if config.near else None
    return Held(batcher, batcher.next_rows(ask.users, ask.lengths), targets, near)
