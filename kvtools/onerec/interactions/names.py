"""Which column of a table has which role: by the names that public logs use, whatever their case, blanks, dots and underscores.

A role with two candidates is refused: a guess that is wrong is not seen in the results. Not here: cells, except a few that tell
whether an unused column looks like a time or like a split.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvtools.artifact.cells import numbers_of
from kvtools.errors import Corrupt

TRAIN, VALID, TEST = 0, 1, 2

# the names that the column of a role may have, where the caller names none
NAMES: Mapping[str, tuple[str, ...]] = {
    "user": (
        "user_id", "user", "uid", "reviewer_id", "customer_id", "visitor_id", "member_id", "account_id", "viewer_id",
        "buyer_id", "client_id", "reader_id", "player_id",
    ),
    "item": (
        "item_id", "item", "iid", "movie_id", "video_id", "product_id", "asin", "parent_asin", "sku", "book_id", "song_id",
        "track_id", "article_id", "news_id", "business_id", "isbn", "anime_id", "game_id", "goods_id", "poi_id", "venue_id",
        "photo_id", "post_id", "doc_id", "feed_id", "gmap_id", "location_id", "stock_code", "click_article_id",
    ),
    "time": (
        "timestamp", "time", "t", "ts", "time_ms", "timestamp_ms", "unix_time", "unix_timestamp", "unixReviewTime",
        "event_time", "event_timestamp", "datetime", "date_time", "created_at", "create_time", "click_time", "request_time",
        "action_time", "visit_time", "view_time", "start_time", "utc_time", "utc_timestamp", "click_timestamp", "event_ts",
        "check_in_time", "purchase_time", "order_time", "epoch",
    ),
    "rating": ("rating", "ratings", "label", "overall", "stars", "score", "book_rating", "star_rating"),
    "part": ("part", "split", "set", "subset", "fold", "partition"),
    "history": ("history_item_id", "history", "item_id_list", "item_seq", "item_sequence", "hist_item_id", "history_items"),
    # further features; a cell that is empty or bad is unknown, and its row is kept
    "author": ("author_id", "author", "aid"),
    "tag": ("tag", "category"),
    "playtime": ("playtime", "play_time_ms", "watch_time", "play_duration"),
    "duration": ("duration", "duration_ms", "video_duration"),
}  # fmt: skip
# names that count where the table has none of the above: a day beside a moment is that moment, only coarser
_FALLBACKS: Mapping[str, tuple[str, ...]] = {
    "user": ("session_id", "session", "user_name"),
    "item": ("artist_id", "artist", "movie", "video", "product", "book", "song", "track", "article", "game"),
    "time": ("date", "day", "dt", "reviewTime", "review_date", "t_dat"),
}
CORE: tuple[str, ...] = ("user", "item", "time", "rating", "part")
WORDS = ("author", "tag")
PARTS = {
    "train": TRAIN, "training": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "dev": VALID, "test": TEST,
    "testing": TEST,
}  # fmt: skip

RENAME = "Rename the one that is not meant."  # where no option names columns

_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_TIMELY = re.compile(".*(time|(?<!candi)date|stamp)|epoch|moment|when|at|dt|dat|ts", re.IGNORECASE)


@dataclass(frozen=True)
class Chosen:
    """The columns of roles, those that are not used, and what should be known of these, in clauses."""

    columns: Mapping[str, str]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def find_column(
    role: str, there: Iterable[str], *, name: str, names: Sequence[str] = (), taken: Collection[str] = (), remedy: str = RENAME
) -> str | None:
    """The one column of a role, or None. names: other names that it may have. taken: columns that are no second candidate,
    since another role has them. Raises Corrupt for two, with both names and the remedy."""
    there = list(there)
    for group in ((*NAMES.get(role, ()), *names), _FALLBACKS.get(role, ())):
        normal = {_normal(other) for other in group}
        found = [column for column in dict.fromkeys(there) if _normal(column) in normal]
        if role == "time" and _normal("time") in map(_normal, found):
            # a time of day beside a day is no moment: which of the two is meant must be said
            days = {_normal(other) for other in _FALLBACKS["time"]}
            found += [column for column in there if _normal(column) in days]
        if len(found) > 1:
            found = [column for column in found if column not in taken] or found[:1]
        if len(found) > 1:
            both = " and ".join(map(repr, found[:2]))
            raise Corrupt(f"{name}: {both} may both be the {role} column. {remedy}")
        if found:
            return found[0]
    return None


def choose(
    there: Collection[str], given: Mapping[str, str | None], sample: Mapping[str, Sequence[str]], *, name: str,
    more: Collection[str] = (),
) -> Chosen:  # fmt: skip
    """The column of each role. given: those that the caller names; "" for a role that has none. more: columns used beside.

    sample: some cells of each column. Raises Corrupt for two candidates of a role, and where there is no user or no item.
    """
    columns: dict[str, str] = {}
    notes: list[str] = []
    taken = {column for column in given.values() if column}
    for role in NAMES:
        remedy = f"Name the right one with --column {role}=COL."
        column = given.get(role)
        if column is None:
            column = find_column(role, there, name=name, taken=taken, remedy=remedy)
        if not column:
            continue
        if role == "part" and not given.get(role) and not _says_parts(sample.get(column, ())):
            notes.append(f"{column!r} holds none of the words train, valid and test, and is not used")
            continue
        columns[role] = column
    for role in ("user", "item"):
        if role not in columns and not (role == "item" and "history" in columns):
            raise Corrupt(f"{name}: there is no {role} column among {', '.join(there)}. {_remedy(role, there)}")
    unused = tuple(column for column in there if column not in {*columns.values(), *more})
    notes += [note for column in unused if (note := _note(column, sample.get(column, ()), columns))]
    return Chosen(columns, unused, tuple(notes))


def looks_headerless(there: Iterable[str]) -> bool:
    """Whether the names of columns look like the cells of a row."""
    return any(re.fullmatch(r"[+-]?[0-9]+([.][0-9]+)?", column.strip()) for column in there)


def looks_like_time(name: str, cells: Sequence[str]) -> bool:
    """Whether some cells, all of them, are moments, or whole numbers in the range of seconds since 1970 or of parts of them."""
    if not cells:
        return False
    values, is_bad, scale = numbers_of(cells)
    if is_bad.any():
        return False
    if scale == "moment":
        return True
    is_epoch = any(((values > low) & (values < high)).all() for low, high in ((5e8, 4e9), (5e11, 4e12), (5e14, 4e15)))
    return bool(is_epoch) or (_is_named_after_time(name) and len(np.unique(values)) > 1)


def _remedy(role: str, there: Collection[str]) -> str:
    if looks_headerless(there):
        return "The first row looks like cells. Name the columns with kvtools convert --columns, as in user,item,rating,time."
    return f"Name it with --column {role}=COL."


def _note(column: str, cells: Sequence[str], columns: Mapping[str, str]) -> str:
    if "part" not in columns and len(set(cells)) > 1 and all(cell.lower() in PARTS for cell in cells):
        return f"{column!r} looks like a split and is not used; --column part={column} uses it"
    if looks_like_time(column, cells) and column not in columns.values():
        remedy = "" if "time" in columns else f"; --column time={column} uses it"
        return f"{column!r} looks like a time and is not used{remedy}"
    if "time" not in columns and _is_named_after_time(column):
        odd = next((cell for cell in cells if any(map(str.isdigit, cell)) and numbers_of([cell])[1].any()), "")
        return f"{column!r} is named after a time and is not used, since {odd[:40]!r} is none that is read" if odd else ""
    return ""


def _is_named_after_time(name: str) -> bool:
    return any(_TIMELY.fullmatch(word) for word in _WORD.findall(name))


def _says_parts(cells: Sequence[str]) -> bool:
    return any(cell.strip().lower() in PARTS for cell in cells)


def _normal(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())
