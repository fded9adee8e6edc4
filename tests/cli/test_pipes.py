"""What a user types, and what comes back: stdout, stderr, exit code."""

import contextlib
import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kvtools.artifact.files import write_line
from kvtools.world import Stop


@pytest.fixture
def stream(sh, clip):
    assert sh("kvtools tokenize-video clip.mp4 -o clip.kvs").code == 0
    return clip.with_name("clip.kvs")


def test_silence_is_success(sh, clip):
    done = sh("kvtools tokenize-video clip.mp4 -o a.kvs && kvtools check a.kvs")
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_a_stream_passes_through_every_tool(sh, clip):
    done = sh("kvtools tokenize-video clip.mp4 | kvtools cat - | tee a.kvs | kvtools sum - && kvtools sum a.kvs")
    assert done.code == 0, done.err
    piped, filed = done.out.decode().split("\n")[:2]
    assert piped.startswith("kvs1_")
    assert piped.split()[0] == filed.split()[0]


def test_concatenated_files_are_a_stream(sh, stream):
    assert (
        sh("cat clip.kvs clip.kvs | kvtools check --json -").out == b'{"ok": true, "records": 2, "fault": null, "name": "-"}\n'
    )


def test_cat_reads_pipes_by_name(sh, stream):
    made = sh(
        "mkfifo p; cat clip.kvs > p & kvtools cat p <(cat clip.kvs) clip.kvs -o a.kvs; cat clip.kvs | kvtools cat /dev/stdin"
    )
    assert made.code == 0, made.err
    assert sh("kvtools info --json a.kvs").out.count(b'"records": 3') == 1
    cut = sh("kvtools cat <(head -c 3000 clip.kvs) -o b.kvs", pipefail=False)
    assert (cut.code, sh("test -e b.kvs").code) == (65, 1)


def test_info_tells_form_kind_records_and_history(sh, stream):
    line = json.loads(sh("kvtools info --json clip.kvs").out)
    assert (line["form"], line["kind"], line["records"]) == ("stream", "video", 1)
    assert line["bytes"] == stream.stat().st_size
    assert [step["command"] for step in line["history"]] == ["tokenize-video"]
    through = json.loads(sh("kvtools cat clip.kvs | kvtools info --json -").out)
    assert [step["command"] for step in through["history"]] == ["tokenize-video", "cat"]
    assert through["history"][1]["parents"] == [through["history"][0]["id"]]


def test_info_records_tells_shapes(sh, stream):
    line = json.loads(sh("kvtools info --json --records clip.kvs").out)
    assert (line["record"], line["key"], line["kind"]) == (0, "clip.mp4", "video")
    assert line["tensors"]["grid"] == ["I32", [3]]
    assert line["tensors"]["pixels"][1][1:] == [3, 14, 14]


def test_info_config_is_toml(sh, stream):
    import tomllib

    config = tomllib.loads(sh("kvtools info --config clip.kvs").out.decode())
    assert config["fps"] == 2.0
    assert config["max_tokens"] == 24_576


def test_cat_selects_by_key_and_keeps_digests(sh, stream):
    sh("cp clip.mp4 b.mp4; kvtools tokenize-video clip.mp4 b.mp4 -o two.kvs")
    assert sh("kvtools cat --key clip.mp4 two.kvs | kvtools sum -").out[:37] == sh("kvtools sum clip.kvs").out[:37]
    missing = sh("kvtools cat --key nobody --key b.mp4 two.kvs clip.kvs | kvtools sum -; echo ${PIPESTATUS[0]}", pipefail=False)
    assert missing.err == "kvtools cat: --key nobody: no input has it. See kvtools info --records.\n"
    assert missing.out.split()[-1] == b"65"
    assert sh("kvtools cat --json two.kvs | wc -l").out.strip() == b"2"
    assert sh("kvtools cat -n 1 two.kvs | kvtools cat --json - | wc -l").out.strip() == b"1"


