"""Data over the devices of a network, as a user types it; what makes no sense is refused in one line."""

import gzip
import json

import numpy as np
import pytest

from kvtools.artifact import open_artifact

EDGES = "1 2 10\n2 3 20\n3 4 5\n4 1 50\n2 5 7\n5 6 1\n"


@pytest.fixture
def top(tmp_path):
    write_data(tmp_path)
    (tmp_path / "edges.txt").write_text(EDGES)
    return tmp_path


def write_data(top, n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    x = rng.normal(size=(n, 3)) + y[:, None]
    rows = "".join(f"{a:.4f},{b:.4f},{c:.4f},{label}\n" for (a, b, c), label in zip(x, y, strict=True))
    (top / "digits.csv").write_text(f"a,b,c,label\n{rows}")


def bag_of(path):
    return open_artifact(str(path))


def test_data_are_spread_over_the_nodes_of_a_graph(sh, top):
    done = sh("kvtools devices --data digits.csv --partition shards:2 --graph edges.txt | tee f.devices | kvtools check -")
    assert (done.code, done.out, done.err) == (0, b"", "")
    bag = bag_of(top / "f.devices")
    assert bag.tensors["labels"].shape == (6, 4)
    assert sorted(bag.tensors["index"].tolist()) == list(range(96))
    assert bag.tensors["delay"][0].tolist() == [0, 10, 30, 35, 17, 18]
    assert bag.fields["network"] == {"metric": "matrix", "sites": 6, "extrapolated": False}


@pytest.mark.parametrize("form", ["iid", "shards:1", "classes:2", "dirichlet:0.1", "mixture:0.1", "quantity:1.5"])
def test_the_same_seed_gives_the_same_bytes_and_another_others(sh, top, form):
    make = f"kvtools devices --data digits.csv --partition {form} --devices 10"
    assert sh(f"{make} -o a.devices && {make} -o b.devices && cmp a.devices b.devices").code == 0
    assert sh(f"{make} --seed 1 -o c.devices").code == 0
    digests = [bag_of(top / f"{name}.devices").fields["partition"]["digest"] for name in "ac"]
    assert digests[0] != digests[1]


def test_more_devices_than_sites_are_extrapolated_and_say_so(sh, top):
    done = sh("kvtools devices --graph edges.txt --devices 50 -o f.devices")
    assert (done.code, done.err) == (0, "kvtools devices: 50 devices share 6 sites; last miles of 5 ± 2 ms are random.\n")
    bag = bag_of(top / "f.devices")
    assert bag.fields["network"]["extrapolated"] is True
    assert np.bincount(bag.tensors["site"], minlength=6).min() == 8


def test_round_trips_and_seconds_become_ms_one_way(sh, top):
    (top / "m.txt").write_text("0 0.2\n0.2 0\n")
    assert sh("kvtools devices --delay m.txt --unit s --rtt -o f.devices").code == 0
    assert bag_of(top / "f.devices").tensors["delay"].tolist() == [[0, 100], [100, 0]]


def test_pings_gml_and_coordinates_are_networks_too(sh, top):
    (top / "pings.csv").write_text("source,target,ms\na,b,4\nb,a,4\nb,c,6\nc,b,6\na,c,8\nc,a,8\n")
    (top / "n.gml").write_text(
        'graph [ node [ id 0 label "x" ] node [ id 1 label "y" ] edge [ source 0 target 1 latency 3.5 ] ]'
    )
    (top / "p.csv").write_text("name,Latitude,Longitude\nMelbourne,-37.81,144.96\nSydney,-33.87,151.21\n")
    for option in ("--delay pings.csv", "--graph n.gml", "--coordinates p.csv"):
        done = sh(f"kvtools devices {option} -o f.devices --force")
        assert (done.code, done.err) == (0, "")


PINGS = "City,Distance,hidden,Average,hidden.1,min,hidden.3\n"


def test_wondernetworks_files_are_read_as_they_are(sh, top):
    (top / "pings" / "Bern").mkdir(parents=True)
    (top / "pings" / "raw_ParisPing.csv").write_text(
        f'{PINGS}"Bern Switzerland, Eurasia",430km,430,10.50ms,10.5,9.1ms,9.1\n"Oslo Norway, Eurasia",1km,1,30ms,30,29ms,29\n'
    )
    (top / "pings" / "Bern" / "BernPing.csv").write_text(f'{PINGS}"Paris France, Eurasia",430km,430,11.50ms,11.5,9.1ms,9.1\n')
    # a folder: between the cities that have files; Oslo has none
    assert sh("kvtools devices --delay pings --rtt --symmetrize -q -o f.devices").code == 0
    assert bag_of(top / "f.devices").tensors["delay"].tolist() == [[0, 5.5], [5.5, 0]]
    # one file: its cities are heard of through the one that pinged
    assert sh("kvtools devices --delay pings/raw_ParisPing.csv --symmetrize -q -o g.devices").code == 0
    assert bag_of(top / "g.devices").tensors["delay"].tolist() == [[0, 10.5, 30], [10.5, 0, 40.5], [30, 40.5, 0]]
    done = sh("kvtools devices --delay pings/raw_ParisPing.csv -o h.devices", pipefail=False)
    assert (done.code, done.err.count("\n")) == (65, 1)


def test_real_pings_of_three_cities(sh, data, tmp_path):
    done = sh(f"kvtools devices --delay {data}/net/wondernetwork --rtt --symmetrize -o f.devices")
    assert done.code == 0
    apart = bag_of(tmp_path / "f.devices").tensors["delay"]
    assert apart.shape == (3, 3)  # Paris, Sydney, Tokyo
    assert 100 < apart[0, 1] < 200
    done = sh(f"kvtools devices --delay {data}/net/wondernetwork/raw_TokyoPing.csv --rtt --symmetrize -q -o g.devices")
    assert (done.code, len(bag_of(tmp_path / "g.devices").tensors["labels"])) == (0, 248)  # and Tokyo


def test_an_asymmetric_matrix_is_repaired_where_asked(sh, top):
    (top / "m.txt").write_text("0 10 3\n30 0 nan\n3 nan 0\n")
    done = sh("kvtools devices --delay m.txt", pipefail=False)
    assert (done.code, done.err.count("\n")) == (65, 1)
    done = sh("kvtools devices --delay m.txt --symmetrize -o f.devices")
    assert (done.code, done.err) == (0, "kvtools devices: m.txt: 1 pairs averaged, 1 filled by the shortest detour.\n")
    assert bag_of(top / "f.devices").tensors["delay"].tolist() == [[0, 20, 3], [20, 0, 23], [3, 23, 0]]


def test_comments_before_the_first_edge_are_left_out(sh, top):
    (top / "c.txt").write_text(f"# from the operator\n{EDGES}")
    make = "kvtools devices --graph edges.txt -o a.devices && kvtools devices --graph c.txt -o b.devices"
    assert (
        sh(f"{make} && kvtools sum a.devices > a && kvtools sum b.devices > b && cut -d' ' -f1 a b | uniq | wc -l").out
        == b"1\n"
    )


def test_natural_owners_and_files_make_partitions(sh, top):
    users = {name: {"x": [[n, 1.0] for n in range(5)], "y": [0, 1, 0, 1, 0]} for name in "abc"}
    (top / "leaf.json").write_text(json.dumps({"users": [*"abc"], "num_samples": [5] * 3, "user_data": users}))
    assert sh("kvtools devices --data leaf.json --partition natural -o f.devices").code == 0
    assert len(bag_of(top / "f.devices").tensors["labels"]) == 3
    (top / "cut.json").write_text(json.dumps([[*range(90)], [*range(90, 96)]]))
    assert sh("kvtools devices --data digits.csv --partition file:cut.json -o f.devices --force").code == 0
    assert np.diff(bag_of(top / "f.devices").tensors["offsets"]).tolist() == [90, 6]


def idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_a_folder_of_idx_files_has_its_test_part(sh, tmp_path):
    (tmp_path / "mnist").mkdir()
    for part, n in (("train", 20), ("t10k", 5)):
        idx(tmp_path / "mnist" / f"{part}-images-idx3-ubyte.gz", np.arange(n * 4).reshape(n, 2, 2) % 256)
        idx(tmp_path / "mnist" / f"{part}-labels-idx1-ubyte.gz", np.arange(n) % 3)
    assert sh("kvtools devices --data mnist --devices 4 -o f.devices").code == 0
    fields = bag_of(tmp_path / "f.devices").fields
    assert (fields["data"]["shape"], fields["partition"]["samples"]) == ([1, 2, 2], 20)


FORMS = "iid, shards:S, classes:C, dirichlet:A, mixture:A, quantity:SIGMA, natural or file:FILE"
SYMMETRIZE = "Give --symmetrize to average both directions and fill missing delays by the shortest detour."
ANOTHER_FILE = "Correct the file, or give another."
ANOTHER_FORM = "Give another form, or another number of --devices."
NO_LABEL = "is no label. Labels are names, or whole numbers from 0 to 65535. Correct the line, or leave it out."
BAD = {
    "two parts": (
        "--graph g.txt", {"g.txt": "1 2 3\n4 5 6\n"}, 65,
        "g.txt: the graph has 2 parts that no edge connects; 1 and 4 are in two of them. Correct the file, or give another.",
    ),
    "a negative edge": (
        "--graph g.txt", {"g.txt": "1 2 -3\n"}, 65,
        "g.txt: edge 1 has a delay of -3 ms, which is negative or not finite. Correct the file, or give another.",
    ),
    "a line that is no edge": (
        "--graph g.txt", {"g.txt": "1 2 3\n1 2\n"}, 65,
        "g.txt: line 2 is '1 2', and `node node ms` is needed. Correct the file, or give another.",
    ),
    "a negative delay": (
        "--delay m.txt", {"m.txt": "0 -1\n-1 0\n"}, 65,
        f"m.txt: the delay from site 0 to site 1 (line 1, column 2) is -1 ms, and cannot be negative. {ANOTHER_FILE}",
    ),
    "an asymmetric matrix": (
        "--delay m.txt", {"m.txt": "0 1\n9 0\n"}, 65,
        f"m.txt: 2 delays are asymmetric: from site 0 to site 1 (line 1, column 2) it is 1 ms, and back 9 ms. {SYMMETRIZE}",
    ),
    "a matrix with gaps": (
        "--delay m.txt", {"m.txt": "0 nan\nnan 0\n"}, 65,
        f"m.txt: 2 delays are missing, the first from site 0 to site 1 (line 1, column 2). {SYMMETRIZE}",
    ),
    "a ping one way": (
        "--delay p.csv", {"p.csv": "source,target,ms\na,b,5\n"}, 65,
        f"p.csv: 1 delays are missing, the first from 'b' to 'a'. {SYMMETRIZE}",
    ),
    "a ragged matrix": (
        "--delay m.txt", {"m.txt": "0 1\n9\n"}, 65, "m.txt: line 2 has 1 fields, and the first row has 2. Correct the line.",
    ),
    "a matrix with words": (
        "--delay m.txt", {"m.txt": "0 1\na 0\n"}, 65, "m.txt: line 2: column 1: 'a' is not a number. Correct the line.",
    ),
    "an open quote": (
        "--coordinates p.csv", {"p.csv": 'lat,lon\n"1,2\n'}, 65,
        "p.csv: line 2: a quote is opened and never closed. Close it or remove it.",
    ),
    "a latitude off the earth": (
        "--coordinates p.csv", {"p.csv": "lat,lon\n91,3\n"}, 65,
        f"p.csv: line 2 has latitude 91 and longitude 3, and degrees up to 90 and 180 are needed. {ANOTHER_FILE}",
    ),
    "a folder without pings": (
        "--delay empty", {"empty/x.txt": ""}, 65,
        "empty: the folder has no files *Ping.csv, each with the pings of one city. Correct its files, or give another.",
    ),
    "a ping without a number": (
        "--delay p.csv", {"p.csv": f"{PINGS}Bern,1km,1,soon,1,1,1\n"}, 65,
        "p.csv: line 2 of p.csv has no city with an average in ms. Correct the file, or give another.",
    ),
    "too many devices": (
        "--data digits.csv --devices 5000", {}, 2,
        f"--partition iid: 5000 devices cannot share 96 training samples, since each device gets at least one. {ANOTHER_FORM}",
    ),
    "too many classes": (
        "--data digits.csv --devices 5 --partition classes:9", {}, 2,
        f"--partition classes:9: 9 classes for each device are more than the 4 classes of the data. {ANOTHER_FORM}",
    ),
    "no such partition": (
        "--data digits.csv --devices 5 --partition sorted", {}, 2,
        f"--partition sorted: the forms are {FORMS}. Give a form such as dirichlet:0.5.",
    ),
    "two networks": ("--delay a --graph b", {}, 2, "--delay and --graph are two networks. Give one of them."),
    "nothing": (
        "", {}, 2, "no data and no network are given. Give --data, or one of --delay, --graph and --coordinates.",
    ),
    "round trips of nothing": (
        "--data digits.csv --rtt", {}, 2, "--rtt is about a network. Give one with --delay, --graph or --coordinates.",
    ),
    "positions to symmetrize": (
        "--coordinates c.csv --symmetrize", {}, 2,
        "--symmetrize is about the delays of --delay or --graph. Give one of them, or leave it out.",
    ),
    "no last mile": (
        "--delay m.txt --last-mile x", {}, 2, "--last-mile x is not a mean and a deviation in ms. Give MEAN:SD, as 5:2.",
    ),
    "no number of devices": (
        "--data digits.csv", {}, 2,
        "the number of devices is unknown, since there is no network whose sites could be counted. Give --devices.",
    ),
    "a sample twice": (
        "--data digits.csv --partition file:p.json", {"p.json": "[[0, 1], [1]]"}, 65,
        "p.json: sample 1 is on several devices. Correct the file.",
    ),
    "a sample forgotten": (
        "--data digits.csv --partition file:p.json", {"p.json": "[[0, 1], [2]]"}, 65,
        "p.json: sample 3 is on no device. Correct the file.",
    ),
    "a device without samples": (
        "--data digits.csv --partition file:p.json", {"p.json": json.dumps([[*range(96)], []])}, 65,
        "p.json: device 1 has no samples. Correct the file.",
    ),
    "no partition": (
        "--data digits.csv --partition file:p.json", {"p.json": '"iid"'}, 65,
        "p.json: this JSON is not a list of sample numbers for each device. Correct the file.",
    ),
    "a label out of range": (
        "--data l.csv --devices 2", {"l.csv": "1,2,0\n1,2,-4\n"}, 65,
        f"l.csv: line 2: column 3: '-4' {NO_LABEL}",
    ),
    "a label that is no class": (
        "--data l.csv --devices 2", {"l.csv": "1,2,0\n1,2,0.5\n"}, 65,
        f"l.csv: line 2: column 3: '0.5' {NO_LABEL}",
    ),
    "no data": (
        "--data nowhere --devices 2", {}, 66, "nowhere: no such file or directory. Look at its name and its permissions."
    ),  # fmt: skip
    "other files": (
        "--data empty --devices 2", {"empty/x.txt": ""}, 66,
        "empty: there are no labelled data. Give idx images and labels, images in folders or a .tar, .csv, .npz or LEAF .json.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refusals_say_what_is_wrong_and_what_to_do(sh, top, name):
    options, files, code, message = BAD[name]
    for path, text in files.items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(text)
    done = sh(f"kvtools devices {options} -o out.devices", pipefail=False)
    assert (done.code, done.err) == (code, f"kvtools devices: {message}\n")
    assert not (top / "out.devices").exists()


def test_the_authors_graph_and_real_mnist(sh, data, tmp_path):
    done = sh(f"kvtools devices --data {data}/fl/mnist --graph {data}/net/etree_authors/data100.in -o f.devices")
    assert (done.code, done.err) == (0, "")
    bag = bag_of(tmp_path / "f.devices")
    assert bag.tensors["labels"].sum(axis=0).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
