"""Interactions read from every form people keep them in, and split."""

import io

import numpy as np
import pytest
from conftest import n_skipped
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID, leave_last_out, parts_of, read_interactions


def read(text, **options):
    return read_interactions(io.BufferedReader(io.BytesIO(text.encode())), "x", **options)


def sequences(interactions):
    """{user: [(item, time), …]} in the order held."""
    items = interactions.item_keys[interactions.items]
    return {
        str(user): [(str(i), t) for i, t in zip(items[a:b], interactions.times[a:b].tolist(), strict=True)]
        for user, a, b in zip(interactions.user_keys, interactions.offsets[:-1], interactions.offsets[1:], strict=True)
    }


rows = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from(["a", "b", "007", "7", "é"]), st.integers(0, 5)), min_size=1, max_size=30
)


@settings(deadline=None, max_examples=60)
@given(rows)
def test_rows_come_back_by_user_in_time_order_without_copies(rows):
    found, skipped = read("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    expected = {}
    for user, item, time in rows:
        have = expected.setdefault(user, [])
        if (item, time) not in have:
            have.append((item, time))
    expected = {user: sorted(have, key=lambda pair: pair[1]) for user, have in expected.items()}  # stable: ties as in the file
    assert sequences(found) == expected
    assert list(sequences(found)) == list(expected)
    copies = len(rows) - sum(map(len, expected.values()))
    assert skipped.counts.get("rows equal to another in all columns read, merged with it", 0) == copies
    assert n_skipped(skipped) == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_the_last_is_test_and_the_one_before_valid(counts):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    parts = leave_last_out(offsets)
    for begin, end in zip(offsets[:-1], offsets[1:], strict=True):
        mine = parts[begin:end].tolist()
        assert mine == ([TRAIN] * (len(mine) - 2) + [VALID, TEST] if len(mine) >= 3 else [TRAIN] * len(mine))


def test_all_forms_of_one_log_read_alike():
    log = {"u": ["a", "b", "c"], "v": ["b"], "w": ["c", "a"]}
    lines = [(u, i, t) for u, items in log.items() for t, i in enumerate(items)]
    forms = [
        "".join(f"{u} {' '.join(items)}\n" for u, items in log.items()),
        "user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i, _ in lines),
        "\ufeffuser,item,time\r\n" + "".join(f'"{u}","{i}",{t}\r\n' for u, i, t in lines),
        "userId\tmovieId\ttimestamp\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in reversed(lines)),
        "item_id:token\tuser_id:token\ttimestamp:float\n" + "".join(f"{i}\t{u}\t{t}.0\n" for u, i, t in lines),
    ]
    expected = {u: [(i, t) for t, i in enumerate(items)] for u, items in log.items()}
    for form in forms:
        assert sequences(read(form)[0]) == expected, form


def test_columns_are_named_by_the_caller():
    found, _ = read("who,what,when,stars\nu,b,2020-01-02,4\nu,a,2020-01-01,2.5\n", columns={
        "user": "who", "item": "what", "time": "when", "rating": "stars",
    })  # fmt: skip
    assert sequences(found) == {"u": [("a", 1577836800.0), ("b", 1577923200.0)]}
    assert found.ratings.tolist() == [2.5, 4.0]
    with pytest.raises(Corrupt, match="^x: there is no user column among who, what. Name it with --column user=COL.$"):
        read("who,what\nu,a\n")
    with pytest.raises(Corrupt, match="there is no column 'whom' among"):
        read("who,what\nu,a\n", columns={"user": "whom", "item": "what"})


def test_one_bad_date_does_not_lose_the_others():
    log = "user,item,time\nu,b,2020-01-01T10:00:00Z\nu,a,2019-12-31T23:59:59Z\nu,c,2020-01-02T00:00:00Z\n"
    expected = {"u": [("a", 1577836799.0), ("b", 1577872800.0), ("c", 1577923200.0)]}
    assert sequences(read(log)[0]) == expected
    found, skipped = read(log + "u,d,yesterday\nv,d,7\n")
    assert sequences(found) == expected
    assert skipped.lines(skipped=True) == ["rows whose time cannot be read were left out, 2 in all (row 4, row 5)"]


def test_a_pipe_may_bring_the_header_in_pieces():
    class Pipe(io.RawIOBase):
        left = b"user_id,item_id\nu,a\nu,b\n"

        def readable(self):
            return True

        def readinto(self, buffer):
            piece, self.left = self.left[:3], self.left[3:]
            buffer[: len(piece)] = piece
            return len(piece)

    assert sequences(read_interactions(io.BufferedReader(Pipe()), "x")[0]) == {"u": [("a", 0), ("b", 1)]}


def test_bad_rows_are_counted_and_named_and_the_others_kept():
    found, skipped = read(
        "user_id,item_id,timestamp,rating,part\n"
        "u,a,1,5,train\n"
        ",b,2,5,train\n"
        "u,,3,5,train\n"
        "u,c,soon,5,train\n"
        "u,d,,5,train\n"
        "u,e,5,inf,train\n"
        "u,f,6,5,maybe\n"
        "u,g\n"
        "u,h,8,5,Valid\n"
        "u,b,7,5,test\n"
        "u,h,8,5,valid\n"
    )
    assert sequences(found) == {"u": [("a", 1.0), ("e", 5.0), ("b", 7.0), ("h", 8.0)]}
    assert found.parts.tolist() == [TRAIN, TRAIN, TEST, VALID]
    np.testing.assert_array_equal(found.ratings, [5, np.nan, 5, 5])
    assert parts_of(found) is found.parts
    assert n_skipped(skipped) == 7
    assert skipped.lines(skipped=True) == [
        "rows without user were left out, 1 in all (row 2)",
        "rows without item were left out, 1 in all (row 3)",
        "rows without time were left out, 1 in all (row 5)",
        "rows whose time cannot be read were left out, 1 in all (row 4)",
        "ratings that cannot be read were taken as unknown, 1 in all (row 6)",
        "rows whose part is none of train, valid and test were left out, 1 in all (row 7)",
        "rows with too many or too few cells were left out, 1 in all (row 8 has 2, not 5)",
    ]
    assert skipped.lines(skipped=False) == [
        "rows out of time order were sorted, 1 in all (row 10)",
        "rows equal to another in all columns read were merged with it, 1 in all (row 11)",
    ]


def test_keys_are_never_taken_for_numbers():
    found, _ = read("user_id,item_id\n007,1e3\n7,1000\n")
    assert found.user_keys.tolist() == ["007", "7"]
    assert found.item_keys.tolist() == ["1e3", "1000"]


def test_a_repetition_without_times_is_no_copy():
    assert sequences(read("u a a b\nv\nu c\n")[0]) == {"u": [("a", 0), ("a", 1), ("b", 2), ("c", 3)]}
    _, skipped = read("u a a b\nv\nu c\n")
    assert skipped.to_json() == {
        "users without items left out": {"count": 1, "first": ["v"], "lost": True},
        "lines of a user who had one already, joined to it": {"count": 1, "first": [], "lost": False},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"x: this is empty\. Give a table\.$"),
        ("\n", r"x: this is empty\. Give a table\.$"),
        ("\0a\0b\n", r"x: this is not text\. Give a table\.$"),
        ("user_id,item_id\n", "no interactions are left to use"),
        ("user_id,item_id,timestamp\n", "no interactions are left to use"),
        ("user_id,item_id,timestamp\nu,i,12/04/1997\n", "no interactions are left to use"),
        ("user_id item_id timestamp\n1 2 3\n", "columns are separated by ' '. Use tabs or commas, as tr ' ' '.t' makes them"),
        (
            "1::1193::5::978300760\n",
            "the first row looks like cells. Name the columns with kvtools convert --columns, as in user",
        ),
        (
            "1 1193 978300760\n2 661 978302109\n",
            "look like the rows of a table, with a time, and not like a user and items. Name",
        ),
        ("u\n", "no interactions are left to use"),
        ("user_id,item_id\nu,\udcff\n", r"rows whose item is not in this encoding .* were left out, 1 in all \(row 1\)\."),
        (
            "PK\x03\x04\0\0",
            r"x: this is a zip archive, and a table is needed\. Give the file that is meant, unpacked or exported\.$",
        ),
    ],
)
def test_what_is_no_table_is_refused(text, words):
    with pytest.raises(Corrupt, match=f"(?i){words}"):
        read_interactions(io.BufferedReader(io.BytesIO(text.encode("utf-8", "surrogateescape"))), "x")