def test_the_digest_sees_loss_doubling_and_change_but_not_order(sh, clip):
    sh("cp clip.mp4 b.mp4; kvtools tokenize-video clip.mp4 b.mp4 -o ab.kvs; kvtools tokenize-video b.mp4 clip.mp4 -o ba.kvs")
    digest = {line: sh(f"{line} | kvtools sum -").out for line in (
        "kvtools cat ab.kvs", "kvtools cat ba.kvs", "kvtools cat --compress 9 ab.kvs",
        "kvtools cat -n 1 ab.kvs", "cat ab.kvs ab.kvs", "kvtools tokenize-video --fps 3 clip.mp4 b.mp4",
    )}  # fmt: skip
    same, reordered, compressed, *others = digest.values()
    assert same == reordered == compressed
    assert len({same, *others}) == 4


def test_a_bag_is_summed_checked_and_told(sh, tmp_path):
    import numpy as np

    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.files import Sink
    from kvtools.artifact.history import extend

    tensors = {"parent": np.zeros(3, np.int32), "level": np.zeros(3, np.int32), "device": np.arange(3, dtype=np.int32)}
    tensors["ratios"] = np.ones(2, np.int32)
    write_bag(Sink(str(tmp_path / "t.safetensors")), "tree", tensors, config={"k": 2}, history=extend("made-here", []))
    assert sh("kvtools check t.safetensors").code == 0
    line = json.loads(sh("kvtools info --json t.safetensors").out)
    for source in ("- < t.safetensors", "< t.safetensors", "t.safetensors | cat"):
        assert json.loads(sh(f"kvtools info --json {source}").out) == line
    assert (line["form"], line["kind"], line["records"]) == ("bag", "tree", 1)
    assert sh("kvtools sum t.safetensors").out == sh("cat t.safetensors | kvtools sum - | sed s/-$/t.safetensors/").out
    raw = bytearray((tmp_path / "t.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "t.safetensors").write_bytes(raw)
    done = sh("kvtools check t.safetensors")
    said = "t.safetensors: the content of tensor ratios differs from its crc32. Make or fetch it again."
    assert (done.code, done.err) == (65, f"kvtools check: {said}\n")


@pytest.mark.parametrize("n_bytes", [0, 1, 100, 5000])
def test_a_cut_stream_is_refused_downstream(sh, stream, n_bytes):
    for reader in ("check", "sum", "info", "info --records", "cat"):
        done = sh(f"head -c {n_bytes} clip.kvs | kvtools {reader} - > /dev/null")
        assert done.code == 65, (reader, done.err)
        assert done.err.count("\n") == 1


def test_a_reader_that_leaves_ends_the_writer_with_141(sh, stream):
    done = sh('kvtools cat clip.kvs | head -c 1000 | kvtools check - ; echo "${PIPESTATUS[@]}"', pipefail=False)
    assert done.out.split() == [b"141", b"0", b"65"]
    done = sh('kvtools tokenize-video clip.mp4 | head -c 1000 | kvtools check - ; echo "${PIPESTATUS[@]}"', pipefail=False)
    assert done.out.split() == [b"141", b"0", b"65"]


@pytest.mark.parametrize(
    "line", ["kvtools cat clip.kvs", "kvtools info clip.kvs", "kvtools tokenize-video clip.mp4", "kvtools --help"]
)
def test_a_full_disk_is_told(sh, stream, line):
    done = sh(f"{line} > /dev/full")
    assert (done.code, done.err.split(": ", 1)[1]) == (74, "stdout: no space left on device.\n")


@pytest.mark.parametrize("failing", ["fsync", "writev"])
def test_a_full_disk_leaves_no_temporary_file(tmp_path, monkeypatch, failing):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "report").write_text("before")
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_line(str(tmp_path / "report"), "{}", force=True)
    assert caught.value.filename == str(tmp_path / "report")
    assert os.listdir(tmp_path) == ["report"]
    assert (tmp_path / "report").read_text() == "before"


def test_a_full_disk_by_name_is_told(sh, stream):
    assert sh("kvtools cat clip.kvs -o /dev/full").code == 74


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("kvtools info nothing.kvs", 66, "no such file"),
        ("kvtools info .", 66, ".: this is a directory. Give a file."),
        ("kvtools frobnicate", 2, "no such command"),
        ("kvtools info --frob clip.kvs", 2, "no such option"),
        ("kvtools cat clip.kvs -o clip.kvs", 2, "clip.kvs: this is both an input and the output. Name another output."),
        ("kvtools cat clip.kvs -o clip.kvs --force", 2, "clip.kvs: this is both an input and the output."),
        ("kvtools cat clip.kvs -o there.kvs", 73, "there.kvs: exists already. Give --force to overwrite it."),
        ("kvtools cat clip.kvs -o no/such/folder.kvs", 73, "no/such/folder.kvs: its folder does not exist. Make the folder"),
        ("kvtools tokenize-video", 2, "no video is given. Name videos or folders, or give --list."),
        ("kvtools tokenize-video nothing.mp4", 66, "nothing.mp4"),
        ("kvtools tokenize-video clip.mp4 --frame-tokens 9", 2, "--frame-tokens 9 is not a range. Give LOW:HIGH"),
        ("kvtools tokenize-video clip.mp4 --fps 0", 2, "--fps 0 is not above 0. Give a rate such as 2."),
        ("kvtools tokenize-video clip.mp4 --start 3 --end 2", 2, "--start 3 is after --end 2. Give a later --end."),
        ("kvtools tokenize-video clip.mp4 --shard 3/2", 2, "--shard 3/2"),
        ("kvtools cat clip.mp4", 65, "clip.mp4: this is not a kvtools stream: it has no head."),
        ("kvtools check clip.mp4", 65, "clip.mp4: this is neither a stream nor a bag of kvtools."),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_their_code(sh, stream, line, code, words):
    sh("cp clip.kvs there.kvs")
    done = sh(line)
    assert done.code == code, done.err
    assert words in done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("kvtools ")
    assert done.out == b""


def test_one_bad_input_does_not_lose_the_others(sh, stream):
    done = sh("head -c 3000 clip.kvs > cut.kvs; kvtools cat clip.kvs cut.kvs nothing.kvs clip.kvs -o all.kvs", pipefail=False)
    assert done.code == 65
    assert sh("kvtools info --json all.kvs").out.count(b'"records": 2') == 1
    assert sh("kvtools cat --strict cut.kvs clip.kvs -o some.kvs").code == 65
    assert sh("test -e some.kvs").code == 1


def test_binary_is_not_written_to_a_terminal(stream):
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "kvtools", "cat", str(stream)], stdout=follower, stderr=subprocess.PIPE, check=False
    )
    os.close(leader)
    os.close(follower)
    assert done.returncode == 2
    assert b"-o FILE" in done.stderr


