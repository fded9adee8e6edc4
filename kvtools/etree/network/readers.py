"""Delays from files: a matrix, pings, or positions; checked, and converted to ms. Graphs: see graphs.py.

Delays are symmetric here. A matrix that is not is refused unless `is_repaired`: then both directions are averaged, and a
missing delay becomes that of the way back, or else of the shortest detour. Rows and columns are matched by their names.

Not here: measurements. Delays of more devices than there are sites are extrapolated (`spread`), and the command says so.

Legend: S sites, n devices. Functions that read raise ValueError for contents that make no network, and Corrupt for
text that cannot be read. `log` takes a message about what was assumed or repaired.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kvtools.artifact.arrays import load_array
from kvtools.artifact.delimited import Rows, is_number, read_rows, read_text
from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, checked
from kvtools.etree.network.graphs import ASYMMETRIC, AsymmetricDelays, Log, on_sphere

_COMMENTS = re.compile("(?m)^[ \\t]*#.*$")


@dataclass(frozen=True)
class _Matrix:
    """Delays between sites as a file has them, and what messages call them."""

    ms: np.ndarray  # float64 (S, S), NaN where there is none
    names: list[str] | None = None  # of the sites
    cells: tuple[list[int], list[int]] | None = None  # where a text has them: the line of each row, the column of each column

    def site(self, number: int) -> str:
        """A site by its name, or else by its number from 0."""
        return f"site {number}" if self.names is None else repr(self.names[number])

    def way(self, row: int, column: int) -> str:
        """The way between two sites, and where the text has its delay."""
        where = "" if self.cells is None else f" (line {self.cells[0][row]}, column {self.cells[1][column]})"
        return f"from {self.site(row)} to {self.site(column)}{where}"


def read_matrix(
    file: BinaryIO | str, name: str, *, scale: float = 1.0, is_repaired: bool = False, log: Log = lambda _: None
) -> Delays:
    """Delays from a square matrix, from pings between sites, or from WonderNetwork's files of one city each.

    file: numbers between semicolons, commas, tabs, bars or blanks, with names in the first row and column or without; an
    .npy; a table with the columns source, target and ms, whose repeated pings are averaged; a file of WonderNetwork's, or the
    path of a folder of such files. Lines that begin with # are left out. scale: ms a unit. Raises AsymmetricDelays unless
    is_repaired.
    """
    if isinstance(file, str):
        read = _folder_of_pings(file, log)
    elif _is_npy(file):
        read = _Matrix(_numbers_of(load_array(_seekable(file), name)))
    else:
        read = _table(_rows_of(_COMMENTS.sub("", read_text(file, name)), name), name, log)
    if read.ms.ndim != 2 or read.ms.shape[0] != read.ms.shape[1] or not len(read.ms):
        raise ValueError(f"{' x '.join(map(str, read.ms.shape))} numbers are not a square matrix")
    matrix = read.ms * scale
    own = np.nan_to_num(matrix.diagonal(), posinf=0, neginf=0)
    if own.any():
        log(f"{np.count_nonzero(own)} delays of a site to itself are left out, such as {own[own != 0][0]:g} ms")
    np.fill_diagonal(matrix, 0)
    if (matrix < 0).any():
        row, column = np.argwhere(matrix < 0)[0].tolist()
        raise ValueError(f"the delay {read.way(row, column)} is {matrix[row, column]:g} ms, and cannot be negative")
    matrix = _symmetric(replace(read, ms=matrix), is_repaired=is_repaired, log=log)
    return checked(Delays("matrix", np.arange(len(matrix)), np.zeros(len(matrix)), matrix=matrix.astype(np.float32)))


def read_coordinates(file: BinaryIO, name: str, *, scale: float = 1.0) -> Delays:
    """Delays by distance: CSV with latitude and longitude in degrees, or an .npy (S, d) of positions, `scale` ms a unit."""
    if _is_npy(file):
        points = load_array(_seekable(file), name)
        if points.ndim != 2 or points.dtype.kind not in "fiu" or not len(points) or not 1 <= points.shape[1] <= 64:
            raise ValueError(
                f"the array is {points.dtype} {points.shape}, and numbers of shape (devices, axes) with 1 to 64 axes are needed"
            )
        points = points.astype(np.float64) * scale
        return checked(Delays("euclidean", np.arange(len(points)), np.zeros(len(points)), points=points))
    rows = read_rows(file, name, has_header=True)
    columns = rows.index("latitude", "lat"), rows.index("longitude", "long", "lon", "lng")
    if columns[0] is None or columns[1] is None:
        raise ValueError(f"the columns are {', '.join(rows.header) or 'none'}, and latitude and longitude are needed")
    degrees = rows.numbers([columns[0], columns[1]])
    is_good = (np.abs(degrees) <= (90, 180)).all(axis=1)
    if not is_good.all():
        row = int(np.argmin(is_good))
        raise ValueError(
            f"line {rows.lines[row]} has latitude {degrees[row, 0]:g} and longitude {degrees[row, 1]:g}, "
            "and degrees up to 90 and 180 are needed"
        )
    return checked(Delays("sphere", np.arange(len(rows)), np.zeros(len(rows)), points=on_sphere(degrees)))


def spread(delays: Delays, n_devices: int, last_mile: tuple[float, float] | None, seed: int) -> Delays:
    """The delays between so many devices at these sites.

    Up to one device a site: a random choice of sites, in their order. More: the sites in random order, again and again.
    last_mile: mean and deviation in ms of a normal distribution, from which each device draws its last mile, at least 0: such
    delays are extrapolated, not measured.
    """
    rng = rng_for(seed, "devices", "sites", n_devices)
    n_sites = delays.n_sites
    if n_devices <= n_sites:
        site = np.sort(rng.permutation(n_sites)[:n_devices])
    else:
        site = np.concatenate([rng.permutation(n_sites) for _ in range(-(-n_devices // n_sites))])[:n_devices]
    last = np.zeros(n_devices)
    if last_mile is not None:
        last = np.maximum(0, rng.normal(*last_mile, n_devices))
    return checked(replace(delays, site=site, last_mile=last.astype(np.float32).astype(np.float64)))


def _peek(file: BinaryIO, n: int) -> bytes:
    return bytes(file.peek(n)[:n])  # type: ignore[attr-defined]


def _is_npy(file: BinaryIO) -> bool:
    return _peek(file, 6) == b"\x93NUMPY"


def _seekable(file: BinaryIO) -> BinaryIO:
    return file if file.seekable() else BytesIO(file.read())


def _numbers_of(array: np.ndarray) -> np.ndarray:
    """The numbers of an array in float64, of its shape. Raises ValueError where it holds something else."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"the array is of type {array.dtype}, and numbers are needed")
    return array.astype(np.float64)


