"""Where delays come from: a matrix, a list of edges, GML or GraphML, positions; read, held against sense, and turned into ms.

Delays are symmetric here. A matrix that is not is refused unless `is_mended`: then both directions are averaged, and what is
missing takes the shortest detour. Of a graph with up to 4,096 nodes all shortest paths are computed once, of a larger one only
those that are asked for. Latitude and longitude become positions on a sphere, at 200 km/ms, the speed of light in glass: no
cable is straight, so real delays are longer.

Not here: measuring anything. Delays of more devices than there are sites are extrapolated (`spread`), and said to be.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, checked

KM_PER_MS = 200.0  # the speed of light in vacuum over the index of refraction of fibre, about 1.5
EARTH_KM = 6371.0
_ALL_PATHS = 4096  # nodes
_ASYMMETRIC = 0.01  # of the larger of two directions
_LATITUDE, _LONGITUDE = ("latitude", "lat"), ("longitude", "long", "lon", "lng")
_WEIGHTS = ("delay", "latency", "ms", "weight", "dist", "distance", "LinkLength")

Tell = Callable[[str], None]


def read_matrix(
    file: BinaryIO | str, *, scale: float = 1.0, is_mended: bool = False, tell: Tell = lambda _: None, name: str = ""
) -> Delays:
    """Delays from a square matrix: numbers between blanks, tabs or commas, with names in the first row and column or without;
    an .npy; a table of pings with the columns source, target and ms; or WonderNetwork's pings from one city, `name`, or, in a
    folder, from many. `scale` turns its numbers into ms."""
    if isinstance(file, str):
        matrix = _folder_of_pings(file)
    elif _is_npy(file):
        matrix = np.load(_whole(file), allow_pickle=False).astype(np.float64)
    else:
        matrix = _table(io.TextIOWrapper(file, "utf-8").read(), name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{' x '.join(map(str, matrix.shape))} numbers found, a square matrix expected")
    matrix = matrix * scale
    np.fill_diagonal(matrix, 0)
    if (matrix < 0).any():
        row, column = (int(place) for place in np.argwhere(matrix < 0)[0])
        raise ValueError(f"{matrix[row, column]:g} ms from {row} to {column} found, no negative delay expected")
    matrix = _symmetric(matrix, is_mended=is_mended, tell=tell)
    return checked(Delays("matrix", np.arange(len(matrix)), np.zeros(len(matrix)), matrix=matrix.astype(np.float32)))


def read_graph(
    file: BinaryIO, *, scale: float = 1.0, tell: Tell = lambda _: None
) -> tuple[Delays, tuple[np.ndarray, np.ndarray]]:
    """Delays along the edges of an undirected graph, and the edges: int32 (E, 2) and float32 (E,) ms.

    Lines `u v ms`, GML or GraphML. Edges of GML and GraphML carry `delay`, `latency`, `weight`, `distance` …, or their nodes
    Latitude and Longitude; where neither is there, each edge counts one unit, and that is told. Nodes are numbered in the
    order of their names, numbers by value. Raises ValueError where the graph is not connected or an edge is negative.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, dijkstra

    is_marked = bytes(file.peek(512)).lstrip().startswith((b"<", b"graph", b"Creator", b"#", b"Version"))  # type: ignore[attr-defined]
    nodes, ends, weights = _networkx(file, scale, tell) if is_marked else _lines(file, scale)
    if not len(ends):
        raise ValueError("no edges in it")
    if (weights < 0).any() or not np.isfinite(weights).all():
        edge = int(np.argmax((weights < 0) | ~np.isfinite(weights)))
        raise ValueError(f"edge {edge + 1}: {weights[edge]:g} ms found, no negative delay expected")
    n_nodes = len(nodes)
    # scipy drops zeros from sparse graphs; a femtosecond is as good
    least = np.maximum(weights, 1e-12)
    low, high = ends.min(axis=1), ends.max(axis=1)
    order = np.lexsort((least, high, low))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
    kept = order[first]  # of parallel edges the shortest
    graph = coo_array((least[kept], (low[kept], high[kept])), shape=(n_nodes, n_nodes)).tocsr()
    n_parts, part = connected_components(graph, directed=False)
    if n_parts > 1:
        other = nodes[int(np.argmax(part != part[0]))]
        raise ValueError(
            f"{n_parts} parts that no edge connects found ({nodes[0]} and {other}, say), a connected graph expected"
        )
    edges = (np.stack([low[kept], high[kept]], axis=1).astype(np.int32), weights[kept].astype(np.float32))
    own, none = np.arange(n_nodes), np.zeros(n_nodes)
    if n_nodes > _ALL_PATHS:
        return checked(Delays("graph", own, none, graph=graph)), edges
    matrix = dijkstra(graph, directed=False).astype(np.float32)
    return checked(Delays("matrix", own, none, matrix=np.minimum(matrix, matrix.T))), edges


