"""What items are called, for people: a table with the item and its title."""

from kvtools.artifact.columns import ColumnReader
from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.log import NAMES
from kvtools.skipped import SkippedRows

_TITLES = ("title", "movie_title", "item_title", "name")


def read_titles(src: str) -> tuple[dict[str, str], SkippedRows]:
    """{item: title} from CSV, TSV or a RecBole `.item`, the first of each item, and what was found wrong. Raises Corrupt where
    there is no column of either."""
    text = ColumnReader(open_source(src), src)
    chosen = [next((name for name in names if name in text.types), None) for names in ((*NAMES["item"], "id"), _TITLES)]
    if chosen[0] is None or chosen[1] is None:
        raise Corrupt(f"{src}: columns {', '.join(text.types) or 'none'} found, item_id and title expected.")
    read = text.table([chosen[0], chosen[1]])
    keys, titles = (read.columns[name].to_list() for name in (chosen[0], chosen[1]))
    found: dict[str, str] = {}
    for key, title in zip(keys, titles, strict=True):
        if key is None:
            read.skipped.skip("titles without an item left out", title or "")
        elif found.setdefault(key, title or "") != (title or ""):
            read.skipped.skip("other titles of an item that had one left out", key)
    return found, read.skipped
