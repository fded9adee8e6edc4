"""Items become semantic IDs: what a user types, what comes out, and what is refused."""

import fcntl
import json
import os
import signal
import subprocess

import numpy as np
import pytest
from conftest import BIN
from safetensors.numpy import load_file

from kvtools.artifact.state import RunState, SaveTimer


@pytest.fixture
def items(tmp_path):
    """items.npy and items.keys: 600 vectors in 40 clumps, made here with a seed."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(40, 16))[rng.integers(0, 40, 600)] + 0.3 * rng.normal(size=(600, 16))
    np.save(tmp_path / "items.npy", x.astype(np.float32))
    (tmp_path / "items.keys").write_text("".join(f"item {i}\n" for i in range(600)))
    return x.astype(np.float32)


BUILD = "kvtools semid-build items.npy --keys items.keys"
NEEDED = "and float16, float32 or float64 (N, D) is needed. Convert it with numpy."
NEITHER = "items.keys: this is neither a stream nor a bag of kvtools. Give one, or see kvtools convert."
OTHER_VECTORS = "the stopped run had other vectors. Give the same vectors to resume it, or --force to start over."


def bag(path):
    tensors = load_file(path)
    ends = tensors["keys.offsets"]
    names = tensors["keys.bytes"].tobytes()
    return tensors, [names[a:b].decode() for a, b in zip(ends, ends[1:], strict=False)]


def test_vectors_become_ids_that_reconstruct_them(sh, items, tmp_path):
    done = sh(f"{BUILD} --codes 32 -o items.ids && kvtools check items.ids && kvtools info --json items.ids")
    assert (done.code, done.err) == (0, "")
    tensors, keys = bag(tmp_path / "items.ids")
    assert keys == [f"item {i}" for i in range(600)]
    assert tensors["codes"].dtype == np.uint16
    assert tensors["codebooks"].shape == (3, 32, 16)
    rebuilt = sum(tensors["codebooks"][level][tensors["codes"][:, level]] for level in range(3))
    report = json.loads(done.out.splitlines()[-1])
    assert report["quality"]["mse"] == pytest.approx(np.square(items - rebuilt, dtype=np.float64).mean(), rel=1e-4)
    assert "seconds" not in report["quality"], "the same work must give the same bytes"


def test_the_report_has_the_keys_that_scripts_rely_on(sh, items):
    done = sh(f"{BUILD} --codes 32 -o items.ids --report report.json --json && cat report.json")
    printed, filed = (json.loads(line) for line in done.out.splitlines())
    assert printed == filed
    wanted = {
        "method",
        "levels",
        "codes",
        "mse",
        "utilisation",
        "entropy_nats",
        "distinct_share",
        "max_bucket",
        "reseeds",
        "seconds",
    }
    assert wanted <= set(printed)
    assert printed["levels"] == 3
    assert len(printed["utilisation"]) == len(printed["entropy_nats"]) == len(printed["reseeds"]) == 3


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(sh, items):
    sh(f"{BUILD} --codes 32 -o a.ids; {BUILD} --codes 32 > b.ids; {BUILD} --codes 32 --seed 1 -o c.ids")
    assert sh("cmp a.ids b.ids").code == 0
    assert sh("cmp a.ids c.ids").code == 1


def test_embeddings_come_through_the_pipe(sh, items):
    write = (
        "import numpy as np; from kvtools.artifact.files import Sink; from kvtools.artifact.stream import Head, Writer;"
        "from kvtools.artifact.strings import pack; x = np.load('items.npy');"
        "w = Writer(Sink('-'), Head('embedding')); w.__enter__();"
        "[w.write(str(b), {'vectors': x[b:b+100], **pack('keys', [f'item {i}' for i in range(b, b + 100)])})"
        " for b in range(0, 600, 100)]; w.__exit__(None, None, None)"
    )
    piped = sh(f'python -c "{write}" | kvtools semid-build --codes 32 | kvtools sum -')
    assert piped.code == 0, piped.err
    assert piped.out.split()[0] == sh(f"{BUILD} --codes 32 | kvtools sum -").out.split()[0]


@pytest.mark.parametrize("method", ["rq-kmeans", "balanced", "rq-vae --epochs 4"])
@pytest.mark.parametrize("way_out", ["extend", "nearest"])
def test_every_way_out_of_collisions_leaves_none(sh, items, tmp_path, method, way_out):
    sh(f"{BUILD} --codes 8 --levels 2 --method {method} -o kept.ids")
    kept = bag(tmp_path / "kept.ids")[0]["codes"]
    assert len(np.unique(kept, axis=0)) < 600
    room = 600 if way_out == "extend" else 8 * 8
    done = sh(
        f"{BUILD} --codes 8 --levels 2 --method {method} --collisions {way_out} -o out.ids --json && kvtools check out.ids"
    )
    codes = bag(tmp_path / "out.ids")[0]["codes"]
    report = json.loads(done.out.splitlines()[0])
    assert len(np.unique(codes, axis=0)) == min(600, room) == round(report["distinct_share"] * 600)
    if way_out == "nearest":  # 64 IDs for 600 items: the others are reported as stuck
        assert report["stuck"] == 600 - 64


def test_newcomers_get_ids_and_old_ones_never_change(sh, items, tmp_path):
    np.save(tmp_path / "old.npy", items[:500])
    np.save(tmp_path / "new.npy", items[500:])
    sh("head -500 items.keys > old.keys; tail -100 items.keys > new.keys")
    for way_out in ("keep", "extend", "nearest"):
        sh(f"kvtools semid-build old.npy --keys old.keys --codes 64 --collisions {way_out} -o old.ids --force")
        done = sh(
            f"kvtools semid-build --codebook old.ids --append --collisions {way_out} new.npy --keys new.keys -o all.ids --force"
        )
        assert done.code == 0, done.err
        old, _ = bag(tmp_path / "old.ids")
        everything, keys = bag(tmp_path / "all.ids")
        assert keys == [f"item {i}" for i in range(600)]
        assert np.array_equal(everything["codes"][:500], old["codes"])
        assert np.array_equal(everything["codebooks"], old["codebooks"])
        if way_out != "keep":
            assert len(np.unique(everything["codes"], axis=0)) == 600


def test_encoding_gives_the_items_of_the_fit_their_own_codes(sh, items):
    sh(f"{BUILD} --codes 32 -o fit.ids; {BUILD} --codebook fit.ids -o encoded.ids")
    fit, encoded = sh("kvtools sum fit.ids encoded.ids").out.split()[::2]
    assert fit == encoded
    sh(f"{BUILD} --codes 32 --method rq-vae --epochs 4 -o vae.ids; {BUILD} --codebook vae.ids -o again.ids")
    fit, encoded = sh("kvtools sum vae.ids again.ids").out.split()[::2]
    assert fit == encoded


BAD = {
    "a row with NaN, by its key": (
        "x[7, 3] = np.nan", "", 65, "items.npy: the vector of 'item 7' holds NaN. Give vectors of finite values below 1e15."
    ),
    "a row with infinity": (
        "x[599] = np.inf", "", 65, "items.npy: the vector of 'item 599' holds inf. Give vectors of finite values below 1e15."
    ),
    "a row too large to square": (
        "x[0, 0] = 1e20", "", 65,
        "items.npy: the vector of 'item 0' holds 1e+20. Give vectors of finite values below 1e15.",
    ),
    "fewer rows than codes": (
        "x = x[:20]; keys = keys[:20]", "", 65,
        "items.npy: 20 vectors are too few for 32 codes. Give fewer --codes, or more items.",
    ),
    "keys that name two rows": (
        "keys[3] = keys[77]", "", 65, "items.npy: key 'item 77' names two vectors. Give every item one vector."
    ),
    "keys that are too few": (
        "keys = keys[:-1]", "", 65, "items.npy: there are 600 rows and 599 keys. Give one key per row with --keys."
    ),
    "no rows": (
        "x = x[:0]; keys = []", "", 65, "items.npy: there are no vectors in it. Look at the stage before this one."
    ),
    "integers": (
        "x = x.astype(int)", "", 65,
        f"items.npy: this is int64 [600, 16], {NEEDED}",
    ),
    "a vector": ("x = x[0]", "", 65, f"items.npy: this is float32 [16], {NEEDED}"),
    "a codebook of another width": (
        "x = x[:, :9]", "--codebook fit.ids", 65,
        "fit.ids: its codebooks are 16 wide, and the vectors 9. Give vectors of that width.",
    ),
    "a codebook that is none": (
        "", "--codebook items.keys", 65, NEITHER
    ),
    "a codebook that is a model": (
        "", "--codebook items.kvs", 65,
        "items.kvs: this is a stream of kind embedding, and kind semantic-id is needed. Make one with kvtools semid-build.",
    ),
    "a codebook that is not there": (
        "", "--codebook nosuch", 66, "nosuch: no such file or directory. Look at its name and its permissions.",
    ),  # fmt: skip
    "a codebook with further tokens": (
        "", "--codebook extended.ids --append", 65,
        "extended.ids: its IDs have a further token, and the new ones would have none. Give --collisions extend.",
    ),
    "further tokens after IDs without": (
        "", "--codebook fit.ids --append --collisions extend", 65,
        "fit.ids: its IDs have no further token, and the new ones would have one. Give --collisions keep or nearest.",
    ),
    "appending what is there already": (
        "", "--codebook fit.ids --append", 65, "items.npy: key 'item 0' names two vectors. Give every item one vector."
    ),
    "appending to nothing": (
        "", "--append", 2, "--append is of use only with --codebook. Give --codebook IDS, or leave it out."
    ),
    "two inputs from stdin": (
        "", "--keys - --codebook -", 2, "several inputs are -, and stdin can be read only once. Give files for the others."
    ),
    "a size that is none": ("", "--memory lots", 2, "--memory lots is not a size. Give one as 64MiB or 2GiB."),
    "json where the IDs go": (
        "", "--json -o -", 2, "--json would mix the report with the IDs on stdout. Give -o FILE for the IDs."
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_on_one_line_and_leaves_no_file(kv, items, tmp_path, what):
    change, options, code, sentence = BAD[what]
    inputs = {
        "fit.ids": f"{BUILD} --codes 32 -o fit.ids",
        "extended.ids": f"{BUILD} --codes 8 --levels 1 --collisions extend -o extended.ids",
        "items.kvs": "kvtools embed items.npy --keys items.keys -o items.kvs",
    }
    for name in set(inputs) & set(options.split()):
        kv(inputs[name].removeprefix("kvtools "))
    scope = {"np": np, "x": items.copy(), "keys": [f"item {i}" for i in range(600)]}
    exec(change, scope)
    np.save(tmp_path / "items.npy", scope["x"])
    (tmp_path / "items.keys").write_text("".join(f"{key}\n" for key in scope["keys"]))
    done = kv(f"{BUILD.removeprefix('kvtools ')} --codes 32 -o out.ids {options}")
    assert done == (code, f"kvtools semid-build: {sentence}\n")
    assert not (tmp_path / "out.ids").exists()


def test_an_npy_may_come_from_stdin_and_what_is_missing_is_reported(sh, items):
    assert sh("kvtools semid-build - --keys items.keys --codes 32 < items.npy | kvtools sum -").code == 0
    done = sh(": | kvtools semid-build - -o out.ids", pipefail=False)
    assert (done.code, len(done.err.splitlines())) == (65, 1)
    done = sh("kvtools semid-build items.npy -o out.ids", pipefail=False)
    report = "kvtools semid-build: items.npy: an .npy file does not name its rows. Give their keys with --keys FILE.\n"
    assert (done.code, done.err) == (2, report)


def test_two_runs_do_not_share_a_state(sh, items, tmp_path):
    (tmp_path / ".out.ids.state").mkdir()
    lock = os.open(tmp_path / ".out.ids.state" / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = sh(f"{BUILD} --codes 32 -o out.ids", pipefail=False)
    finally:
        os.close(lock)
    message = "kvtools semid-build: .out.ids.state: another run is at work there. Wait for it, or name another output.\n"
    assert (done.code, done.err) == (73, message)
    assert not (tmp_path / "out.ids").exists()
    assert sh(f"{BUILD} --codes 32 -o out.ids").code == 0, "a lock that nobody holds, as a killed run leaves it"
    assert not (tmp_path / ".out.ids.state").exists()


def test_an_array_of_objects_is_never_unpickled(sh, tmp_path):
    np.save(tmp_path / "items.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "items.keys").write_text("a\n")
    done = sh(f"{BUILD} --codes 1 -o out.ids", pipefail=False)
    assert done.code == 65
    assert not (tmp_path / "out.ids").exists()


def test_what_exceeds_the_memory_waits_on_disk_and_gives_the_same(sh, items):
    here, there = (sh(f"{BUILD} --codes 32 {option} | kvtools sum -").out for option in ("", "--memory 1kB"))
    assert here == there


def test_a_fit_that_is_killed_without_warning_goes_on_from_its_last_save(kv, tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    np.save(tmp_path / "items.npy", rng.normal(size=(900, 8)).astype(np.float32))
    (tmp_path / "items.keys").write_text("".join(f"{i}\n" for i in range(900)))
    build = "semid-build items.npy --keys items.keys --codes 16 --iterations 6 -v -o"
    assert kv(f"{build} whole.ids")[0] == 0
    monkeypatch.setattr(SaveTimer, "is_due", lambda _: True)
    save, left = RunState.save, iter(range(9))

    def killed(state, tensors, **fields):
        save(state, tensors, **fields)
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunState, "save", killed)
    assert kv(f"{build} out.ids")[0] == 130
    monkeypatch.setattr(RunState, "save", save)
    code, words = kv(f"{build} out.ids")
    assert code == 0
    assert "level 0" not in words
    assert (tmp_path / "out.ids").read_bytes() == (tmp_path / "whole.ids").read_bytes()


def test_stopped_on_request_and_run_again_it_ends_with_the_same_bytes(sh, tmp_path):
    rng = np.random.default_rng(3)
    np.save(tmp_path / "items.npy", rng.normal(size=(60_000, 64)).astype(np.float32))
    np.save(tmp_path / "others.npy", rng.normal(size=(60_000, 64)).astype(np.float32))
    (tmp_path / "items.keys").write_text("".join(f"{i}\n" for i in range(60_000)))
    whole = "kvtools semid-build items.npy --keys items.keys --codes 512 --iterations 12 -o"
    command = [str(BIN / "kvtools"), *whole.split()[1:], "out.ids", "-v"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in running.stderr:
        if "level 1" in line:
            break
    running.send_signal(signal.SIGUSR2)
    words = running.stderr.read()
    assert running.wait(60) == 75, words
    assert "Run again to continue" in words
    assert not (tmp_path / "out.ids").exists()
    state = ".out.ids.state/train.state"
    for option, had in (
        ("--seed 5", "seed 0, and this run has 5"),
        ("--method balanced", 'method "rq-kmeans", and this run has'),
    ):
        other = sh(f"{whole} out.ids {option}", pipefail=False)
        assert (other.code, other.err.startswith(f"kvtools semid-build: {state}: the stopped run had {had}")) == (2, True)
    other = sh(f"{whole.replace('items.npy', 'others.npy')} out.ids", pipefail=False)
    assert (other.code, other.err) == (
        2,
        f"kvtools semid-build: {state}: {OTHER_VECTORS}\n",
    )
    kept = (tmp_path / state).read_bytes()
    (tmp_path / state).write_bytes(kept[:-1])
    damaged = sh(f"{whole} out.ids", pipefail=False)
    assert (damaged.code, damaged.err.endswith("Give --force to start over.\n")) == (65, True)
    # where kvtools kept it before it had a folder
    (tmp_path / state).unlink()
    (tmp_path / ".out.ids.state").rmdir()
    (tmp_path / ".out.ids.state").write_bytes(kept)
    again = sh(f"{whole} out.ids -v")
    assert again.code == 0
    assert "level 0 pass 2" not in again.err, "the levels that were done are not done again"
    sh(f"{whole} serial.ids")
    assert sh("kvtools sum out.ids").out.split()[0] == sh("kvtools sum serial.ids").out.split()[0]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".state")]


def test_a_fault_while_reading_leaves_the_old_file(sh, items, tmp_path):
    sh(f"{BUILD} --codes 32 -o out.ids")
    before = (tmp_path / "out.ids").read_bytes()
    items[9, 9] = np.nan
    np.save(tmp_path / "items.npy", items)
    assert sh(f"{BUILD} --codes 32 -o out.ids --force", pipefail=False).code == 65
    assert (tmp_path / "out.ids").read_bytes() == before
