"""Interactions through a stream and back; numbers that cannot be meant are refused with their record."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Reader, Writer
from kvtools.artifact.strings import pack
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions import stream as interaction_stream
from kvtools.onerec.interactions.log import read_interactions
from kvtools.onerec.interactions.stream import open_interactions, read_stream, roles, write_interactions

TITLE = "user_id,item_id,timestamp,rating,part,author,tag,playtime,duration\n"
cells = st.tuples(
    st.sampled_from("uvwxyz"),
    st.sampled_from(["a", "b", "007", "7", "é"]),
    st.integers(0, 9),
    st.sampled_from(["1", "2.5"]),
    st.sampled_from(["train", "valid", "test"]),
    st.sampled_from(["", "p", "q"]),
    st.sampled_from(["", "r", "s"]),
    st.sampled_from(["", "3", "0.5", "long"]),
    st.sampled_from(["", "60"]),
)


def text_of(rows):
    return TITLE + "".join(",".join(map(str, row)) + "\n" for row in rows)


def same(one, two):
    for name in (field.name for field in dataclasses.fields(one) if field.name != "account"):
        a, b = getattr(one, name), getattr(two, name)
        assert type(a) is type(b), name
        for x, y in [(a[role], b[role]) for role in a.keys() | b.keys()] if isinstance(a, dict) else [(a, b)]:
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None), name


def write(path, found):
    with Writer(Sink(str(path), force=True), Head("interaction")) as writer:
        write_interactions(found, writer)
    return writer.n_records


@settings(deadline=None, max_examples=60)
@given(st.lists(cells, min_size=1, max_size=40), st.integers(1, 12), st.sets(st.sampled_from(range(2, 9))))
def test_text_and_stream_hold_the_same_whatever_the_batch(tmp_path_factory, rows, batch, without):
    top = tmp_path_factory.mktemp("stream")
    lines = [TITLE.strip().split(","), *rows]
    kept = [[str(cell) for place, cell in enumerate(line) if place not in without] for line in lines]
    (top / "x.csv").write_text("".join(",".join(line) + "\n" for line in kept))
    text, _, history = open_interactions(str(top / "x.csv"))
    assert history == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interaction_stream, "_BATCH", batch)
        n_records = write(top / "x.kvs", text)
    assert n_records <= len(text.user_keys)
    stream, skipped, _ = open_interactions(str(top / "x.kvs"))
    same(text, stream)
    assert skipped.counts == {}


def test_what_is_taken_up_first_is_numbered_first():
    text = "v b 7\nu a b\nv c b\n"
    file = io.BufferedReader(io.BytesIO(text.encode()))
    found = interaction_stream.in_order(read_interactions(file, "x")[0])
    assert found.user_keys.tolist() == ["v", "u"]
    assert found.item_keys.tolist() == ["b", "7", "c", "a"]
    assert found.items.tolist() == [0, 1, 2, 0, 3, 0]


def test_users_without_interactions_stay_and_items_without_users_go(tmp_path):
    (tmp_path / "x.txt").write_text("u a b\nv c\nw a\n")
    found, _, _ = open_interactions(str(tmp_path / "x.txt"))
    write(tmp_path / "x.kvs", found.keep(found.items != 2))
    again, _, _ = open_interactions(str(tmp_path / "x.kvs"))
    assert (again.user_keys.tolist(), again.item_keys.tolist()) == (["u", "v", "w"], ["a", "b"])
    assert (again.offsets.tolist(), again.items.tolist(), again.times.tolist()) == ([0, 2, 2, 3], [0, 1, 0], [0, 1, 0])
    write(tmp_path / "none.kvs", found.keep(found.items < 0))
    with pytest.raises(Corrupt, match="none.kvs: there are no interactions in it. Look at the stage before this one.$"):
        open_interactions(str(tmp_path / "none.kvs"))


def test_records_are_bounded_but_for_their_last_user(tmp_path, monkeypatch):
    monkeypatch.setattr(interaction_stream, "_BATCH", 10)
    (tmp_path / "x.txt").write_text("".join(f"u{n} {'a ' * (n % 5 + 1)}\n" for n in range(50)) + f"v {'b ' * 99}\n")
    write(tmp_path / "x.kvs", open_interactions(str(tmp_path / "x.txt"))[0])
    with open(tmp_path / "x.kvs", "rb", buffering=1 << 16) as file:
        records = [(len(r.tensors["items"]), len(r.tensors["offsets"]) - 1) for r in Reader(file, "x")]
    assert sum(n for n, _ in records) == 150 + 99
    assert all(n + users <= 10 + 6 for n, users in records[:-1])


def test_a_user_with_too_many_interactions_for_a_record_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("kvtools.artifact.zstd_frame.MAX_RAW_BYTES", 4000)
    (tmp_path / "x.txt").write_text(f"u a b\nv {'a ' * 2000}\n")
    with pytest.raises(Corrupt, match="^user 'v': record 00000000 is .* bytes, .* Leave out some of the interactions.$"):
        write(tmp_path / "x.kvs", open_interactions(str(tmp_path / "x.txt"))[0])
    assert not (tmp_path / "x.kvs").exists()


def record(users=("u", "v"), keys=("a", "b"), **columns):
    tensors = {"offsets": np.array([0, 2, 3]), "items": np.array([0, 1, 1], np.int32), "times": np.array([5, 6, 1])}
    return {**tensors, **pack("users", users), **pack("keys", keys), **columns}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"offsets": np.array([0, 2, 2])}, "offsets do not run from 0 to the end of the items"),
        ({"offsets": np.array([1, 2, 3])}, "offsets do not run from 0 to the end of the items"),
        ({"offsets": np.array([0, 5, 3])}, "offsets do not run from 0 to the end of the items"),
        ({"offsets": np.array([0, 3])}, "users.offsets|offsets is I64"),
        ({"items": np.array([0, 2, 1], np.int32)}, r"items\[1\] is 2, and must be 0 to 1"),
        ({"items": np.array([0, 1, -1], np.int32)}, r"items\[2\] is -1, and must be 0 to 1"),
        ({"items": np.array([0, 1], np.int32)}, "I32|I64"),
        ({"times": np.array([6, 5, 1])}, r"times\[0\] is 6, and the time after it is earlier"),
        ({"times": np.array([5, np.nan, 1])}, r"times\[1\] is nan, and must be finite"),
        ({"ratings": np.array([5, np.inf, 1], np.float32)}, r"ratings\[1\] is inf, and must be finite"),
        ({"parts": np.array([0, 2, 3], np.uint8)}, r"parts\[2\] is 3, and must be 0 \(train\), 1 \(valid\) or 2 \(test\)"),
        ({"parts": np.array([0, -1, 2], np.int8)}, r"parts\[1\] is -1, and must be 0 \(train\), 1 \(valid\) or 2 \(test\)"),
        (
            {"playtime": np.array([0, np.nan, -np.inf])},
            r"playtime\[2\] is -inf, and must be finite, or NaN where it is unknown",
        ),
        ({"author": np.zeros(3, np.int32)}, "author are numbers, and the authors that they stand for are missing"),
        ({"tag": np.array([0, 0, 1], np.int32), **pack("tags", ["t"])}, r"tag\[2\] is 1, and must be 0 to 0"),
        (pack("users", ["u", "u"]), "user 'u' has interactions elsewhere too; a user's interactions must lie together"),
        ({"users.bytes": np.array([117, 255], np.uint8)}, "utf-8"),
        ({"keys.bytes": np.array([97, 255], np.uint8)}, "utf-8"),
        ({"more": np.zeros(3)}, "it has a tensor more, which kind interaction does not have"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_with_their_record(tmp_path, bad, words):
    with Writer(Sink(str(tmp_path / "x.kvs")), Head("interaction")) as writer:
        writer.write("0", record(users=["w", "x"]))
        writer.write("1", record(**bad))
    with pytest.raises(Corrupt, match=f"x.kvs: record 1: .*({words})"):
        open_interactions(str(tmp_path / "x.kvs"))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (record(users=["x", "u"]), "user 'u' has interactions elsewhere too; a user's interactions must lie together"),
        (
            record(users=["x", "y"], ratings=np.ones(3, np.float32)),
            "its columns are items int32, times int64, ratings float32, and those of the records before are",
        ),
        (
            record(users=["x", "y"], times=np.array([5.0, 6, 1])),
            "its columns are items int32, times float64, and those of the records before are items int32, times int64",
        ),
    ],
)
def test_records_that_do_not_go_together_are_refused(tmp_path, second, words):
    for name, tensors in (("a.kvs", record()), ("b.kvs", second)):
        with Writer(Sink(str(tmp_path / name)), Head("interaction")) as writer:
            writer.write("0", tensors)
    both = io.BufferedReader(io.BytesIO((tmp_path / "a.kvs").read_bytes() + (tmp_path / "b.kvs").read_bytes()))
    with pytest.raises(Corrupt, match=f"x: record 1: .*{words}"):
        read_stream(Reader(both, "x"))


def test_records_of_any_number_of_parts_are_joined(tmp_path):
    with Writer(Sink(str(tmp_path / "x.kvs")), Head("interaction")) as writer:
        writer.write("0", record())
        writer.write("1", record(users=["w", "x"], keys=["c", "a"]))
    found, _, _ = open_interactions(str(tmp_path / "x.kvs"))
    assert found.item_keys[found.items].tolist() == ["a", "b", "b", "c", "a", "a"]
    assert found.item_keys.tolist() == ["a", "b", "c"]
    assert found.user_keys[found.users()].tolist() == ["u", "u", "v", "w", "w", "x"]


def test_roles_are_said_as_role_and_column(tmp_path):
    assert roles([]) == {}
    assert roles(["user=who", "time=a=b", "user=whom", "rating="]) == {"user": "whom", "time": "a=b", "rating": ""}
    for word in ("what=item", "user", ""):
        with pytest.raises(
            Usage, match=f"^--column {word} is not ROLE=COL. Give one of the roles user, item, time, .*, and a column.$"
        ):
            roles([word])
    with Writer(Sink(str(tmp_path / "x.kvs")), Head("interaction")) as writer:
        writer.write("0", record())
    with pytest.raises(
        Usage, match="^--column cannot be used with .*x.kvs, a stream, whose columns have fixed names. Leave it out.$"
    ):
        open_interactions(str(tmp_path / "x.kvs"), columns={"user": "who"})
