"""Delays from files: a matrix, pings, a list of edges, GML or GraphML, or positions; checked, and converted to ms.

Delays are symmetric here. A matrix that is not is refused unless `is_repaired`: then both directions are averaged, and a
missing delay becomes that of the shortest detour. Of a graph with up to 4,096 nodes all shortest paths are computed once, of a
larger one only those that are needed. Latitudes and longitudes become positions on a sphere, at 200 km/ms, the speed of light
in glass: no cable is straight, so real delays are longer.

Not here: measurements. Delays of more devices than there are sites are extrapolated (`spread`), and the command says so.

Legend: S sites, E edges, n devices. Functions that read raise ValueError for contents that make no network, and Corrupt for
text that cannot be read. `log` takes a message about what was assumed or repaired.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact.delimited import Rows, is_number, read_rows
from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, checked, graph_of

KM_PER_MS = 200.0  # the speed of light in vacuum over the index of refraction of fibre, about 1.5
EARTH_KM = 6371.0
_ALL_PATHS = 4096  # nodes
_ASYMMETRIC = 0.01  # of the larger of two directions
_WEIGHTS = ("delay", "latency", "ms", "weight", "dist", "distance", "LinkLength")
_COMMENTS = re.compile(rb"(?m)^[ \t]*#.*$\n?")  # GML and lists of edges both have them

Log = Callable[[str], None]
Edges = tuple[np.ndarray, np.ndarray]  # int32 (E, 2) sites, float32 (E,) ms


class AsymmetricDelays(ValueError):
    """A matrix with delays that are missing, or differ between the two directions."""


def read_matrix(
    file: BinaryIO | str, name: str, *, scale: float = 1.0, is_repaired: bool = False, log: Log = lambda _: None
) -> Delays:
    """Delays from a square matrix, from pings between sites, or from WonderNetwork's files of one city each.

    file: numbers between blanks, tabs or commas, with names in the first row and column or without; an .npy; a table with the
    columns source, target and ms; a file of WonderNetwork's, or the path of a folder of such files. scale: ms a unit. Raises
    AsymmetricDelays unless is_repaired.
    """
    if isinstance(file, str):
        matrix = _folder_of_pings(file)
    elif _is_npy(file):
        matrix = np.load(_seekable(file), allow_pickle=False).astype(np.float64)
    else:
        matrix = _table(read_rows(file, name, delimiters=","), name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{' x '.join(map(str, matrix.shape))} numbers are not a square matrix")
    matrix = matrix * scale
    np.fill_diagonal(matrix, 0)
    if (matrix < 0).any():
        row, column = np.argwhere(matrix < 0)[0].tolist()
        raise ValueError(f"the delay from {row} to {column} is {matrix[row, column]:g} ms, and cannot be negative")
    matrix = _symmetric(matrix, is_repaired=is_repaired, log=log)
    return checked(Delays("matrix", np.arange(len(matrix)), np.zeros(len(matrix)), matrix=matrix.astype(np.float32)))


def read_graph(file: BinaryIO, name: str, *, scale: float = 1.0, log: Log = lambda _: None) -> tuple[Delays, Edges]:
    """Delays along the edges of an undirected graph, and its edges. Lines `node node ms`, GML or GraphML; scale: ms a unit.

    Edges of GML and GraphML carry `delay`, `latency`, `weight`, `distance` …, or their nodes Latitude and Longitude; where
    neither is there, each edge has one unit, which is logged. Nodes are numbered in the order of their names, numbers by value.
    Raises ValueError where the graph is not connected or an edge is negative.
    """
    from scipy.sparse.csgraph import dijkstra

    is_marked_up = _COMMENTS.sub(b"", _peek(file, 4096)).lstrip().startswith((b"<", b"graph", b"Creator", b"Version"))
    nodes, ends, weights = _networkx(file, scale, log) if is_marked_up else _edge_lines(file, name, scale)
    if not len(ends):
        raise ValueError("it holds no edges")
    is_bad = (weights < 0) | ~np.isfinite(weights)
    if is_bad.any():
        edge = int(np.argmax(is_bad))
        raise ValueError(f"edge {edge + 1} has a delay of {weights[edge]:g} ms, which is negative or not finite")
    low, high = ends.min(axis=1), ends.max(axis=1)
    order = np.lexsort((np.maximum(weights, 1e-12), high, low))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
    shortest = order[is_first]  # of parallel edges
    pairs = np.stack([low[shortest], high[shortest]], axis=1)
    graph = graph_of(pairs, weights[shortest], len(nodes))
    _require_connected(graph, nodes)
    edges = (pairs.astype(np.int32), weights[shortest].astype(np.float32))
    site, none = np.arange(len(nodes)), np.zeros(len(nodes))
    if len(nodes) > _ALL_PATHS:
        return checked(Delays("graph", site, none, graph=graph)), edges
    matrix = dijkstra(graph, directed=False).astype(np.float32)
    return checked(Delays("matrix", site, none, matrix=np.minimum(matrix, matrix.T))), edges


def read_coordinates(file: BinaryIO, name: str, *, scale: float = 1.0) -> Delays:
    """Delays by distance: CSV with latitude and longitude in degrees, or an .npy (S, d) of positions, `scale` ms a unit."""
    if _is_npy(file):
        points = np.load(_seekable(file), allow_pickle=False)
        if points.ndim != 2 or points.dtype.kind not in "fiu" or not len(points) or not 1 <= points.shape[1] <= 64:
            raise ValueError(
                f"the array is {points.dtype} {points.shape}, and numbers of shape (devices, axes) with 1 to 64 axes are needed"
            )
        points = points.astype(np.float64) * scale
        return checked(Delays("euclidean", np.arange(len(points)), np.zeros(len(points)), points=points))
    rows = read_rows(file, name, delimiters=",", has_header=True)
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


def on_sphere(degrees: np.ndarray) -> np.ndarray:
    """Positions of latitudes and longitudes (n, 2) in degrees, float64 (n, 3), ms from the centre of the earth."""
    latitude, longitude = np.radians(degrees).T
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1) * (EARTH_KM / KM_PER_MS)


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


def _table(rows: Rows, name: str) -> np.ndarray:
    """The matrix of a text file: of pings, of one city's pings, or of numbers with names or without."""
    if not rows.header and not len(rows):
        raise ValueError("the file is empty, and a matrix of delays is needed")
    pings = [rows.index(title) for title in ("source", "target", "ms")]
    if None not in pings:
        source, target, ms = (int(column) for column in pings if column is not None)
        delays = rows.numbers([ms])[:, 0].tolist()
        return _square((f[source].strip(), f[target].strip(), delay) for f, delay in zip(rows.fields, delays, strict=True))
    if rows.index("city") is not None and rows.index("average") is not None:
        here = _city_of(name)
        pings_of_city = _pings_of_city(rows)
        return _square((here, target, ms) for target, ms in pings_of_city if not f"{target} ".startswith(f"{here} "))
    first = 1 if rows.header else 0
    width = len(rows.header) or len(rows.fields[0])
    return rows.numbers(range(first, width))


