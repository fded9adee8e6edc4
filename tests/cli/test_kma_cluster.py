"""Devices into a tree, as a user types it: what comes out, what is reported, what is refused."""

import json
import shutil

import numpy as np
import pytest
from conftest import shell
from test_devices import EDGES, write_data

from kvtools.artifact import open_artifact


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """digits.csv, edges.txt, p.npy, and f.devices of forty devices."""
    folder = tmp_path_factory.mktemp("fleet")
    write_data(folder)
    rng = np.random.default_rng(0)
    np.save(folder / "p.npy", rng.uniform(0, 50, (40, 2)).astype(np.float32))
    (folder / "edges.txt").write_text(EDGES)
    make = "kvtools devices --data digits.csv --partition classes:2 --coordinates p.npy -o f.devices"
    assert shell(folder)(make).code == 0
    return folder


@pytest.fixture
def fleet(furnished, tmp_path):
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("method", ["kma", "kma-code", "k-medoids", "accuracy-only", "balanced", "random", "contiguous"])
def test_devices_become_a_tree_whose_report_can_be_recomputed(sh, fleet, method):
    done = sh(f"kvtools kma-cluster -k 4 --method {method} --data digits.csv f.devices | tee f.tree | kvtools check -")
    assert (done.code, done.out, done.err) == (0, b"", "")
    line = json.loads(sh("kvtools info --json f.tree").out)
    assert (line["k"], sum(line["sizes"]), line["cycled"]) == (4, 40, False)
    assert {"accuracy_gap", "label_gap_l1", "delay_ms", "sweeps"} <= set(line)
    tree, devices = open_artifact(str(fleet / "f.tree")).tensors, open_artifact(str(fleet / "f.devices")).tensors
    group = tree["parent"][:40] - 40
    assert np.bincount(group).tolist() == line["sizes"]
    labels = devices["labels"]
    share = labels.sum(axis=0) / labels.sum()
    gaps = [np.abs(labels[group == k].sum(axis=0) / labels[group == k].sum() - share).sum() for k in range(4)]
    assert line["label_gap_l1"] == pytest.approx(np.mean(gaps))
    if line["accuracy_gap"] is not None:
        accuracy = tree["accuracy"]
        gaps = [abs(accuracy[group == k].mean() - accuracy.mean()) for k in range(4)]
        assert line["accuracy_gap"] == pytest.approx(np.mean(gaps), abs=1e-6)
    centre = tree["device"][40:44]
    apart = np.sqrt(np.square(devices["coordinates"] - devices["coordinates"][centre[group]]).sum(axis=1))
    assert line["delay_ms"] == pytest.approx(apart.mean())


def test_trees_may_be_deep_and_info_shows_their_history(sh, fleet):
    done = sh("kvtools kma-cluster -k 9 --levels 4,2,1 --ratios 2,3,4,1,1 --method k-medoids f.devices -o f.tree")
    assert (done.code, done.err) == (0, "")
    tensors = open_artifact(str(fleet / "f.tree")).tensors
    assert np.bincount(tensors["level"]).tolist() == [40, 9, 4, 2, 1]
    assert tensors["ratios"].tolist() == [2, 3, 4, 1, 1]
    assert b"kvtools devices" in sh("kvtools info f.tree").out


def test_the_same_seed_gives_the_same_bytes(sh, fleet):
    make = "kvtools kma-cluster -k 5 --data digits.csv f.devices"
    assert sh(f"{make} -o a.tree && {make} -o b.tree && cmp a.tree b.tree").code == 0
    assert sh(f"{make} --seed 1 -o c.tree && ! cmp -s a.tree c.tree").code == 0


def test_public_devices_are_named(sh, fleet):
    assert sh("kvtools kma-cluster -k 4 --public 0.3 --delta 0.5 --data digits.csv f.devices -o f.tree").code == 0
    public = open_artifact(str(fleet / "f.tree")).tensors["public"]
    assert 0 < len(public) <= 12


def test_a_recipe_is_followed_and_printed(sh, fleet):
    (fleet / "r.toml").write_text('method = "k-medoids"\ngroups = 3\n')
    assert b'method = "k-medoids"' in sh("kvtools kma-cluster --config r.toml --print-config").out
    assert sh("kvtools kma-cluster --config r.toml f.devices | kvtools info --config - | grep -c groups").out == b"1\n"


@pytest.mark.parametrize("method", ["kma", "balanced", "balanced --label-weight 0", "k-medoids"])
def test_a_run_that_is_stopped_after_every_unit_of_its_work_gives_the_same_tree(kv, fleet, monkeypatch, method):
    monkeypatch.setattr("kvtools.etree.train.local._LARGEST_CHUNK", 2)  # blocks of a few devices
    points = np.load(fleet / "p.npy")
    np.savetxt(fleet / "ms.txt", np.linalg.norm(points[:, None] - points, axis=2))
    assert kv("devices --data digits.csv --partition classes:2 --devices 40 --delay ms.txt -o g.devices")[0] == 0
    make = f"kma-cluster -q -k 8 --method {method} --data digits.csv g.devices"
    assert kv(f"{make} -o whole.tree") == (0, "")
    monkeypatch.setattr("kvtools.world.Stop.__bool__", lambda _: True)
    stops = []
    while (run := kv(f"{make} -o parts.tree")) != (0, ""):
        stops.append(run)
        assert len(stops) < 40
    assert len(stops) > 1
    assert {(code, err.partition("stopped ")[0]) for code, err in stops} == {(75, "kvtools kma-cluster: ")}
    assert (fleet / "parts.tree").read_bytes() == (fleet / "whole.tree").read_bytes()
    assert not list(fleet.glob(".parts*"))


