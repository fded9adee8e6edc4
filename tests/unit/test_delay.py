"""Delays against slow, obvious ones: the same for matrices, positions and graphs, with last miles and without."""

import io

import numpy as np
import pytest
from scipy.sparse import coo_array

from kvtools.errors import Corrupt
from kvtools.etree.network import graphs
from kvtools.etree.network import readers as network
from kvtools.etree.network.delay import Delays

N_SITES, N = 40, 90


def delays_of(metric, seed=0, *, is_spread=True):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(N_SITES, 3)) * 50
    site = rng.integers(0, N_SITES, N) if is_spread else np.arange(N_SITES)
    last = rng.uniform(0, 30, N) if is_spread else np.zeros(N_SITES)
    if metric == "sphere":
        points *= 31.855 / np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    apart = np.sqrt(np.square(points[:, None] - points).sum(axis=2))
    if metric == "matrix":
        return Delays("matrix", site, last, matrix=apart.astype(np.float32)), apart.astype(np.float32)
    if metric == "graph":
        u, v = np.triu_indices(N_SITES, 1)
        is_edge = rng.random(len(u)) < 0.3
        graph = coo_array((apart[u, v][is_edge], (u[is_edge], v[is_edge])), shape=(N_SITES, N_SITES)).tocsr()
        full = np.where((graph + graph.T).toarray() > 0, (graph + graph.T).toarray(), np.inf)
        np.fill_diagonal(full, 0)
        for k in range(N_SITES):  # Floyd and Warshall
            full = np.minimum(full, full[:, k : k + 1] + full[k])
        return Delays("graph", site, last, graph=graph), full
    if metric == "sphere":
        apart = 2 * 31.855 * np.arcsin(np.minimum(1, apart / (2 * 31.855)))
    return Delays(metric, site, last, points=points), apart


METRICS = ["matrix", "euclidean", "sphere", "graph"]


def slow(delays, sites):
    full = sites[np.ix_(delays.site, delays.site)].astype(float) + delays.last_mile[:, None] + delays.last_mile
    np.fill_diagonal(full, 0)
    return full


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("is_spread", [False, True])
def test_rows_nearest_medoid_and_server_are_those_of_the_full_matrix(metric, is_spread):
    delays, sites = delays_of(metric, is_spread=is_spread)
    full = slow(delays, sites)
    everyone = np.arange(len(delays))
    assert np.allclose(delays.between(everyone, everyone), full, atol=1e-5)
    a = np.random.default_rng(1).permutation(len(delays))
    assert np.allclose(delays.elementwise(a, everyone), full[a, everyone], atol=1e-5)
    centres = np.array([3, 17, 5, 30, 22, 11, 8, 39, 33, 2, 19, 27])
    expected = full[:, centres].argmin(axis=1)
    nearest = delays.nearest(centres)
    assert np.allclose(full[everyone, centres[nearest]], full[everyone, centres[expected]], atol=1e-5)
    assert nearest[centres].tolist() == list(range(len(centres)))
    members = everyone[::3]
    totals = full[np.ix_(members, members)].sum(axis=1)
    assert np.array_equal(delays.succession(members), members[np.lexsort((members, totals.round(4)))])
    assert full.max(axis=1)[delays.server()] == pytest.approx(full.max(axis=1).min(), abs=35 if is_spread else 1e-4)


def test_large_groups_of_positions_have_a_nearly_best_medoid():
    rng = np.random.default_rng(2)
    delays = Delays("euclidean", np.arange(5000), np.zeros(5000), points=rng.normal(size=(5000, 2)))
    line = delays.succession(np.arange(5000))
    full = np.sqrt(np.square(delays.points[:, None] - delays.points).sum(axis=2)).sum(axis=1)
    assert full[line[0]] <= full.min() * 1.001
    assert np.array_equal(np.sort(line), np.arange(5000))


def buffered(text):
    return io.BufferedReader(io.BytesIO(text.encode()))


def test_parallel_edges_count_once_and_loops_not_at_all():
    delays, (ends, ms) = graphs.read_graph(buffered("a b 5\na b 3\na a 1\nb c 2\nc b 2\n"), "edges.txt")
    assert delays.matrix.tolist() == [[0, 3, 5], [3, 0, 2], [5, 2, 0]]
    assert (ends.tolist(), ms.tolist()) == ([[0, 1], [1, 2]], [3, 2])