def _folder_of_pings(top: str) -> np.ndarray:
    """Delays between the cities that have a file of their own, anywhere in a folder of WonderNetwork's files."""
    paths = sorted(Path(top).rglob("*Ping.csv"))
    if not paths:
        raise ValueError("the folder has no files *Ping.csv, each with the pings of one city")
    pings: list[tuple[str, str, float]] = []
    cities = sorted({_city_of(str(path)) for path in paths}, key=len, reverse=True)
    for path in paths:
        with open(path, "rb") as file:
            rows = read_rows(file, str(path), delimiters=",", has_header=True, is_ragged=True)
        if rows.index("city") is None or rows.index("average") is None:
            raise ValueError(f"{path.name}: the columns are {', '.join(rows.header[:4])}, and City and Average are needed")
        for target, ms in _pings_of_city(rows):
            # "Paris France, Eurasia": the longest name that it begins with
            city = next((city for city in cities if target == city or target.startswith(f"{city} ")), None)
            if city is not None:
                pings.append((_city_of(str(path)), city, ms))
    return _square(pings, sorted(cities))


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


def _square(pings: Iterable[tuple[str, str, float]], names: list[str] | None = None) -> np.ndarray:
    """The matrix of pings, NaN where there is none either way; sites in the order of `names`, or as they occur."""
    pings = list(pings)
    order = names or [name for source, target, _ in pings for name in (source, target)]
    index = {name: number for number, name in enumerate(dict.fromkeys(order))}
    matrix = np.full((len(index), len(index)), np.nan)
    for source, target, ms in pings:
        matrix[index[source], index[target]] = ms
    is_one_way = np.isnan(matrix) & ~np.isnan(matrix.T)  # few networks are measured both ways
    matrix[is_one_way] = matrix.T[is_one_way]
    return matrix


