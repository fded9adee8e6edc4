"""Cells of tables as numbers, moments and whole keys. pyarrow arrays in, numpy arrays out.

What is no number is named by a mask and never ends the run. Moments are seconds since 1970: without a zone they are in UTC.
Not here: files, and what columns mean.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Scale = Literal["number", "moment"]

NO_VALUE = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "none", "\\N")  # how other programs write an empty cell

_NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# `Tue Apr 03 18:00:09 +0000 2012`, of Twitter's API, Foursquare's check-ins and Goodreads
_SPELLED = rf"[A-Z][a-z]{{2}} ({'|'.join(_MONTHS)}) +([0-9]{{1,2}}) ([0-9:]+) (?:([A-Z]{{3}}|[+-][0-9:]+) )?([0-9]{{4}})"
_MOMENT = (
    r"^([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}([ T][0-9:., ]+)?\s*([A-Z]{1,3}|[+-][0-9:]+)?|[0-9]{1,2} [0-9]{1,2}, [0-9]{4}"
    rf"|{_SPELLED})$"
)
_CLOCK = r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}(?:[.,]\d+)?))?)?"
_ZONE = r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?"
_GREENWICH = r"\s*(?:UTC|GMT)$"
_LAYOUTS = (  # ISO 8601 and its kin, and `09 13, 2014` of Amazon's reviews
    r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})" + _CLOCK + _ZONE + "$",
    r"^(?P<month>\d{1,2}) (?P<day>\d{1,2}), (?P<year>\d{4})(?P<hour>)(?P<minute>)(?P<second>)(?P<zone>)$",
)
_DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])  # each month
_DAY_S = 86_400
_POWERS = 10 ** np.arange(1, 19)


def whole_keys(cells: Any) -> np.ndarray | None:
    """int64 (n,) where every cell is a whole number as people write it: 7, but neither 007 nor 7.0; else None.

    cells: strings or whole numbers without nulls. The numbers then stand for the cells.
    """
    if pa.types.is_integer(cells.type):
        return np.asarray(cells.cast(pa.int64()).to_numpy(zero_copy_only=False))
    if not len(cells) or not _is_whole(cells[0].as_py()):
        return None
    try:
        values = cells.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    # read back, a number has just as many letters, unless it was written in another way
    magnitudes = np.abs(values) if values.min(initial=0) < 0 else values
    n_letters = len(values) + np.count_nonzero(values < 0)
    for power in _POWERS:
        more = np.count_nonzero(magnitudes >= power)
        n_letters += more
        if not more:
            break
    ends = np.frombuffer(cells.buffers()[1], np.int32)
    return values if n_letters == ends[cells.offset + len(cells)] - ends[cells.offset] else None


def _is_whole(cell: str) -> bool:
    return cell.removeprefix("-").isdecimal()


def numbers(cells: Any, scale: Scale | None = None) -> tuple[np.ndarray, np.ndarray, Scale]:
    """The cells as int64 (n,) where every one is whole, else as float64; bool (n,) where one is bad; and their scale.

    cells: any pyarrow array. scale: that of cells before these; None where most cells decide. Bad cells are those that are no
    finite number of the scale; they, and empty ones, are 0.
    """
    if pa.types.is_temporal(cells.type):
        seconds = pc.divide(cells.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
        return *_finite(seconds, cells), "moment"
    if not pa.types.is_string(cells.type):
        try:
            return *_finite(cells if pa.types.is_integer(cells.type) else cells.cast(pa.float64()), cells), scale or "number"
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return np.zeros(len(cells), np.int64), ~_is_null(cells), scale or "number"
    if scale != "moment":
        for kind in (pa.int64(), pa.float64()):
            try:
                return *_finite(cells.cast(kind), cells), "number"
            except pa.ArrowInvalid:
                continue
    if scale is None:
        n_numbers, n_moments = (np.count_nonzero(_matches(cells, pattern)) for pattern in (_NUMBER, _MOMENT))
        scale = "number" if n_numbers >= n_moments else "moment"
    if scale == "moment":
        seconds, is_good = _moments(cells)
        return seconds, ~is_good & ~_is_null(cells), "moment"
    looks = pc.if_else(pa.array(_matches(cells, _NUMBER)), cells, None)
    try:
        return *_finite(looks.cast(pa.int64()), cells), "number"
    except pa.ArrowInvalid:
        return *_finite(looks.cast(pa.float64()), cells), "number"


def numbers_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, Scale]:
    """What `numbers` gives for a list of n cells: values (n,), bool (n,), and the scale."""
    return numbers(pa.array(list(texts), pa.string()))


def _is_null(cells: Any) -> np.ndarray:
    return np.asarray(cells.is_null().to_numpy(zero_copy_only=False))


def _matches(cells: Any, pattern: str) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.match_substring_regex(cells, pattern), fill_value=False).to_numpy(zero_copy_only=False))


def _finite(values: Any, cells: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values, 0 where they are null or not finite, and where such a cell is not empty."""
    if values.null_count:
        bad = _is_null(values) & ~_is_null(cells)
        array = np.asarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False))
    else:
        bad, array = np.zeros(len(values), bool), np.asarray(values.to_numpy(zero_copy_only=False))
    if array.dtype.kind != "f":
        return array.astype(np.int64, copy=False), bad
    is_finite = np.isfinite(array)
    return (array, bad) if is_finite.all() else (np.where(is_finite, array, 0), bad | ~is_finite)