def test_words_may_have_marks_in_them():
    found, _ = read("u|1 a;b c::d\n")
    assert sequences(found) == {"u|1": [("a;b", 0), ("c::d", 1)]}


def test_lines_of_words_have_no_columns_to_name():
    with pytest.raises(Usage, match="^--column cannot be used with x, which has lines of words and no columns. Leave it out.$"):
        read("u a b\n", columns={"user": "who"})


def test_keeping_some_keeps_the_numbers_of_users_and_items():
    found, _ = read("u a b c\nv d e\n")
    kept = found.keep(np.array([True, False, True, False, True]))
    assert sequences(kept) == {"u": [("a", 0), ("c", 2)], "v": [("e", 1)]}
    assert kept.users().tolist() == [0, 0, 1]
    assert kept.item_keys is found.item_keys


@pytest.mark.parametrize(
    ("path", "n_users", "n_items", "parts"),
    [
        ("amazon_beauty_2014/sequential_data.txt", 22_363, 12_101, [149_961, 22_363, 22_363]),
        ("ml-100k/ml-100k.inter", 943, 1682, [98_114, 943, 943]),
        ("amazon_industrial_and_scientific/derived_sequences.csv", 3285, 3541, [13_678, 4532, 4533]),
    ],
)
def test_real_logs_have_the_sizes_their_makers_say(data, path, n_users, n_items, parts):
    with open(data / "rec" / path, "rb", buffering=1 << 20) as file:
        found, skipped = read_interactions(file, path)
    assert (len(found.user_keys), len(found.item_keys), n_skipped(skipped)) == (n_users, n_items, 0)
    assert np.bincount(parts_of(found)).tolist() == parts
    assert found.ratings is None or (found.ratings.min(), found.ratings.max()) == (1, 5)
