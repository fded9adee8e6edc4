"""Semantic IDs as other projects publish them, read and written.

Read: `index.json` of MiniOneRec and LETTER, {item: ["<a_1>", "<b_2>", "<c_3>"]}; the same with one string an item; OpenOneRec's
form, `<|sid_begin|><s_a_1><s_b_2><s_c_3><|sid_end|>`, and its parquet of items with lists of codes; MiniOneRec's `info` files;
and tables with a column of the item and one of its ID, or one a code. Not here: how IDs are made.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

from kvtools.artifact.columns import Column
from kvtools.artifact.tables import ColumnReader, as_text
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.names import find_column
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.onerec.semantic_ids.quality import describe
from kvtools.skipped import SkippedRows

Layout = Literal["index", "openonerec", "csv"]

_TOKEN = re.compile(r"<(?:s_)?([a-z])_([0-9]{1,9})>")
_FRAME = re.compile(r"<\|sid_(?:begin|end)\|>|\s+")
_NUMBERS = re.compile(r"\d+(?:[\s,_-]+\d+)+")
_ITEM_NAMES = ("id", "pid", "key")
_ID_NAMES = ("sid", "semantic_id", "semantic_ids", "item_sid", "codes", "sids")
_CODE_NAME = re.compile(r"(?:code|c|sid|level|l|s)[ _.-]?([0-9]+)", re.IGNORECASE)
_WIDTH = 32  # of the codebooks that stand in for those that were not published


def holds_ids(text: ColumnReader) -> bool:
    """Whether a table, or a JSON object, holds items with their semantic IDs."""
    if text.lists is not None:
        values = list(text.lists.values())[:100]
        return bool(values) and all(_is_id(value) for value in values)
    if _headerless(text) is not None:
        return True
    return find_column("user", text.types, name=text.name) is None and bool(_id_columns(text.types))


def read_ids(file: BinaryIO, name: str) -> tuple[SemanticIds, SkippedRows]:
    """The IDs of a file, and the items that were left out: those without an ID, with a damaged one, and with one of another
    length than most. Raises Corrupt where nothing is left.

    The codebooks are not published with the IDs. Random ones stand in for them: items that share codes are near one another,
    which is what a model asks of them, and new items cannot be given IDs by them.
    """
    text = ColumnReader(file, name)
    if (header := _headerless(text)) is not None:
        file.seek(0)
        text = ColumnReader(file, name, header=header)
    codes_of: dict[str, tuple[int, ...]] = {}
    skipped = SkippedRows()
    for key, value in _items(text):
        try:
            codes = codes_of_id(value)
        except ValueError as fault:
            skipped.skip("items whose ID cannot be read left out", f"{key}: {fault}")
            continue
        if codes_of.setdefault(key, codes) != codes:
            skipped.skip("further IDs of an item that had one left out", key)
    for reason, count in text.skipped.counts.items():
        skipped.add(reason, count, text.skipped.names[reason])
    lengths = Counter(map(len, codes_of.values()))
    n_levels = lengths.most_common(1)[0][0] if lengths else 0
    for key in [key for key, codes in codes_of.items() if len(codes) != n_levels]:
        n_codes = len(codes_of.pop(key))
        skipped.skip(f"items whose ID has another number of codes than {n_levels} left out", f"{key}: {n_codes}")
    if not codes_of:
        raise Corrupt(f"{name}: there is no item with a semantic ID in it. Give IDs such as <a_1><b_2><c_3>, an item each.")
    keys = np.array(list(codes_of), np.dtypes.StringDType())
    codes_NL = np.array(list(codes_of.values()), np.int32)
    n_codes = int(codes_NL.max()) + 1
    # frozen by numpy, unlike the streams of newer generators; each level is half as wide as the one before
    codebooks_LKD = np.random.RandomState(0).standard_normal((n_levels, n_codes, _WIDTH)).astype(np.float32)
    codebooks_LKD *= (0.5 ** np.arange(n_levels, dtype=np.float32))[:, None, None]
    config = {"method": "published", "levels": n_levels, "codes": n_codes}
    return SemanticIds(keys, codes_NL, codebooks_LKD, config, {**config, **describe(codes_NL, n_levels, n_codes)}), skipped


def codes_of_id(value: Any) -> tuple[int, ...]:
    """The codes of one ID: tokens in a list or in a string, whole numbers in a list, or in a string with marks between.

    Raises ValueError for anything else, and for tokens whose letters are not a, b, c, … in order.
    """
    if isinstance(value, list | tuple) and value and all(type(code) is int for code in value):
        codes = tuple(value)
    else:
        text = _FRAME.sub("", "".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        tokens = _TOKEN.findall(text)
        if tokens and not _TOKEN.sub("", text):
            letters = "".join(letter for letter, _ in tokens)
            if letters != "abcdefghijklmnopqrstuvwxyz"[: len(letters)]:
                raise ValueError(f"its levels are {letters}")
            codes = tuple(int(code) for _, code in tokens)
        elif _NUMBERS.fullmatch(plain := str(value).strip(" []()")):
            codes = tuple(int(code) for code in re.findall(r"\d+", plain))
        else:
            raise ValueError(f"{str(value)[:40]!r} is no ID")
    if min(codes) < 0 or max(codes) > 1 << 24:
        raise ValueError(f"a code is {min(codes) if min(codes) < 0 else max(codes)}")
    return codes


def written(ids: SemanticIds, layout: Layout) -> Iterator[str]:
    """The lines of a file of that layout."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = zip(ids.keys.tolist(), ids.codes_NS.tolist(), strict=True)
    if layout == "csv":
        yield ",".join(["item_id", *(f"code_{n}" for n in range(1, ids.codes_NS.shape[1] + 1))])
        for key, codes in rows:
            cell = '"' + key.replace('"', '""') + '"' if re.search('[",\r\n]', key) else key
            yield ",".join([cell, *map(str, codes)])
        return
    yield "{"
    n_items = len(ids)
    for n, (key, codes) in enumerate(rows, start=1):
        tokens: str | list[str] = [f"<{letter}_{code}>" for letter, code in zip(letters, codes, strict=False)]
        if layout == "openonerec":
            inner = "".join(f"<s_{letter}_{code}>" for letter, code in zip(letters, codes, strict=False))
            tokens = f"<|sid_begin|>{inner}<|sid_end|>"
        yield f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(tokens)}{',' if n < n_items else ''}"
    yield "}"