def _rows_of(text: str, name: str) -> Rows:
    """The rows of a text. Where tabs separate fields, these may hold blanks, unless all that there is are numbers."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    is_even = len({len(words) for words in lines}) == 1 and all(is_number(word) for words in lines for word in words)
    return read_rows(BytesIO(text.encode()), name, delimiters="" if is_even else ";,\t|")


def _table(rows: Rows, name: str, log: Log) -> _Matrix:
    """The matrix of a text file: of pings, of one city's pings, or of numbers with names or without."""
    if not rows.header and not len(rows):
        raise ValueError("the file is empty, and a matrix of delays is needed")
    rows.require_fields()
    pings = [rows.index(title) for title in ("source", "target", "ms")]
    if None not in pings:
        source, target, ms = (int(column) for column in pings if column is not None)
        delays = rows.numbers([ms])[:, 0].tolist()
        return _square(
            ((f[source].strip(), f[target].strip(), delay) for f, delay in zip(rows.fields, delays, strict=True)), log
        )
    if rows.index("city") is not None and rows.index("average") is not None:
        here = _city_of(name)
        pings_of_city = _pings_of_city(rows)
        return _square(((here, target, ms) for target, ms in pings_of_city if not f"{target} ".startswith(f"{here} ")), log)
    header = rows.header or rows.fields[0]
    if not rows.header and _has_corner(rows.fields):
        rows = Rows(rows.name, header, rows.lines[1:], rows.fields[1:])
    if not rows.header or len(rows) == len(rows.header):
        columns, names = [*range(len(header))], [title.strip() for title in rows.header] or None
        return _Matrix(rows.numbers(columns), names, (rows.lines, [column + 1 for column in columns]))
    columns, names = [*range(1, len(header))], [row[0].strip() for row in rows.fields]
    if len(rows) == len(columns):
        columns = [columns[i] for i in _order(names, [title.strip() for title in header[1:]])]
    return _Matrix(rows.numbers(columns), names, (rows.lines, [column + 1 for column in columns]))


def _has_corner(fields: list[list[str]]) -> bool:
    """Whether the numbers of the first row and column are names, as pandas writes them: the corner alone is empty.

    The matrix that has nothing on its diagonal has an empty corner, too.
    """
    first = fields[0]
    is_square = len(first) == len(fields) and any(row[i].strip() for i, row in enumerate(fields))
    return is_square and not first[0].strip() and all(map(str.strip, first[1:]))


def _order(rows: list[str], columns: list[str]) -> list[int]:
    """The column of each row's name. Raises ValueError where the names are not the same."""
    for what, names in (("row", rows), ("column", columns)):
        for name, count in Counter(names).most_common(1):
            if count > 1:
                raise ValueError(f"{count} {what}s have the name {name!r}")
    alone = sorted(set(rows) ^ set(columns))
    if alone:
        raise ValueError(f"{alone[0]!r} is the name of a {'row' if alone[0] in rows else 'column'} only")
    return [columns.index(name) for name in rows]