def test_names_in_a_csv_matrix_are_left_aside():
    delays = network.read_matrix(buffered("city,Rome,Oslo\nRome,0,40\nOslo,40,0\n"), "m.csv", scale=0.5)
    assert delays.matrix.tolist() == [[0, 20], [20, 0]]


def test_coordinates_are_as_far_apart_as_light_needs():
    delays = network.read_coordinates(buffered("lat,lon\n0,0\n0,180\n90,0\n"), "p.csv")
    around = np.pi * graphs.EARTH_KM / graphs.KM_PER_MS
    assert delays.between(np.array([0]), np.arange(3))[0] == pytest.approx([0, around, around / 2])


NAMED = "{corner},Oslo,Rome,Bonn\nRome,40,0,20\nOslo,0,40,30\nBonn,30,20,0\n"


@pytest.mark.parametrize("corner", ["", '""', "city", '"a name, quoted"', "\ufeff", "\ufeffcity"])
def test_rows_and_columns_of_a_matrix_are_matched_by_name(corner):
    delays = network.read_matrix(buffered(NAMED.format(corner=corner)), "m.csv")
    np.testing.assert_array_equal(delays.matrix, [[0, 40, 20], [40, 0, 30], [20, 30, 0]])


@pytest.mark.parametrize(
    "text",
    [
        ",0,1\n0,0.0,7.5\n1,7.5,0.0\n",
        ",7,3\n7,0,7.5\n3,7.5,0\n",
        "# two sites\n0 7.5\n7.5 0\n",
        "a,b\n0,7.5\n7.5,0\n",
        ",7.5\n7.5,\n",
    ],
)
def test_matrices_as_pandas_and_people_write_them(text):
    delays = network.read_matrix(buffered(text), "m.csv", is_repaired=True)
    np.testing.assert_array_equal(delays.matrix, [[0, 7.5], [7.5, 0]])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (NAMED.format(corner="").replace("Bonn,30", "Ulm,30"), "'Bonn' is the name of a column only"),
        (NAMED.format(corner="").replace("Rome,Bonn", "Rome,Rome"), "2 columns have the name 'Rome'"),
    ],
)
def test_a_matrix_whose_names_do_not_match_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        network.read_matrix(buffered(text), "m.csv")


@pytest.mark.parametrize(
    "text",
    [
        "ms;target;source\n5;Rome;New York\n5;New York;Rome\n",
        "source\ttarget\tms\nNew York\tRome\t5\nRome\tNew York\t5\n",
        ";New York;Rome\nNew York;0;5\nRome;5;0\n",
        "\tNew York\tSan Juan\nNew York\t0\t5\nSan Juan\t5\t0\n",
        "0|5\n5|0\n",
        "0\t 5\n5\t0 \t\n",
    ],
)
def test_semicolons_and_tabs_separate_names_with_blanks(text):
    assert network.read_matrix(buffered(text), "m.csv").matrix.tolist() == [[0, 5], [5, 0]]


@pytest.mark.parametrize("text", ["a;b;5\nb;c;4\n", "a,b,5\nb, c,4\n", "a\tb 5\nb c\t4\n"])
def test_edges_too_may_have_any_separator(text):
    assert graphs.read_graph(buffered(text), "edges.txt")[0].matrix.tolist() == [[0, 5, 9], [5, 0, 4], [9, 4, 0]]


def test_a_delay_in_a_message_has_the_names_of_its_sites_and_the_place_of_its_cell():
    def refusal(text, **options):
        with pytest.raises((ValueError, Corrupt)) as caught:
            network.read_matrix(buffered(text), "m.csv", **options)
        return str(caught.value)

    apart = "source;target;ms\nOslo;Rome;3\nBonn;Kyiv;3\n"
    assert refusal(",Oslo,Rome\nRome,4,0\nOslo,0,7\n").startswith(
        "2 delays are asymmetric: from 'Rome' to 'Oslo' (line 2, column 2) it is 4 ms, and back 7 ms"
    )
    assert refusal("Oslo,Rome\n0,\n7,0\n").endswith("from 'Oslo' to 'Rome' (line 2, column 2)")
    assert refusal("Oslo,Rome\n0,-3\n7,0\n").startswith("the delay from 'Oslo' to 'Rome' (line 2, column 2) is -3 ms")
    assert refusal(apart).endswith("the first from 'Oslo' to 'Bonn'")
    assert refusal(apart, is_repaired=True).endswith("no detour between 'Oslo' and 'Bonn'")
    assert "m.csv: line 1 is 'source:target:ms', in which nothing separates fields" in refusal(apart.replace(";", ":"))
    for text in ("0;1,5\n1,5;0\n", "a;b\n0;1,5\n1,5;0\n"):
        assert "column" in refusal(text)
        assert refusal(text).endswith("'1,5' is not a number. Write its decimals after a point.")