def _is_id(value: Any) -> bool:
    """Whether a value of a JSON object is an ID beyond doubt: bare numbers may be items, too."""
    text = "".join(map(str, value)) if isinstance(value, list) else str(value)
    return bool(_TOKEN.match(_FRAME.sub("", text)))


def _headerless(text: ColumnReader) -> list[str] | None:
    """The columns of a table whose first row holds an ID already, as MiniOneRec's `info` files do."""
    places = [n for n, cell in enumerate(text.first_row) if _is_id(cell)]
    n_cells = len(text.first_row)
    if len(places) != 1 or n_cells not in (2, 3):
        return None
    names = [f"column {n}" for n in range(n_cells)]
    names[places[0]] = "sid"
    names[n_cells - 1 if places[0] == 0 else 0] = "item_id"
    return names


def _id_columns(there: Iterable[str]) -> list[str]:
    """The column of the ID, or those of its codes in order; empty where there are none."""
    there = list(there)
    named = [column for column in there if column.strip().lower() in _ID_NAMES]
    codes = sorted((int(match[1]), column) for column in there if (match := _CODE_NAME.fullmatch(column.strip())))
    return named[:1] or ([column for _, column in codes] if len(codes) > 1 else [])


def _items(text: ColumnReader) -> Iterator[tuple[str, Any]]:
    """The key and the ID of each item."""
    if text.lists is not None:
        yield from text.lists.items()
        return
    key = find_column("item", text.types, name=text.name, names=_ITEM_NAMES)
    columns = _id_columns(text.types)
    if key is None or not columns:
        raise Corrupt(f"{text.name}: the columns are {', '.join(text.types)}, and an item and its ID are needed. Rename them.")
    for batch in text.batches([key, *columns]):
        cells = [Column(as_text(batch.columns[column])).to_list() for column in (key, *columns)]
        for item, *codes in zip(*cells, strict=True):
            yield item or "", codes[0] if len(columns) == 1 else _numbers(codes)


def _numbers(cells: Sequence[str | None]) -> list[int] | str:
    """The codes of a row that has a column for each; the cells themselves where one is no number."""
    return [int(cell) for cell in cells if cell] if all(cell and cell.isdecimal() for cell in cells) else str(list(cells))
