"""From a model and interactions to what reinforcement learning reads: prompts, held-out rows, columns, play times.

Training sees the TRAIN part alone; held-out rows are those of the VALID part; nothing looks at the TEST part.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from kvtools.artifact import source_name
from kvtools.artifact.history import Step
from kvtools.chance import rng_for
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.features import join_catalogue
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.interactions.log import TRAIN, VALID, Interactions
from kvtools.onerec.interactions.split import refuse_too_few
from kvtools.onerec.interactions.stream import open_interactions
from kvtools.onerec.interactions.users import Users, open_users
from kvtools.onerec.model.batching import Batcher
from kvtools.onerec.recommend import cooccurrence
from kvtools.onerec.recommend.query import held_out
from kvtools.onerec.rl.prompts import Prompts
from kvtools.onerec.rl.rewards import ColumnValues
from kvtools.onerec.run.checkpoint import Checkpoint
from kvtools.skipped import SkippedRows

_ROLES = ("rating", "playtime", "duration")  # numbers that interactions have under the name of a role
Report = Callable[[SkippedRows, str], int]


@dataclass(frozen=True)
class Source:
    """One file of interactions in the numbers of a model's catalogue. values: columns at each interaction, float64 (n,)."""

    name: str
    histories: Histories
    batcher: Batcher  # of all its parts
    columns: Mapping[str, np.ndarray]
    history: list[Step]
    code: int

    @cached_property
    def learnt(self) -> Histories:
        """The training part as if there were no other."""
        return self.histories.of(self.histories.parts == TRAIN)

    def values(self, name: str, *, train: bool) -> np.ndarray:
        """A column's values, float64 (n,), at the interactions of the training part, or at all."""
        column = self.columns[name]
        return column[self.histories.parts == TRAIN] if train else column

    @property
    def digest(self) -> str:
        """A hash of the interactions, the columns and the users' features."""
        digest, histories = hashlib.blake2b(digest_size=12), self.histories
        for array in (histories.offsets, histories.items, histories.parts, histories.features, self.batcher.static):
            digest.update(np.ascontiguousarray(array).tobytes())
        for name in sorted(self.columns):
            digest.update(np.ascontiguousarray(self.columns[name]).tobytes())
        return digest.hexdigest()


def open_source_of(
    src: str, checkpoint: Checkpoint, model: str, *, columns: Mapping[str, str], wanted: Sequence[str], users: str | None,
    report: Report,
) -> Source:  # fmt: skip
    """Interactions for a model. wanted: columns of numbers to be read. users: the user table that the model was trained with.

    Raises Corrupt for a column that is not there, and where no item is of the model's catalogue.
    """
    name = source_name(src)
    more = [column for column in wanted if column not in _ROLES]
    read, skipped, before = open_interactions(src, columns=columns, more=more)
    code = report(skipped, name)
    histories, _, skipped = join_catalogue(read, checkpoint.ids, model, checkpoint.encoder)
    code = report(skipped, name) or code
    if not len(histories.items):
        raise Corrupt(f"{name}: none of the items is in {model}. Give the interactions that belong to it.")
    kept = np.isin(read.item_keys, checkpoint.ids.keys)[read.items]
    values = {column: _column(read, column, name)[kept] for column in wanted}
    table, skipped = (
        open_users(users, list(checkpoint.user_vocabularies)) if checkpoint.user_vocabularies else (None, SkippedRows())
    )
    code = report(skipped, users or "") or code
    return Source(name, histories, _batcher(checkpoint, histories, table), values, before, code)


def _column(interactions: Interactions, column: str, name: str) -> np.ndarray:
    values = interactions.ratings if column == "rating" else interactions.extras.get(column)
    if column not in _ROLES:
        values = interactions.extras[f"column:{column}"]
    if values is None:
        raise Corrupt(f"{name}: there is no {column} column. Name it with --column {column}=COL, or leave that reward out.")
    return np.asarray(values, np.float64)