def test_a_terminal_on_stdin_is_not_waited_for(stream):
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "kvtools", "info"], stdin=follower, capture_output=True, timeout=20, check=False
    )
    os.close(leader)
    os.close(follower)
    assert done.returncode == 2


def test_dry_run_writes_nothing(sh, clip):
    done = sh("kvtools tokenize-video --dry-run clip.mp4 -o a.kvs")
    assert done.code == 0
    assert done.out == b"clip.mp4\tclip.mp4\n"
    assert sh("test -e a.kvs").code == 1


def test_describe_is_json_and_version_is_a_line(sh):
    described = json.loads(sh("kvtools tokenize-video --describe").out)
    assert described["writes"] == ["video"]
    names = {name for option in described["options"] for name in option["names"]}
    assert {"--fps", "--frames", "--max-tokens", "--frame-tokens", "--start", "--end", "--timeout", "--jobs"} <= names
    assert sh("kvtools --version").out.startswith(b"kvtools 0.")
    assert b"torch 2.13.0" in sh("kvtools -v --version").out


def test_same_inputs_give_same_bytes_wherever_they_go(sh, clip):
    sh("mkdir d; kvtools tokenize-video clip.mp4 -o a.kvs; kvtools tokenize-video $PWD/clip.mp4 -o d/b.kvs --jobs 1")
    assert json.loads(sh("kvtools info --json d/b.kvs").out)["history"][0]["argv"] == ["clip.mp4"]
    assert sh("cmp a.kvs d/b.kvs").code == 0
    assert b"directory" in sh("kvtools tokenize-video --stamp clip.mp4 | kvtools info --json -").out