def _symmetric(matrix: np.ndarray, *, is_repaired: bool, log: Log) -> np.ndarray:
    """The matrix with equal delays in both directions, float64 (S, S)."""
    is_missing = ~np.isfinite(matrix)
    larger = np.fmax(matrix, matrix.T)
    with np.errstate(invalid="ignore"):  # infinite delays are missing ones
        is_odd = np.abs(matrix - matrix.T) > _ASYMMETRIC * larger + 1e-6
    if not is_repaired:
        if is_missing.any():
            row, column = np.argwhere(is_missing)[0].tolist()
            raise AsymmetricDelays(f"{int(is_missing.sum())} delays are missing, the first from site {row} to site {column}")
        if is_odd.any():
            row, column = np.argwhere(is_odd)[0].tolist()
            raise AsymmetricDelays(
                f"{int(is_odd.sum())} delays are asymmetric: from site {row} to site {column} it is "
                f"{matrix[row, column]:g} ms, and back {matrix[column, row]:g} ms"
            )
        return np.asarray((matrix + matrix.T) / 2)
    whole = np.where(is_missing, matrix.T, (np.where(is_missing.T, matrix, matrix.T) + matrix) / 2)
    gaps = np.argwhere(~np.isfinite(whole))
    if len(gaps):
        known = np.where(np.isfinite(whole), whole, np.inf)
        detours = [float((known[row] + known[column]).min()) for row, column in gaps]
        if not np.isfinite(detours).all():
            row, column = gaps[int(np.argmin(np.isfinite(detours)))].tolist()
            raise ValueError(f"there is no delay and no detour between site {row} and site {column}")
        whole[gaps[:, 0], gaps[:, 1]] = detours
    log(f"{int(is_odd.sum()) // 2} pairs averaged, {len(gaps) // 2} filled by the shortest detour")
    return whole


def _require_connected(graph: Any, nodes: list[str]) -> None:
    from scipy.sparse.csgraph import connected_components

    n_parts, part = connected_components(graph, directed=False)
    if n_parts > 1:
        other = nodes[int(np.argmax(part != part[0]))]
        raise ValueError(f"the graph has {n_parts} parts that no edge connects; {nodes[0]} and {other} are in two of them")


def _edge_lines(file: BinaryIO, name: str, scale: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of nodes, ends of edges int64 (E, 2) and weights float64 (E,) from lines `node node ms`."""
    rows = read_rows(file, name, delimiters="", has_header=False, comment="#", is_ragged=True)
    for line, fields in rows:
        if len(fields) != 3 or not is_number(fields[2]):
            raise ValueError(f"line {line} is {' '.join(fields)[:40]!r}, and `node node ms` is needed")
    ends = [(fields[0], fields[1]) for fields in rows.fields]
    nodes = sorted({node for edge in ends for node in edge}, key=_by_value)
    return _numbered(nodes, ends, [float(fields[2]) * scale for fields in rows.fields])


def _networkx(file: BinaryIO, scale: float, log: Log) -> tuple[list[str], np.ndarray, np.ndarray]:
    """As _edge_lines, from GML or GraphML."""
    import networkx as nx

    text, n_bare = file.read(), 0
    try:
        if text.lstrip().startswith(b"<"):
            graph = nx.parse_graphml(text.decode())
        else:
            graph = nx.parse_gml(text.decode().splitlines(), label="id")
    except (nx.NetworkXError, ValueError, SyntaxError) as fault:
        raise ValueError(f"this is neither GML nor GraphML ({fault})") from None
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ValueError("this is neither GML nor GraphML") from None
    has_positions = all({"Latitude", "Longitude"} <= set(node) for _, node in graph.nodes(data=True))
    weights: list[float] = []
    for u, v, fields in graph.edges(data=True):
        name = next((name for name in _WEIGHTS if name in fields), None)
        if name is not None:
            weights.append(_number(fields[name], f"{name} of the edge from {u} to {v}") * scale)
        else:
            weights.append(_distance_ms(graph.nodes[u], graph.nodes[v]) if has_positions else scale)
            n_bare += not has_positions
    if n_bare:
        log(f"{n_bare} edges have no delay and their nodes no position: {scale:g} ms each")
    nodes = sorted((str(node) for node in graph.nodes), key=_by_value)
    return _numbered(nodes, [(str(u), str(v)) for u, v in graph.edges()], weights)


def _number(value: Any, name: str) -> float:
    """A field of GML or GraphML. Raises ValueError, with its name, where it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, and a number is needed") from None


def _distance_ms(u: Any, v: Any) -> float:
    a, b = on_sphere(np.array([[_number(node[axis], axis) for axis in ("Latitude", "Longitude")] for node in (u, v)]))
    diameter = 2 * EARTH_KM / KM_PER_MS
    return float(diameter * np.arcsin(min(1.0, float(np.sqrt(np.square(a - b).sum())) / diameter)))


def _numbered(nodes: list[str], ends: list[tuple[str, str]], weights: list[float]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The edges with nodes as indices into `nodes`, without loops."""
    index = {node: number for number, node in enumerate(nodes)}
    pairs = np.array([(index[u], index[v]) for u, v in ends], np.int64).reshape(-1, 2)
    is_loop = pairs[:, 0] == pairs[:, 1]
    return nodes, pairs[~is_loop], np.array(weights, np.float64)[~is_loop]


def _by_value(node: str) -> tuple[int, float, str]:
    return (0, float(node), node) if is_number(node) else (1, 0.0, node)
