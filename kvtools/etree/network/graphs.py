"""Delays from graphs: a list of edges, GML or GraphML; checked, and converted to ms.

Delays are symmetric here: an edge whose two directions differ, or a directed edge without one back, is refused unless
`is_repaired`, and is then averaged, or counts both ways. Of a graph with up to 4,096 nodes all shortest paths are computed
once, of a larger one only those that are needed. Latitudes and longitudes become positions on a sphere, at 200 km/ms, the
speed of light in glass: no cable is straight, so real delays are longer.

Legend: E edges. Functions that read raise ValueError for contents that make no network, and Corrupt for text that cannot be
read. `log` takes a message about what was assumed or repaired.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact.delimited import is_number, read_rows
from kvtools.etree.network.delay import Delays, checked, graph_of

KM_PER_MS = 200.0  # the speed of light in vacuum over the index of refraction of fibre, about 1.5
EARTH_KM = 6371.0
ASYMMETRIC = 0.01  # of the larger of two directions
_ALL_PATHS = 4096  # nodes
_WEIGHTS = ("delay", "latency", "ms", "weight", "dist", "distance", "LinkLength")
_COMMENTS = re.compile(rb"(?m)^[ \t]*#.*$\n?")  # GML and lists of edges both have them

Log = Callable[[str], None]
Edges = tuple[np.ndarray, np.ndarray]  # int32 (E, 2) sites, float32 (E,) ms


class AsymmetricDelays(ValueError):
    """Delays that are missing, or differ between the two directions."""


def read_graph(
    file: BinaryIO, name: str, *, scale: float = 1.0, is_repaired: bool = False, log: Log = lambda _: None
) -> tuple[Delays, Edges]:
    """Delays along the edges of an undirected graph, and its edges. Lines `node node ms`, GML or GraphML; scale: ms a unit.

    Edges of GML and GraphML carry `delay`, `latency`, `weight`, `distance` …, or their nodes Latitude and Longitude; where
    neither is there, each edge has one unit, which is logged. Nodes are numbered in the order of their names, numbers by value.
    Of parallel edges the shortest counts, and loops do not, which is logged. Raises ValueError where the graph is not connected
    or an edge is negative; AsymmetricDelays, unless is_repaired, where the two directions between nodes differ, or a directed
    graph has only one of them.
    """
    from scipy.sparse.csgraph import dijkstra

    head = _COMMENTS.sub(b"", bytes(file.peek(4096)[:4096]))  # type: ignore[attr-defined]
    is_marked_up = head.lstrip().startswith((b"<", b"graph", b"Creator", b"Version"))
    read = _networkx(file, scale, log) if is_marked_up else _edge_lines(file, name, scale)
    nodes, ends, weights = read.nodes, read.ends, read.weights
    is_bad = (weights < 0) | ~np.isfinite(weights)
    if is_bad.any():
        edge = int(np.argmax(is_bad))
        raise ValueError(f"edge {edge + 1} has a delay of {weights[edge]:g} ms, which is negative or not finite")
    is_loop = ends[:, 0] == ends[:, 1]
    if weights[is_loop].any():
        log(f"{np.count_nonzero(weights[is_loop])} edges lead from a node to itself, and are left out")
    if is_loop.all():
        raise ValueError("it holds no edges")
    read = replace(read, ends=ends[~is_loop], weights=weights[~is_loop])
    pairs, weights = _merged(read, is_repaired=is_repaired, log=log)
    graph = graph_of(pairs, weights, len(nodes))
    _require_connected(graph, nodes)
    edges = (pairs.astype(np.int32), weights.astype(np.float32))
    site, none = np.arange(len(nodes)), np.zeros(len(nodes))
    if len(nodes) > _ALL_PATHS:
        return checked(Delays("graph", site, none, graph=graph)), edges
    matrix = dijkstra(graph, directed=False).astype(np.float32)
    return checked(Delays("matrix", site, none, matrix=np.minimum(matrix, matrix.T))), edges


@dataclass(frozen=True)
class _Read:
    """A graph as its file has it."""

    nodes: list[str]  # their names
    ends: np.ndarray  # int64 (E, 2), indices into `nodes`
    weights: np.ndarray  # float64 (E,), ms
    is_directed: bool = False  # whether its delays are of one direction each


def _merged(read: _Read, *, is_repaired: bool, log: Log) -> tuple[np.ndarray, np.ndarray]:
    """One edge between two nodes: the lower first, int64 (E, 2), and its weight, float64 (E,): the shortest of each direction,
    and the mean of both."""
    nodes, shortest = read.nodes, dict[tuple[int, int], float]()
    for (u, v), weight in zip(read.ends.tolist(), read.weights.tolist(), strict=True):
        shortest[u, v] = min(weight, shortest.get((u, v), weight))
    if len(shortest) < len(read.ends):
        log(f"{len(read.ends) - len(shortest)} edges are parallel to others; the shortest counts")
    one_way = [(u, v) for u, v in shortest if (v, u) not in shortest] if read.is_directed else []
    if one_way and not is_repaired:
        u, v = one_way[0]
        raise AsymmetricDelays(
            f"{len(one_way)} directed edges have none back, so that delays are missing, the first from {nodes[v]} to {nodes[u]}"
        )
    merged: dict[tuple[int, int], float] = {}
    n_averaged = 0
    for (u, v), weight in shortest.items():
        back = shortest.get((v, u), weight)
        if abs(weight - back) > ASYMMETRIC * max(weight, back) + 1e-6:
            if not is_repaired:
                raise AsymmetricDelays(f"the edge from {nodes[u]} to {nodes[v]} has {weight:g} ms, and back {back:g} ms")
            n_averaged += u < v
        merged[min(u, v), max(u, v)] = (weight + back) / 2
    if n_averaged:
        log(f"{n_averaged} pairs averaged")
    if one_way:
        log(f"{len(one_way)} edges have none back, and count both ways")
    order = sorted(merged)
    return np.array(order, np.int64), np.array([merged[pair] for pair in order])


def on_sphere(degrees: np.ndarray) -> np.ndarray:
    """Positions of latitudes and longitudes (n, 2) in degrees, float64 (n, 3), ms from the centre of the earth."""
    latitude, longitude = np.radians(degrees).T
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1) * (EARTH_KM / KM_PER_MS)


def _require_connected(graph: Any, nodes: list[str]) -> None:
    from scipy.sparse.csgraph import connected_components

    n_parts, part = connected_components(graph, directed=False)
    if n_parts > 1:
        other = nodes[int(np.argmax(part != part[0]))]
        raise ValueError(f"the graph has {n_parts} parts that no edge connects; {nodes[0]} and {other} are in two of them")


def _edge_lines(file: BinaryIO, name: str, scale: float) -> _Read:
    """The graph of lines `node node ms`, which is undirected; between them are blanks, tabs, commas, bars or semicolons."""
    rows = read_rows(file, name, delimiters=";,|", has_header=False, comment="#", is_ragged=True)
    for line, fields in rows:
        if len(fields) != 3 or not is_number(fields[2]):
            raise ValueError(f"line {line} is {' '.join(fields)[:40]!r}, and `node node ms` is needed")
    ends = [(fields[0].strip(), fields[1].strip()) for fields in rows.fields]
    nodes = sorted({node for edge in ends for node in edge}, key=_by_value)
    return _numbered(nodes, ends, [float(fields[2]) * scale for fields in rows.fields])


def _networkx(file: BinaryIO, scale: float, log: Log) -> _Read:
    """The graph of GML or GraphML."""
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
    placed = {node for node, fields in graph.nodes(data=True) if {"Latitude", "Longitude"} <= set(fields)}
    weights: list[float] = []
    n_delays = 0
    for u, v, fields in graph.edges(data=True):
        name = next((name for name in _WEIGHTS if name in fields), None)
        if name is not None:
            weights.append(_number(fields[name], f"{name} of the edge from {u} to {v}") * scale)
            n_delays += 1
        elif {u, v} <= placed:
            weights.append(_distance_ms(graph.nodes[u], graph.nodes[v]))
        elif placed:
            lost = u if u not in placed else v
            raise ValueError(f"node {lost} has no Latitude and Longitude, and the edge from {u} to {v} has no delay")
        else:
            weights.append(scale)
            n_bare += 1
    if n_bare:
        log(f"{n_bare} edges have no delay and their nodes no position: {scale:g} ms each")
    nodes = sorted((str(node) for node in graph.nodes), key=_by_value)
    read = _numbered(nodes, [(str(u), str(v)) for u, v in graph.edges()], weights)
    # editors write `directed` for links, too: it counts where a file has delays, and not only links or positions
    return replace(read, is_directed=graph.is_directed() and n_delays > 0)


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


def _numbered(nodes: list[str], ends: list[tuple[str, str]], weights: list[float]) -> _Read:
    """The edges with nodes as indices into `nodes`."""
    index = {node: number for number, node in enumerate(nodes)}
    pairs = np.array([(index[u], index[v]) for u, v in ends], np.int64).reshape(-1, 2)
    return _Read(nodes, pairs, np.array(weights, np.float64))


def _by_value(node: str) -> tuple[int, float, str]:
    return (0, float(node), node) if is_number(node) else (1, 0.0, node)
