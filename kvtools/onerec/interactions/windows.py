"""Histories that a table repeats in every row, as MiniOneRec's CSV and RecBole's sequential files do, joined to sequences.

A row holds a target and the items before it, at most so many. Of a user the rows follow one another, and each adds its target
to what the last one held. Not here: titles and semantic IDs beside the items.
"""

import ast
from collections.abc import Iterable, Sequence

import numpy as np

from kvtools.artifact.json_text import read_json
from kvtools.onerec.interactions.names import TRAIN

Sequences = dict[str, list[tuple[str, int]]]  # user → (item, part) in order


def items_of(cell: str) -> list[str]:
    """The items of a cell: a list of JSON or of Python, or words between blanks or commas. Raises ValueError for another."""
    text = cell.strip()
    if not text.startswith(("[", "(")):
        return [word for word in text.replace(",", " ").split() if word]
    inner = text[1:-1].strip()
    if inner.replace(",", "").replace(" ", "").isdecimal() and text[-1] in ")]":
        return [word.strip() for word in inner.split(",") if word.strip()]
    try:
        items = read_json(text)
    except ValueError:
        try:
            items = ast.literal_eval(text)  # reads literals and runs nothing
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise ValueError("it is no list") from None
    if not all(isinstance(item, str | int | float) for item in items):
        raise ValueError("it is a list of other things than items")
    return [str(item) for item in items if item != ""]


def join(rows: Iterable[tuple[str, Sequence[str], str | None, int]]) -> tuple[Sequences, list[int]]:
    """The sequence of each user, from rows of (user, history, target, part of the target), those of a user in order.

    An item that is only ever seen in a history is in the training part. The second list numbers the rows, from 0, whose history
    does not go on from the row before; what it holds beyond their overlap is appended.
    """
    sequences: Sequences = {}
    apart = []
    for number, (user, history, target, part) in enumerate(rows):
        sequence = sequences.setdefault(user, [])
        n_shared = _overlap([item for item, _ in sequence[-len(history) :]] if history else [], history)
        if sequence and n_shared < len(history):
            apart.append(number)
        sequence += [(item, TRAIN) for item in history[n_shared:]]
        if target is not None:
            sequence.append((target, part))
    return sequences, apart


def _overlap(end: Sequence[str], history: Sequence[str]) -> int:
    """How many items at the end of one list are those at the begin of the other, at most."""
    return next((n for n in range(min(len(end), len(history)), 0, -1) if list(end[-n:]) == list(history[:n])), 0)


def columns_of(sequences: Sequences) -> tuple[list[str], list[str], np.ndarray]:
    """Users, items and parts, int8 (n,), of all sequences, user after user."""
    users = [user for user, sequence in sequences.items() for _ in sequence]
    items = [item for sequence in sequences.values() for item, _ in sequence]
    return users, items, np.array([part for sequence in sequences.values() for _, part in sequence], np.int8)