def test_sigterm_leaves_no_temporary_file(sh, stream, tmp_path):
    os.mkfifo(tmp_path / "slow")
    reader = subprocess.Popen([sys.executable, "-m", "kvtools", "cat", "slow", "-o", "out.kvs"], cwd=tmp_path)
    with open(tmp_path / "slow", "wb") as pipe:
        pipe.write(stream.read_bytes()[:3000])
        pipe.flush()
        deadline = time.monotonic() + 20
        while reader.poll() is None and time.monotonic() < deadline:
            reader.terminate()
            try:
                reader.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    assert reader.returncode in (143, -15)  # -15: before Python could take the signal over
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".out")]


@pytest.mark.parametrize(
    "line", ["cat parts.kvs parts.kvs", "cat --prefix parts.kvs ab.kvs", "embed --no-normalize --keys keys rows.npy"]
)
def test_what_a_stopped_or_killed_run_wrote_is_continued(kv, tmp_path, monkeypatch, line):
    np.save(tmp_path / "rows.npy", np.arange(9000 * 2, dtype=np.float32).reshape(-1, 2) + 1)
    (tmp_path / "keys").write_text("".join(f"{i}\n" for i in range(9000)))
    assert kv("embed --keys keys rows.npy -o parts.kvs", "cat parts.kvs -o ab.kvs", f"{line} -o whole.kvs")[0] == 0
    asked = iter([False, False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "__bool__", lambda _: next(asked))
        code, err = kv(f"{line} -o made.kvs")
    assert (code, err.partition(": ")[2]) == (75, "stopped after record 1. Run again to continue.\n")
    assert not (tmp_path / "made.kvs").exists()
    whole, partial = (tmp_path / "whole.kvs").read_bytes(), tmp_path / ".made.kvs.part"
    assert 0 < partial.stat().st_size < len(whole)
    for kept in (partial.read_bytes(), whole[: len(whole) // 2], whole[:-1], whole[:7], b"of another run"):
        partial.write_bytes(kept)
        assert kv(f"{line} --force -o made.kvs")[0] == 0
        assert (tmp_path / "made.kvs").read_bytes() == whole
    partial.write_bytes(whole[:-1])  # of other rows
    np.save(tmp_path / "rows.npy", np.ones((9000, 2), np.float32))
    assert kv("embed --keys keys rows.npy --force -o parts.kvs", f"{line} -o other.kvs", f"{line} --force -o made.kvs")[0] == 0
    assert (tmp_path / "made.kvs").read_bytes() == (tmp_path / "other.kvs").read_bytes() != whole


def test_sigterm_is_no_failure_that_a_library_may_take_for_its_own(kv, stream, monkeypatch):
    """torch's profiler, imported late, goes on after any Exception; and check goes on to its next file after a Fault."""

    def careless(_):
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on after SIGTERM")

    monkeypatch.setattr("kvtools.artifact.open_artifact", careless)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert kv(f"check {stream} {stream}") == (143, "")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "another one does not disturb the end"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_closed_standard_streams_are_survived(sh, stream):
    for line in ("kvtools info clip.kvs", "kvtools cat clip.kvs", "kvtools tokenize-video clip.mp4"):
        done = sh(f"{line} >&-")
        assert done.code == 74, done.err
        assert done.err.count("\n") == 1
    assert sh("kvtools tokenize-video clip.mp4 -o new.kvs >&- 2>&- <&-").code == 0
    assert sh("kvtools info <&-").code == 66


def test_names_with_spaces_and_newlines_keep_messages_on_one_line(sh, stream):
    done = sh(
        "cp clip.mp4 'a b é.mp4'; printf bad > $'ba\\nd.mp4'; kvtools tokenize-video -o n.kvs -- 'a b é.mp4' $'ba\\nd.mp4'"
    )
    assert done.code == 65
    assert done.err.count("\n") == 1
    assert json.loads(sh("kvtools info --json --records n.kvs").out)["key"] == "a b é.mp4"
