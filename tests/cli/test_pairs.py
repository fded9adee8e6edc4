"""Interactions into pairs, as a user types it; what is held out is never looked at."""

import json

import numpy as np
import pytest
from conftest import unsaid

from kvtools.artifact import open_artifact
from kvtools.artifact.strings import unpack

EXISTS = "who.csv: exists already. Give --force to overwrite it."
ROLES = "user, item, time, rating, part, history, author, tag, playtime, duration"
LOG = {f"u{n}": ["a", "b", "c", "d"][n % 2 :] + [f"x{n}", f"y{n}"] for n in range(6)}


@pytest.fixture
def top(tmp_path):
    write(tmp_path / "log.txt", LOG)
    return tmp_path


def write(path, log):
    path.write_text("".join(f"{user} {' '.join(items)}\n" for user, items in log.items()))


def pairs_of(path):
    found = {}
    for record in open_artifact(str(path)):
        keys = unpack("keys", record.tensors)
        rows, scores = record.tensors["pairs"].tolist(), record.tensors["scores"].tolist()
        found |= {(keys[i], keys[j]): score for (i, j), score in zip(rows, scores, strict=True)}
    return found


def test_items_that_users_share_are_paired(sh, top):
    done = sh("kvtools pairs log.txt | tee p.kvs | kvtools check -")
    assert (done.code, done.out, unsaid(done.err)) == (0, b"", "")
    found = pairs_of(top / "p.kvs")
    assert {i + j for i, j in found} == {"ab", "ba", "ac", "ca", "ad", "da", "bc", "cb", "bd", "db", "cd", "dc"}
    # a: three pairs of users who share abcd; b: twelve more who share bcd
    assert found["a", "b"] == pytest.approx(3 / 5)
    assert found["b", "c"] == pytest.approx(3 / 5 + 12 / 4)


def test_what_is_held_out_is_never_looked_at(sh, top):
    before = sh("kvtools pairs log.txt | kvtools sum -").out
    write(top / "log.txt", {user: [*items[:-2], "a", "d"] for user, items in LOG.items()})
    assert sh("kvtools pairs log.txt | kvtools sum -").out == before
    assert sh("kvtools pairs --all log.txt | kvtools sum -").out != before


def test_a_part_column_is_respected(sh, top):
    rows = [(u, i, t, "train" if i in "bcd" else "test") for u, items in LOG.items() for t, i in enumerate(items)]
    (top / "log.csv").write_text("user_id,item_id,t,part\n" + "".join(f"{u},{i},{t},{p}\n" for u, i, t, p in rows))
    assert sh("kvtools pairs log.csv -o p.kvs").code == 0
    assert {i + j for i, j in pairs_of(top / "p.kvs")} == {"bc", "cb", "bd", "db", "cd", "dc"}


def test_u2i_pairs_a_click_with_what_came_before(sh, top):
    assert sh("kvtools pairs --method u2i log.txt -o p.kvs").code == 0
    assert {i + j for i, j in pairs_of(top / "p.kvs")} == {"ba", "cb", "dc"}
    assert sh("kvtools pairs --method u2i --latest 50 log.txt | kvtools sum -").out == sh("kvtools sum - < p.kvs").out


def test_both_is_the_union_and_top_limits_each_item(sh, top):
    sh("kvtools pairs --method swing --top 1 log.txt -o s.kvs; kvtools pairs --method u2i log.txt -o u.kvs")
    sh("kvtools pairs --top 1 log.txt -o both.kvs")
    one, two = pairs_of(top / "s.kvs"), pairs_of(top / "u.kvs")
    assert sorted(i for i, _ in one) == ["a", "b", "c", "d"]
    assert pairs_of(top / "both.kvs") == one | two


def test_only_good_ratings_and_frequent_items_count(sh, top):
    rows = [(u, i, t, 5 if i != "b" else 1) for u, items in LOG.items() for t, i in enumerate(items)]
    header = "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
    (top / "log.inter").write_text(header + "".join(f"{u}\t{i}\t{t}\t{r}\n" for u, i, t, r in rows))
    sh("kvtools pairs --min-rating 4 log.inter -o p.kvs; kvtools pairs --min-count 4 log.inter -o q.kvs")
    assert {i for pair in pairs_of(top / "p.kvs") for i in pair} == {"a", "c", "d"}
    assert {i for pair in pairs_of(top / "q.kvs") for i in pair} == {"b", "c", "d"}