def _batcher(checkpoint: Checkpoint, histories: Histories, table: Users | None) -> Batcher:
    static, vocabularies = None, checkpoint.user_vocabularies
    if vocabularies:
        static = np.zeros((len(histories), len(vocabularies)), np.int64)
    if table is not None:
        static = table.codes_of(histories.user_keys.tolist()).astype(np.int64)
    return Batcher(
        histories, checkpoint.model.config, static=static, seed=checkpoint.seed, time_column=checkpoint.encoder.time_column,
        vectors=checkpoint.ids.vectors() if checkpoint.model.config.lifelong else None,
    )  # fmt: skip


def training_batcher(source: Source, checkpoint: Checkpoint) -> Batcher:
    """The batcher of the training part, with neighbours from which each user's own interactions are left out. Raises Corrupt
    where no user has two interactions there."""
    learnt, config = source.learnt, checkpoint.model.config
    refuse_too_few(source.histories, source.name)
    batcher_of = partial(
        Batcher, learnt, config, static=source.batcher.static, seed=checkpoint.seed, time_column=checkpoint.encoder.time_column,
        vectors=checkpoint.ids.vectors() if config.lifelong else None,
    )  # fmt: skip
    if not config.near:
        return batcher_of()
    settings = checkpoint.counts.cooccurrence.settings
    neighbours = cooccurrence.leave_own_out(
        learnt.offsets, learnt.items, len(checkpoint.ids), config.near, settings, exclude_seen=True
    )
    return batcher_of(neighbours=neighbours)


def held_out_prompts(source: Source, n_users: int, seed: int) -> Prompts | None:
    """A seeded sample of the validation interactions that have one before them; None where there are none."""
    query, _ = held_out(source.histories, VALID)
    if not len(query):
        return None
    sample = np.sort(rng_for(seed, "validation").permutation(len(query))[:n_users])
    return Prompts(0, query.users[sample], query.lengths[sample])


def column_values(source: Source, name: str, checkpoint: Checkpoint) -> ColumnValues:
    """A column's values and the means of IDs. Raises Corrupt where no value is a number."""
    trie = checkpoint.ids.trie
    try:
        return ColumnValues.fit(source.values(name, train=True), trie.id_of_item[source.learnt.items], trie.n_ids)
    except ValueError as fault:
        raise Corrupt(f"{source.name}: column {name}: {fault}. Give another column.") from None


def duration_quantiles(source: Source, dislike: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each interaction of the training part: how much of the user's own play times of items about as long is at most this
    one, float64 (n,), NaN where unknown; and whether it was disliked, bool (n,).

    Source: OneRec-V2 (arXiv 2508.20900) section 4.1; buckets are powers of two, our choice of its base.
    """
    playtime, duration = (source.values(name, train=True) for name in ("playtime", "duration"))
    users = np.repeat(np.arange(len(source.learnt)), np.diff(source.learnt.offsets))
    is_known = np.isfinite(playtime) & np.isfinite(duration) & (duration > 0)
    bucket = np.where(is_known, np.floor(np.log2(np.where(is_known, duration, 1.0) + 1e-6)), -1).astype(np.int64)
    quantile = np.full(len(playtime), np.nan)
    order = np.lexsort((playtime, bucket, users))
    order = order[is_known[order]]
    group = users[order] * 4096 + bucket[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(order) else np.empty(0, np.int64)
    for begin, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
        own = playtime[order[begin:end]]
        quantile[order[begin:end]] = np.searchsorted(own, own, side="right") / len(own)
    disliked = np.zeros(len(playtime), bool)
    if dislike:
        disliked = np.nan_to_num(source.values(dislike, train=True)) > 0
    return quantile, disliked


def listed_ids(src: str, checkpoint: Checkpoint) -> np.ndarray:
    """IDs that have an item of a list, a file with one key a line: bool (U,). Raises Usage where none is in the catalogue."""
    from kvtools.artifact.delimited import read_lines
    from kvtools.artifact.files import open_source

    keys = {key.strip() for key in read_lines(open_source(src), source_name(src))}
    is_listed = np.isin(checkpoint.ids.keys, sorted(keys))
    if not is_listed.any():
        raise Usage(f"--listed {src}: none of its items is in the model's catalogue. Give one key a line.")
    trie = checkpoint.ids.trie
    return np.bincount(trie.id_of_item, is_listed, minlength=trie.n_ids) > 0