def test_repeated_pings_are_averaged_and_told():
    told = []
    text = "source,target,ms\nx,y,10\nx,y,14\ny,x,12\n"
    delays = network.read_matrix(buffered(text), "p.csv", log=told.append)
    assert delays.matrix[0, 1] == 12
    assert told == ["1 pairs of sites have several pings in one direction, which are averaged"]


DIRECTED = (
    "graph [ directed 1 node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 delay 5 ] edge [ source 1 target 0 delay 9 ] ]"
)


@pytest.mark.parametrize("text", ["p q 5\nq p 9\n", DIRECTED, "# p q r\np q 5\np q 6\nq p 9\n"])
def test_edges_with_two_directions_are_refused_or_averaged(text):
    with pytest.raises(graphs.AsymmetricDelays, match="has 5 ms, and back 9 ms"):
        graphs.read_graph(buffered(text), "e.txt")
    delays, _ = graphs.read_graph(buffered(text), "e.txt", is_repaired=True)
    assert delays.matrix[0, 1] == 7


ONE_WAY = "graph [ directed {} node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 {} ] ]"


def test_directed_edges_without_one_back_are_refused_or_count_both_ways():
    text = ONE_WAY.format(1, "delay 5")
    with pytest.raises(graphs.AsymmetricDelays, match="1 directed edges have none back.* the first from 1 to 0"):
        graphs.read_graph(buffered(text), "g.gml")
    told = []
    delays, _ = graphs.read_graph(buffered(text), "g.gml", is_repaired=True, log=told.append)
    assert (delays.matrix[1, 0], told) == (5, ["1 edges have none back, and count both ways"])
    for link in (ONE_WAY.format(0, "delay 1"), ONE_WAY.format(1, "")):  # undirected, or a link and no delay
        assert graphs.read_graph(buffered(link), "g.gml")[0].matrix[1, 0] == 1


def test_pings_one_way_are_taken_for_the_way_back_where_asked():
    told = []
    text = "source,target,ms\nx,y,10\n"
    delays = network.read_matrix(buffered(text), "p.csv", is_repaired=True, log=told.append)
    assert (delays.matrix[1, 0], told) == (
        10,
        ["0 pairs averaged, 0 filled by the shortest detour, 1 by the delay of the way back"],
    )


def test_delays_of_a_site_to_itself_are_told():
    told = []
    for text in ("0 5\n5 7\n", "source,target,ms\na,b,5\nb,a,5\nb,b,7\n"):
        assert network.read_matrix(buffered(text), "m", log=told.append).matrix.tolist() == [[0, 5], [5, 0]]
    graphs.read_graph(buffered("a b 5\nb b 7\n"), "e.txt", log=told.append)
    own = "1 delays of a site to itself are left out, such as 7 ms"
    assert told == [own, own, "1 edges lead from a node to itself, and are left out"]


def test_a_node_without_a_position_does_not_make_all_edges_alike():
    placed = "node [ id {} Latitude {} Longitude 3 ]"
    nodes = f"{placed.format(0, 50.5)}\n{placed.format(1, 51.5)}\nnode [ id 2 ]"
    text = f"graph [ {nodes} edge [ source 0 target 1 ] edge [ source 2 target 1 ] ]"
    with pytest.raises(ValueError, match="node 2 has no Latitude and Longitude, and the edge from 1 to 2 has no delay"):
        graphs.read_graph(buffered(text), "g.gml")
    text = text.replace("target 1 ] ]", "target 1 delay 3 ] ]")
    delays, (ends, ms) = graphs.read_graph(buffered(text), "g.gml")
    assert ms[ends.tolist().index([1, 2])] == 3
    assert 0.5 < ms[ends.tolist().index([0, 1])] < 0.6