def _moments(cells: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64 (n,): seconds since 1970, and bool (n,) where a cell is a moment."""
    for cast in (_local, _mixed):  # many times as fast as to take every cell apart
        try:
            stamps = cast(cells)
        except pa.ArrowInvalid:
            continue
        return pc.fill_null(stamps, 0).to_numpy(zero_copy_only=False) / 1e6, ~_is_null(stamps)
    cells = _in_order_of_iso(cells)
    seconds, is_good = np.zeros(len(cells)), np.zeros(len(cells), bool)
    for layout in _LAYOUTS:
        parts = pc.extract_regex(cells, layout)
        fits = ~_is_null(parts)
        if fits.any():
            seconds[fits], is_good[fits] = _seconds(parts.filter(pa.array(fits)))
    return seconds, is_good


def _in_order_of_iso(cells: Any) -> Any:
    """Cells that spell a month, as 2012-4-03 18:00:09+0000; the others as they are."""
    turned = pc.replace_substring_regex(cells, f"^{_SPELLED}$", r"\5-\1-\2 \3\4")
    for number, month in enumerate(_MONTHS, start=1):
        turned = pc.replace_substring(turned, f"-{month}-", f"-{number}-")
    return turned


def _local(cells: Any) -> Any:
    """Microseconds since 1970 where no cell has a zone. Raises ArrowInvalid elsewhere."""
    return cells.cast(pa.timestamp("us")).cast(pa.int64())


def _mixed(cells: Any) -> Any:
    """Microseconds since 1970 where cells have a zone or none. Raises ArrowInvalid where one is no moment."""
    texts = pc.replace_substring_regex(cells, _GREENWICH, "Z")
    has_zone = pc.match_substring_regex(texts, "(Z|[+-][0-9]{2}:?[0-9]{2})$")
    zoned = pc.if_else(has_zone, texts, None).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return pc.coalesce(_local(pc.if_else(has_zone, None, texts)), zoned)


def _seconds(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 of years, months, days and clock times that were cut out of cells, and which of them there are."""
    fields = {name: parts.field(name) for name in ("year", "month", "day", "hour", "minute", "second")}
    numbers = {name: pc.if_else(pc.equal(texts, ""), "0", texts) for name, texts in fields.items()}
    second = pc.replace_substring(numbers.pop("second"), ",", ".").cast(pa.float64()).to_numpy(zero_copy_only=False)
    year, month, day, hour, minute = (texts.cast(pa.int64()).to_numpy(zero_copy_only=False) for texts in numbers.values())
    is_leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    in_month = np.where((month >= 1) & (month <= 12), month, 1)
    n_days = _DAYS_BEFORE[in_month] - _DAYS_BEFORE[in_month - 1] + (is_leap & (in_month == 2))
    is_good = (month == in_month) & (day >= 1) & (day <= n_days) & (hour < 24) & (minute < 60) & (second < 60)
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - 719_162  # of 1970
    days += _DAYS_BEFORE[in_month - 1] + (is_leap & (in_month > 2)) + day - 1
    return days * _DAY_S + hour * 3600 + minute * 60 + second - _offsets(parts.field("zone")), is_good


def _offsets(zones: Any) -> np.ndarray:
    """Seconds east of Greenwich, int64 (n,): +08:00, +0800, +08; 0 for all others."""
    distinct = zones.dictionary_encode()
    offset_of = []
    for zone in distinct.dictionary.to_pylist():
        digits = zone[1:].replace(":", "").ljust(4, "0")
        is_offset = zone[:1] in ("+", "-")
        offset_of.append((1 if zone[0] == "+" else -1) * (int(digits[:2]) * 3600 + int(digits[2:]) * 60) if is_offset else 0)
    return np.asarray(np.array(offset_of, np.int64)[distinct.indices.to_numpy(zero_copy_only=False)])
