"""What items are called, for people: a table with the item and its title."""

from kvtools.artifact.files import open_source
from kvtools.faults import Corrupt
from kvtools.onerec import table
from kvtools.onerec.interactions import NAMES

_TITLES = ("title", "movie_title", "item_title", "name")


def read_titles(src: str) -> dict[str, str]:
    """{item: title} from CSV, TSV or a RecBole `.item`. Raises Corrupt where there is no column of either."""
    file = table.whole(open_source(src))
    form = table.sniff(file, src)
    there = table.header(file, src, form) if form != "sequence" else {}
    chosen = [next((name for name in names if name in there), None) for names in ((*NAMES["item"], "id"), _TITLES)]
    if chosen[0] is None or chosen[1] is None:
        raise Corrupt(f"{src}: columns {', '.join(there) or 'none'} found, item_id and title expected.")
    read = table.read_table(file, src, form, [chosen[0], chosen[1]])
    keys, titles = (read.columns[name].to_pylist() for name in (chosen[0], chosen[1]))
    return {key: title or "" for key, title in zip(keys, titles, strict=True) if key is not None}