def test_a_stopped_run_is_not_resumed_with_other_options(kv, fleet, monkeypatch):
    make = "kma-cluster -q --method k-medoids f.devices -o out.tree"
    with monkeypatch.context() as patch:
        patch.setattr("kvtools.world.Stop.__bool__", lambda _: True)
        assert kv(f"{make} -k 4")[0] == 75
    remedy = "Give the same options to resume it, or --force to start over."
    where = "kvtools kma-cluster: .out.tree.state/train.state: the stopped run had"
    assert kv(f"{make} -k 5") == (2, f"{where} groups 4, and this run has 5. {remedy}\n")
    with monkeypatch.context() as patch:
        patch.setattr("kvtools.artifact.state.__version__", "99")
        code, err = kv(f"{make} -k 4")
    assert (code, err.split(" and this run")[1]) == (2, f' has "99". {remedy}\n')
    assert kv(f"{make} -k 4") == (0, "")


COUNTS = "these are not counts from 1 to 1048576 between commas. Give counts such as 4,1."
BAD = {
    "too many groups": (
        "-k 50 --method k-medoids f.devices", 2,
        "f.devices: 50 groups cannot be made of 40 devices. Give fewer groups, or another --method.",
    ),
    "levels that rise": (
        "-k 5 --levels 9,1 f.devices", 2,
        "--levels 9,1 does not fall from 5 groups to 1 aggregator. Give counts such as 2,1.",
    ),
    "levels without a root": (
        "-k 5 --levels 4,2 f.devices", 2,
        "--levels 4,2 does not fall from 5 groups to 1 aggregator. Give counts such as 2,1.",
    ),
    "no counts": ("-k 5 --levels 0,1 f.devices", 2, f"--levels 0,1: {COUNTS}"),
    "too few ratios": (
        "-k 5 --ratios 1,1 f.devices", 2,
        "--ratios 1,1 does not fit the levels. Give 3 counts, the last of them 1.",
    ),
    "no ratios": ("-k 5 --ratios 1,x f.devices", 2, f"--ratios 1,x: {COUNTS}"),
    "no data": ("-k 5 f.devices", 2, "--method kma needs the accuracy of each device alone. Give --data."),
    "no data for public devices": (
        "-k 5 --method random --public 0.2 f.devices", 2,
        "--public needs the accuracy of each device alone. Give --data.",
    ),
    "no network": (
        "-k 5 --method random bare.devices", 65,
        "bare.devices: these devices have no network. Make them with kvtools devices --delay or --graph.",
    ),
    "no samples": (
        "-k 5 --data digits.csv empty.devices", 65,
        "empty.devices: these devices hold no data. Make them with kvtools devices --data.",
    ),
    "no devices": (
        "-k 5 --method random digits.csv", 65,
        "digits.csv: this is neither a stream nor a bag of kvtools. Give one, or see kvtools convert.",
    ),
    "stdin twice": (
        "--since - -", 2, "several inputs are -, and stdin can be read only once. Give files for the others.",
    ),
    "a shape for a tree that has one": (
        "--since f.tree -k 9 f.devices", 2,
        "--groups cannot be given with --since, whose tree has its own. Leave it out.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refusals_say_what_is_wrong_and_what_to_do(kv, fleet, name):
    options, code, message = BAD[name]
    kv("devices --data digits.csv --devices 5 -o bare.devices", "devices --coordinates p.npy -o empty.devices")
    if "--since" in options:
        kv("kma-cluster -k 5 --method random f.devices -o f.tree")
    assert kv(f"kma-cluster {options} -o out.tree") == (code, f"kvtools kma-cluster: {message}\n")
    assert not (fleet / "out.tree").exists()


def test_devices_that_join_leave_the_other_groups_alone(sh, fleet):
    points = np.load(fleet / "p.npy")
    np.save(fleet / "q.npy", np.concatenate([points, points[:3] + 0.1]))
    make = "kvtools devices --coordinates q.npy -o g.devices && kvtools kma-cluster -k 5 --method k-medoids f.devices -o f.tree"
    done = sh(f"{make} && kvtools kma-cluster --since f.tree --slack 2 g.devices -o g.tree")
    assert (done.code, done.err) == (0, "")
    before, after = (open_artifact(str(fleet / f"{name}.tree")) for name in "fg")
    joined = set((after.tensors["parent"][40:43] - 43).tolist())
    same = [i for i in range(40) if before.tensors["parent"][i] - 40 not in joined]
    assert same
    assert [after.tensors["parent"][i] - 43 for i in same] == [before.tensors["parent"][i] - 40 for i in same]
    report = json.loads(sh("kvtools info --json g.tree").out)
    assert (report["k"], report["method"], report["config"]["groups"], report["config"]["ratios"]) == (5, "joined", 5, None)
    done = sh("kvtools kma-cluster --since g.tree f.devices", pipefail=False)
    remedy = "Give the devices of the tree, and new ones after them."
    message = f"f.devices: there are 40 devices, and the tree has 43, which must come first. {remedy}"
    assert (done.code, done.err) == (2, f"kvtools kma-cluster: {message}\n")
