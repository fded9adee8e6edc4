"""Which part each interaction is in, where an option says it: `leave-last-out`, or `time:TRAIN,VALID`.

By time the earliest interactions of all users together are for training, the next for validation and the latest for testing,
so that no model has seen what came after the moment it is asked at. Equal times are in one part, the later one. Not here: the
parts that a file gives.
"""

import math
from dataclasses import replace

import numpy as np

from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID, Interactions, n_ties

LEAVE_LAST_OUT = "leave-last-out"


def parse_split(text: str | None) -> tuple[float, float] | None:
    """The shares of training and validation of `time:TRAIN,VALID`; None for leave-last-out and where there is no option.

    Raises Usage for anything else.
    """
    if text is None or text == LEAVE_LAST_OUT:
        return None
    kind, _, shares = text.partition(":")
    try:
        train, valid = map(float, shares.split(","))
    except ValueError:
        train = valid = math.nan
    if kind != "time" or not (0 < train < 1 and 0 <= valid < 1 and train + valid < 1):
        raise Usage(
            f"--split {text} is no split. Give time:TRAIN,VALID with shares of less than 1 together, as time:0.8,0.1, or "
            f"{LEAVE_LAST_OUT}."
        )
    return train, valid


def with_split(interactions: Interactions, split: str | None, name: str) -> Interactions:
    """The interactions with parts as --split says; unchanged where it is not given.

    name: what messages call them. Raises Corrupt for a split by time of interactions without times.
    """
    shares = parse_split(split)
    if split is None:
        return interactions
    if shares is None:
        last = replace(interactions, parts=None)
        return _told(last, "last", n_ties(last))
    if not interactions.has_times:
        raise Corrupt(f"{name}: --split {split} needs times, and there are none. Name their column by --column time=COL.")
    return _told(replace(interactions, parts=parts_by_time(interactions.times, *shares)), "shares", 0)


def refuse_too_few(histories: Histories, name: str) -> None:
    """Raises Corrupt where no user has two interactions to learn from: the first is what the second is predicted from."""
    offsets, learnt = histories.only(histories.parts == TRAIN)
    if not (np.diff(offsets) >= 2).any():
        n, n_learnt = len(histories.items), len(learnt)
        raise Corrupt(
            f"{name}: no user has two interactions in the training part, the least to learn from; {n_learnt:,} of {n:,} are in "
            "it. Give a user 4 or more, of which the last two are held out, or say in a part column which are held out."
        )


def _told(interactions: Interactions, split: str, ties: int) -> Interactions:
    """The interactions with an account that has this split."""
    account = interactions.account
    return interactions if account is None else replace(interactions, account=replace(account, split=split, ties=ties))


def parts_by_time(times: np.ndarray, train: float, valid: float) -> np.ndarray:
    """int8 (n,): TRAIN for the earliest share of the times, (n,), VALID for the next, TEST for the rest."""
    ordered = np.sort(times)
    n_train, n_valid = (round(share * len(times)) for share in (train, train + valid))
    begins = [ordered[n] if n < len(ordered) else np.inf for n in (n_train, n_valid)]
    return np.where(times < begins[0], TRAIN, np.where(times < begins[1], VALID, TEST)).astype(np.int8)