def test_caps_are_reported(sh, top):
    done = sh("kvtools pairs --max-users 4 --max-items 3 --report r.json log.txt -o p.kvs")
    assert done.code == 0
    assert "there are users with more than 3 clicks, compared by their latest, 3 in all (u0, u2, u4)." in done.err
    assert "there are items with more than 4 users, sampled, 3 in all (b, c, d)." in done.err
    report = json.loads((top / "r.json").read_text())
    assert report["findings"]["items with more than 4 users, sampled"]["count"] == 3
    assert report["pairs"] == len(pairs_of(top / "p.kvs"))
    again = [sh("kvtools pairs -q --max-users 4 log.txt | kvtools sum -").out for _ in range(2)]
    assert again[0] == again[1]


def test_one_bad_row_does_not_lose_the_others(sh, top):
    rows = [(u, i, t) for u, items in LOG.items() for t, i in enumerate(items)]
    text = "user_id,item_id,t\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    (top / "good.csv").write_text(text)
    (top / "bad.csv").write_text(text + ",a,1\nu9,b,soon\n")
    done = sh("kvtools pairs bad.csv -o p.kvs")
    assert done.code == 65
    assert unsaid(done.err).splitlines() == [
        f"kvtools pairs: bad.csv: rows without user were left out, 1 in all (row {len(rows) + 1}).",
        f"kvtools pairs: bad.csv: rows whose time cannot be read were left out, 1 in all (row {len(rows) + 2}).",
    ]
    assert sh("kvtools sum - < p.kvs").out == sh("kvtools pairs good.csv | kvtools sum -").out
    strict = sh("kvtools pairs --strict bad.csv -o q.kvs")
    assert (strict.code, strict.err.count("\n")) == (65, 1)
    assert sh("test -e q.kvs").code == 1


def test_copies_and_disorder_are_put_right_and_reported_when_asked(sh, top):
    rows = [f"{u},{i},{t}\n" for u, items in LOG.items() for t, i in enumerate(items)]
    (top / "good.csv").write_text("user_id,item_id,t\n" + "".join(rows))
    (top / "mixed.csv").write_text("user_id,item_id,t\n" + "".join([*reversed(rows), rows[0]]))
    done = sh("kvtools pairs mixed.csv -o p.kvs")
    assert (done.code, unsaid(done.err)) == (0, "")
    assert pairs_of(top / "p.kvs") == pytest.approx(pairs_of_log(sh, top))
    verbose = sh("kvtools pairs -v mixed.csv | kvtools check -")
    assert "rows out of time order were sorted" in verbose.err
    assert f"rows equal to another in all columns read were merged with it, 1 in all (row {len(rows) + 1})." in verbose.err


def pairs_of_log(sh, top):
    sh("kvtools pairs good.csv -o good.kvs")
    return pairs_of(top / "good.kvs")


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("kvtools pairs nothing.csv", 66, "nothing.csv: no such file or directory. Look at its name and its permissions."),
        (
            "kvtools pairs apart.txt",
            65,
            "apart.txt: no two users share two items among the 4 interactions used. Give more of them.",
        ),
        ("kvtools pairs empty.txt", 65, "empty.txt: this is empty. Give a table."),
        (
            "kvtools pairs who.csv",
            65,
            "who.csv: there is no user column among who, what. Name it with --column user=COL.",
        ),
        (
            "kvtools pairs who.csv --column user=whom --column item=what",
            65,
            "who.csv: there is no column 'whom' among who, what. Name the right one.",
        ),
        (
            "kvtools pairs who.csv --column what=item",
            2,
            f"--column what=item is not ROLE=COL. Give one of the roles {ROLES}, and a column.",
        ),
        (
            "kvtools pairs log.txt --min-rating 4",
            2,
            "--min-rating needs ratings, and log.txt has none. Name their column with --column rating=COL.",
        ),
        ("kvtools pairs log.txt -o log.txt --force", 2, "log.txt: this is both an input and the output. Name another output."),
        ("kvtools pairs log.txt -o who.csv", 73, EXISTS),
        ("kvtools pairs log.txt --report who.csv", 73, EXISTS),
    ],
)
def test_errors_are_one_line_with_their_code(sh, top, line, code, sentence):
    (top / "apart.txt").write_text("u a b c d\nv e f g h\n")
    (top / "empty.txt").write_text("")
    (top / "who.csv").write_text("who,what\nu,a\nv,b\n")
    done = sh(line)
    assert (done.code, done.out, unsaid(done.err)) == (code, b"", f"kvtools pairs: {sentence}\n")


def test_beauty_is_paired_in_seconds(sh, top, data):
    done = sh(f"kvtools pairs {data}/rec/amazon_beauty_2014/sequential_data.txt -o p.kvs --report r.json", timeout=60)
    assert (done.code, unsaid(done.err)) == (0, "")
    report = json.loads((top / "r.json").read_text())
    assert (report["interactions"], report["users"]) == (149_961, 22_363)
    found = pairs_of(top / "p.kvs")
    assert len(found) == report["pairs"]
    assert np.bincount(np.unique([i for i, _ in found], return_inverse=True)[1]).max() >= 20