def read_places(file: BinaryIO, *, scale: float = 1.0) -> Delays:
    """Delays by distance: CSV with latitude and longitude in degrees, or an .npy (n, d) of positions, `scale` ms a unit."""
    if _is_npy(file):
        points = np.load(_whole(file), allow_pickle=False)
        if points.ndim != 2 or points.dtype.kind not in "fiu" or not len(points) or not 1 <= points.shape[1] <= 64:
            raise ValueError(f"{points.dtype} {points.shape} found, numbers (devices, 1 to 64 axes) expected")
        points = points.astype(np.float64) * scale
        return checked(Delays("euclidean", np.arange(len(points)), np.zeros(len(points)), points=points))
    rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8-sig")))
    names = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    latitude, longitude = (next((names[name] for name in some if name in names), None) for some in (_LATITUDE, _LONGITUDE))
    if latitude is None or longitude is None:
        raise ValueError(f"columns {', '.join(names) or 'none'} found, latitude and longitude expected")
    degrees = np.empty((len(rows), 2))
    for number, line in enumerate(rows):
        try:
            degrees[number] = float(line[latitude]), float(line[longitude])
        except (TypeError, ValueError):
            raise ValueError(f"row {number + 1}: {line[latitude]!r}, {line[longitude]!r} found, degrees expected") from None
    if not ((np.abs(degrees) <= (90, 180)).all()):
        row = int(np.argmax(~(np.abs(degrees) <= (90, 180)).all(axis=1)))
        raise ValueError(f"row {row + 1}: {degrees[row, 0]:g}, {degrees[row, 1]:g} found, degrees up to 90 and 180 expected")
    return checked(Delays("sphere", np.arange(len(rows)), np.zeros(len(rows)), points=on_sphere(degrees)))


def on_sphere(degrees: np.ndarray) -> np.ndarray:
    """float64 (n, 3), ms from the centre of the earth, of latitudes and longitudes (n, 2)."""
    latitude, longitude = np.radians(degrees).T
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1) * (EARTH_KM / KM_PER_MS)


