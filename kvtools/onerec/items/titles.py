"""What items are called, for people: a table with the item and its title."""

from kvtools.artifact import delimited as table
from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.log import NAMES
from kvtools.skipped import Findings

_TITLES = ("title", "movie_title", "item_title", "name")


def read_titles(src: str) -> tuple[dict[str, str], Findings]:
    """{item: title} from CSV, TSV or a RecBole `.item`, the first of each item, and what was found wrong. Raises Corrupt where
    there is no column of either."""
    file = table.whole(open_source(src))
    form = table.sniff(file, src)
    there = table.header(file, src, form) if form != "sequence" else {}
    chosen = [next((name for name in names if name in there), None) for names in ((*NAMES["item"], "id"), _TITLES)]
    if chosen[0] is None or chosen[1] is None:
        raise Corrupt(f"{src}: columns {', '.join(there) or 'none'} found, item_id and title expected.")
    read = table.read_table(file, src, form, [chosen[0], chosen[1]])
    keys, titles = (read.columns[name].to_pylist() for name in (chosen[0], chosen[1]))
    found: dict[str, str] = {}
    for key, title in zip(keys, titles, strict=True):
        if key is None:
            read.findings.lose("titles without an item left out", title or "")
        elif found.setdefault(key, title or "") != (title or ""):
            read.findings.lose("other titles of an item that had one left out", key)
    return found, read.findings