def _folder_of_pings(top: str, log: Log) -> _Matrix:
    """Delays between the cities that have a file of their own, anywhere in a folder of WonderNetwork's files."""
    paths = sorted(Path(top).rglob("*Ping.csv"))
    if not paths:
        raise ValueError("the folder has no files *Ping.csv, each with the pings of one city")
    pings: list[tuple[str, str, float]] = []
    cities = sorted({_city_of(str(path)) for path in paths}, key=len, reverse=True)
    for path in paths:
        with open(path, "rb") as file:
            rows = read_rows(file, str(path), has_header=True, is_ragged=True)
        if rows.index("city") is None or rows.index("average") is None:
            raise ValueError(f"{path.name}: the columns are {', '.join(rows.header[:4])}, and City and Average are needed")
        for target, ms in _pings_of_city(rows):
            # "Paris France, Eurasia": the longest name that it begins with
            city = next((city for city in cities if target == city or target.startswith(f"{city} ")), None)
            if city is not None:
                pings.append((_city_of(str(path)), city, ms))
    return _square(pings, log, sorted(cities))


def _city_of(path: str) -> str:
    return Path(path).name.removesuffix(".csv").removesuffix("Ping").removeprefix("raw_").replace("+", " ").replace("_", " ")


def _pings_of_city(rows: Rows) -> list[tuple[str, float]]:
    """Target and average, as `154.72ms`, of each row of a WonderNetwork file."""
    target, average = rows.index("city"), rows.index("average")
    assert target is not None, "the caller has looked"
    assert average is not None, "the caller has looked"
    pings = []
    for line, fields in rows:
        ms = fields[average].strip().removesuffix("ms") if len(fields) > max(target, average) else ""
        if not is_number(ms):
            raise ValueError(f"line {line} of {Path(rows.name).name} has no city with an average in ms")
        pings.append((fields[target].strip(), float(ms)))
    return pings


def _square(pings: Iterable[tuple[str, str, float]], log: Log, names: list[str] | None = None) -> _Matrix:
    """The matrix of pings; sites in the order of `names`, or as they occur. Several
    pings of one direction are averaged."""
    pings = list(pings)
    order = names or [name for source, target, _ in pings for name in (source, target)]
    index = {name: number for number, name in enumerate(dict.fromkeys(order))}
    total, count = np.zeros((2, len(index), len(index)))
    for source, target, ms in pings:
        total[index[source], index[target]] += ms
        count[index[source], index[target]] += 1
    matrix = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    if (n_repeated := int((count > 1).sum())) > 0:
        log(f"{n_repeated} pairs of sites have several pings in one direction, which are averaged")
    return _Matrix(matrix, [*index])


def _symmetric(read: _Matrix, *, is_repaired: bool, log: Log) -> np.ndarray:
    """The matrix with equal delays in both directions, float64 (S, S)."""
    matrix = read.ms
    is_missing = ~np.isfinite(matrix)
    larger = np.fmax(matrix, matrix.T)
    with np.errstate(invalid="ignore"):  # infinite delays are missing ones
        is_odd = np.abs(matrix - matrix.T) > ASYMMETRIC * larger + 1e-6
    if not is_repaired:
        if is_missing.any():
            row, column = np.argwhere(is_missing)[0].tolist()
            raise AsymmetricDelays(f"{int(is_missing.sum())} delays are missing, the first {read.way(row, column)}")
        if is_odd.any():
            row, column = np.argwhere(is_odd)[0].tolist()
            raise AsymmetricDelays(
                f"{int(is_odd.sum())} delays are asymmetric: {read.way(row, column)} it is {matrix[row, column]:g} ms, "
                f"and back {matrix[column, row]:g} ms"
            )
        return np.asarray((matrix + matrix.T) / 2)
    whole = np.where(is_missing, matrix.T, (np.where(is_missing.T, matrix, matrix.T) + matrix) / 2)
    gaps = np.argwhere(~np.isfinite(whole))
    if len(gaps):
        known = np.where(np.isfinite(whole), whole, np.inf)
        detours = [float((known[row] + known[column]).min()) for row, column in gaps]
        if not np.isfinite(detours).all():
            row, column = gaps[int(np.argmin(np.isfinite(detours)))].tolist()
            raise ValueError(f"there is no delay and no detour between {read.site(row)} and {read.site(column)}")
        whole[gaps[:, 0], gaps[:, 1]] = detours
    n_one_way = int((is_missing & ~is_missing.T).sum())
    from_back = f", {n_one_way} by the delay of the way back" if n_one_way else ""
    log(f"{int(is_odd.sum()) // 2} pairs averaged, {len(gaps) // 2} filled by the shortest detour{from_back}")
    return whole