def spread(delays: Delays, n_devices: int, last_mile: tuple[float, float] | None, seed: int) -> Delays:
    """So many devices at these sites. Up to one a site: a random choice of sites, in their order. More, or with a last mile:
    sites in random turn, and each device a last mile drawn from N(mean, deviation) ms, at least 0: extrapolated, not measured.
    """
    chance = rng_for(seed, "devices", "sites", n_devices)
    n_sites = delays.n_sites
    if n_devices <= n_sites:
        site = np.sort(chance.permutation(n_sites)[:n_devices])
    else:
        turns = [chance.permutation(n_sites) for _ in range(-(-n_devices // n_sites))]
        site = np.concatenate(turns)[:n_devices]
    last = np.zeros(n_devices)
    if last_mile is not None:
        last = np.maximum(0, chance.normal(*last_mile, n_devices))
    return checked(replace(delays, site=site, last=last.astype(np.float32).astype(np.float64)))


def _is_npy(file: BinaryIO) -> bool:
    return bytes(file.peek(6)[:6]) == b"\x93NUMPY"  # type: ignore[attr-defined]


def _whole(file: BinaryIO) -> BinaryIO:
    return file if file.seekable() else io.BytesIO(file.read())


def _folder_of_pings(top: str) -> np.ndarray:
    """Between the cities that have a file of their own, wherever in the folder."""
    paths = sorted(Path(top).rglob("*Ping.csv"))
    if not paths:
        raise ValueError("no file *Ping.csv in it, pings of one city each expected")
    pings: list[tuple[str, str, float]] = []
    cities = sorted({_city_of(str(path)) for path in paths}, key=len, reverse=True)
    for path in paths:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
        title = [word.strip().lower() for word in rows[0]] if rows else []
        if not {"city", "average"} <= set(title):
            raise ValueError(f"{path.name}: columns {', '.join(title[:4]) or 'none'} found, City and Average expected")
        for target, ms in _from_one_city(rows[1:], title, path.name):
            # "Paris France, Eurasia": the longest name that it begins with
            known = next((city for city in cities if target == city or target.startswith(f"{city} ")), None)
            if known is not None:
                pings.append((_city_of(str(path)), known, ms))
    return _square(pings, sorted(cities))


def _city_of(path: str) -> str:
    return Path(path).name.removesuffix(".csv").removesuffix("Ping").removeprefix("raw_").replace("+", " ").replace("_", " ")


def _from_one_city(rows: list[list[str]], title: list[str], where: str) -> list[tuple[str, float]]:
    """Target and average of each row, `154.72ms`."""
    target, average, found = title.index("city"), title.index("average"), []
    for number, row in enumerate(rows, start=2):
        if not any(word.strip() for word in row):
            continue
        if len(row) <= max(target, average) or not _is_number(row[average].strip().removesuffix("ms")):
            raise ValueError(f"{f'{where}: ' if where else ''}row {number}: a city and its average in ms expected")
        found.append((row[target].strip(), float(row[average].strip().removesuffix("ms"))))
    return found


def _table(text: str, name: str) -> np.ndarray:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("nothing in it, a matrix expected")
    is_csv = "," in lines[0]
    rows = list(csv.reader(lines)) if is_csv else [line.split() for line in lines]
    title = [word.strip().lower() for word in rows[0]]
    if {"source", "target", "ms"} <= set(title):
        return _pings(rows[1:], [title.index(name) for name in ("source", "target", "ms")])
    if {"city", "average"} <= set(title):
        here = _city_of(name)
        there = [(target, ms) for target, ms in _from_one_city(rows[1:], title, "") if not f"{target} ".startswith(f"{here} ")]
        return _square([(here, target, ms) for target, ms in there])
    is_named = any(word and not _is_number(word) for word in title)
    if is_named:
        rows = [row[1:] for row in rows[1:]]
    width = len(rows[0]) if rows else 0
    for number, row in enumerate(rows, start=1 + is_named):
        if len(row) != width:
            raise ValueError(f"row {number}: {len(row)} numbers found, {width} expected")
    try:
        return np.array([[float(word) if word.strip() else np.nan for word in row] for row in rows])
    except ValueError as fault:
        raise ValueError(f"{str(fault).split(': ')[-1]} found, numbers expected") from None


def _pings(rows: list[list[str]], places: list[int]) -> np.ndarray:
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            source, target, ms = (row[place].strip() for place in places)
            found.append((source, target, float(ms)))
        except (IndexError, ValueError):
            raise ValueError(f"row {number}: source, target and a number of ms expected") from None
    return _square(found)


def _square(pings: list[tuple[str, str, float]], names: list[str] | None = None) -> np.ndarray:
    """The matrix of pings, NaN where there is none either way; sites in the order given, or as they come."""
    order = names or [name for source, target, _ in pings for name in (source, target)]
    place = {name: number for number, name in enumerate(dict.fromkeys(order))}
    matrix = np.full((len(place), len(place)), np.nan)
    for source, target, ms in pings:
        matrix[place[source], place[target]] = ms
    one_way = np.isnan(matrix) & ~np.isnan(matrix.T)  # a ping each way is more than most have
    matrix[one_way] = matrix.T[one_way]
    return matrix


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _symmetric(matrix: np.ndarray, *, is_mended: bool, tell: Tell) -> np.ndarray:
    is_missing = ~np.isfinite(matrix)
    larger = np.fmax(matrix, matrix.T)
    with np.errstate(invalid="ignore"):  # the infinite are missing
        is_odd = np.abs(matrix - matrix.T) > _ASYMMETRIC * larger + 1e-6
    for is_bad, what in ((is_missing, "missing"), (is_odd, "asymmetric")):
        if is_bad.any() and not is_mended:
            row, column = (int(place) for place in np.argwhere(is_bad)[0])
            there, back = matrix[row, column], matrix[column, row]
            raise ValueError(
                f"{int(is_bad.sum())} delays {what} (site {row} to site {column}: {there:g} ms, back {back:g} ms), "
                "symmetric ones expected. --symmetrize takes the mean of both directions, and the shortest detour for what is "
                "missing"
            )
    if not is_mended:
        return np.asarray((matrix + matrix.T) / 2)
    whole = np.where(is_missing, matrix.T, (np.where(is_missing.T, matrix, matrix.T) + matrix) / 2)
    gaps = np.argwhere(~np.isfinite(whole))
    if len(gaps):
        open_ = np.where(np.isfinite(whole), whole, np.inf)
        detours = [float((open_[row] + open_[column]).min()) for row, column in gaps]
        if not np.isfinite(detours).all():
            row, column = (int(place) for place in gaps[int(np.argmin(np.isfinite(detours)))])
            raise ValueError(f"no delay and no detour between {row} and {column}")
        whole[gaps[:, 0], gaps[:, 1]] = detours
    tell(f"{int(is_odd.sum()) // 2} pairs averaged, {len(gaps) // 2} filled by the shortest detour")
    return whole


def _lines(file: BinaryIO, scale: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    ends: list[tuple[str, str]] = []
    weights: list[float] = []
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8"), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or not _is_number(words[2]):
            raise ValueError(f"line {number}: {' '.join(words)[:40]!r} found, `node node ms` expected")
        ends.append((words[0], words[1]))
        weights.append(float(words[2]) * scale)
    return _numbered(sorted({node for edge in ends for node in edge}, key=_by_value), ends, weights)


def _networkx(file: BinaryIO, scale: float, tell: Tell) -> tuple[list[str], np.ndarray, np.ndarray]:
    import networkx as nx

    text, n_bare = file.read(), 0
    try:
        if text.lstrip().startswith(b"<"):
            graph = nx.parse_graphml(text.decode())
        else:
            graph = nx.parse_gml(text.decode().splitlines(), label="id")
    except (nx.NetworkXError, ValueError, KeyError, SyntaxError) as fault:
        raise ValueError(f"{fault}; GML or GraphML expected") from None
    is_placed = all({"Latitude", "Longitude"} <= set(node) for _, node in graph.nodes(data=True))
    weights: list[float] = []
    for u, v, fields in graph.edges(data=True):
        name = next((name for name in _WEIGHTS if name in fields), None)
        apart = _apart(graph.nodes[u], graph.nodes[v]) if is_placed and not name else scale
        weights.append(float(fields[name]) * scale if name else apart)
        n_bare += not (name or is_placed)
    if n_bare:
        tell(f"{n_bare} edges carry no delay and their nodes no place: {scale:g} ms each")
    nodes = sorted((str(node) for node in graph.nodes), key=_by_value)
    return _numbered(nodes, [(str(u), str(v)) for u, v in graph.edges()], weights)


def _apart(u: Any, v: Any) -> float:
    a, b = on_sphere(np.array([[float(node["Latitude"]), float(node["Longitude"])] for node in (u, v)]))
    diameter = 2 * EARTH_KM / KM_PER_MS
    return float(diameter * np.arcsin(min(1.0, float(np.sqrt(np.square(a - b).sum())) / diameter)))


def _numbered(nodes: list[str], ends: list[tuple[str, str]], weights: list[float]) -> tuple[list[str], np.ndarray, np.ndarray]:
    place = {node: number for number, node in enumerate(nodes)}
    pairs = np.array([(place[u], place[v]) for u, v in ends], np.int64).reshape(-1, 2)
    is_loop = pairs[:, 0] == pairs[:, 1]
    return nodes, pairs[~is_loop], np.array(weights, np.float64)[~is_loop]


def _by_value(node: str) -> tuple[int, float, str]:
    return (0, float(node), node) if _is_number(node) else (1, 0.0, node)
