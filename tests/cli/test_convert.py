"""A file of other people's making into an artifact, and on from there, as a user types it."""

import json

import pytest

LOG = {f"u{n}": ["a", "b", "c", "d"][n % 2 :] + [f"x{n}", f"y{n}"] for n in range(6)}
TOLD = (
    "kvtools convert: clicks.csv: CSV, columns user_id (user), item_id (item), timestamp (time), rating. 33 rows read, "
    "33 kept (rows out of time order, sorted: 27). 6 users, 16 items, in the order of time.\n"
)


@pytest.fixture
def top(tmp_path):
    # out of user and of time order: what text numbers in its own order must not show in the pairs
    rows = [(u, i, t, 3 + t % 3) for u, items in LOG.items() for t, i in enumerate(items)][::-1]
    (tmp_path / "clicks.csv").write_text(
        "user_id,item_id,timestamp,rating\n" + "".join(f"{u},{i},{t},{r}\n" for u, i, t, r in rows)
    )
    (tmp_path / "clicks.txt").write_text("".join(f"{user} {' '.join(items)}\n" for user, items in LOG.items()))
    return tmp_path


def test_a_log_becomes_a_stream_and_the_stream_becomes_pairs(sh, top):
    done = sh("kvtools convert clicks.csv | kvtools pairs - | kvtools info --records -")
    assert (done.code, done.err) == (0, TOLD)
    assert b"pairs I32(" in done.out
    sh("kvtools convert clicks.csv -o clicks.kvs")
    checked = sh("kvtools check clicks.kvs && zstd -tq clicks.kvs")
    assert (checked.code, checked.out, checked.err) == (0, b"", "")
    line = json.loads(sh("kvtools info --json clicks.kvs").out)
    assert (line["kind"], line["records"]) == ("interaction", 1)


@pytest.mark.parametrize("log", ["clicks.csv", "clicks.txt"])
@pytest.mark.parametrize("options", ["", "--top 1", "--all --max-users 3 -q"])
def test_pairs_are_the_same_from_text_and_from_the_stream(sh, top, log, options):
    from_text = sh(f"kvtools pairs {options} {log} | kvtools sum -")
    sh(f"kvtools convert {log} -o clicks.kvs")
    from_stream = sh(f"kvtools pairs {options} clicks.kvs | kvtools sum -")
    assert (from_text.code, from_stream.code) == (0, 0)
    assert from_text.out == from_stream.out


def test_the_history_tells_of_the_conversion(sh, top):
    sh("kvtools convert clicks.csv -o clicks.kvs; kvtools pairs clicks.kvs -o p.kvs")
    first, second = json.loads(sh("kvtools info --json p.kvs").out)["history"]
    assert (first["command"], first["argv"]) == ("convert", ["clicks.csv"])
    assert (second["command"], second["parents"]) == ("pairs", [first["id"]])


def test_the_same_log_gives_the_same_bytes_and_a_stream_converts_into_itself(sh, top):
    sh("kvtools convert clicks.csv -o a.kvs; cat clicks.csv | kvtools convert -o b.kvs; kvtools convert a.kvs -o c.kvs")
    assert sh("kvtools convert clicks.csv -o a2.kvs; cmp a.kvs a2.kvs").code == 0
    sums = sh("kvtools sum a.kvs b.kvs c.kvs").out.split()[::2]
    assert len(set(sums)) == 1
    assert sh("kvtools convert --compress 0 clicks.csv | kvtools sum -").out.split()[0] == sums[0]


def test_streams_of_other_users_may_be_joined(sh, top):
    sh("head -3 clicks.txt | kvtools convert -o a.kvs; tail -3 clicks.txt | kvtools convert -o b.kvs")
    whole = sh("kvtools pairs clicks.txt | kvtools sum -").out
    assert sh("kvtools cat a.kvs b.kvs | kvtools pairs - | kvtools sum -").out == whole
    assert sh("cat a.kvs b.kvs | kvtools pairs - | kvtools sum -").out == whole
    again = sh("cat a.kvs b.kvs a.kvs | kvtools pairs - -o p.kvs")
    assert again.code == 65
    assert "stdin: record 2: user 'u0' has interactions elsewhere too; a user's interactions must lie together." in again.err


def test_columns_are_named(sh, top):
    (top / "odd.csv").write_text("who,what,when\nu,a,2\nu,b,1\nv,a,1\nv,b,2\nw,a,3\n")
    done = sh("kvtools convert --column user=who --column item=what --column time=when odd.csv -o odd.kvs")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "columns who (user), what (item), when (time). 5 rows read, 5 kept (" in done.err
    assert "times I64(5)" in sh("kvtools info --records odd.kvs").out.decode()


@pytest.mark.parametrize("n_bytes", [0, 3, 100, 400, -1])
def test_a_truncated_stream_is_refused(sh, top, n_bytes):
    sh("kvtools convert clicks.csv -o clicks.kvs")
    done = sh(f"head -c {n_bytes} clicks.kvs > cut.kvs; kvtools pairs cut.kvs -o p.kvs")
    assert done.code == 65
    assert done.err.startswith("kvtools pairs: cut.kvs: ")
    assert done.err.count("\n") == 1
    assert sh("test -e p.kvs").code == 1


def test_any_flipped_byte_is_refused(sh, top):
    sh("head -2 clicks.txt | kvtools convert --compress 0 -o clicks.kvs")
    whole = (top / "clicks.kvs").read_bytes()
    for place in range(0, len(whole), 97):
        (top / "bad.kvs").write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        done = sh("kvtools pairs --all bad.kvs -o p.kvs")
        assert (done.code, done.err.count("\n")) == (65, 1), place


def test_one_bad_row_does_not_lose_the_others(sh, top):
    good = (top / "clicks.csv").read_text()
    (top / "bad.csv").write_text(good + ",a,1,5\nu9,b,soon,5\n")
    done = sh("kvtools convert bad.csv -o bad.kvs")
    assert done.code == 65
    assert done.err.splitlines() == [
        "kvtools convert: bad.csv: rows without user were left out, 1 in all (row 34).",
        "kvtools convert: bad.csv: rows whose time cannot be read were left out, 1 in all (row 35).",
        TOLD.strip()
        .replace("clicks.csv", "bad.csv")
        .replace(
            "33 rows read, 33 kept (",
            "35 rows read, 33 kept (rows without user left out: 1; rows whose time cannot be read left out: 1; ",
        ),
    ]
    assert sh("kvtools sum bad.kvs").out.split()[0] == sh("kvtools convert clicks.csv | kvtools sum -").out.split()[0]
    quiet = sh("kvtools convert -q bad.csv | kvtools check -").err
    assert quiet.splitlines() == done.err.splitlines()[:2], "what is lost is told even quietly"
    strict = sh("kvtools convert --strict bad.csv -o no.kvs")
    assert (strict.code, strict.err.count("\n")) == (65, 1)
    assert sh("test -e no.kvs").code == 1
    assert "rows out of time order were sorted, 27 in all" in sh("kvtools convert -v clicks.csv | kvtools check -").err


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("kvtools convert nothing.csv", 66, "no such file"),
        ("kvtools convert empty.txt", 65, "empty.txt: this is empty. Give interactions or conversations."),
        (
            "kvtools convert p.kvs",
            65,
            "p.kvs: this is a stream of kind pair, and kind interaction is needed. Make one with kvtools convert.",
        ),
        ("kvtools convert who.csv", 65, "who.csv: there is no user column among who, what. Name it with --column user=COL."),
        (
            "kvtools convert who.csv --column what=item",
            2,
            "--column what=item is not ROLE=COL. Give one of the roles user, item, time,",
        ),
        (
            "kvtools convert i.kvs --column user=who",
            2,
            "--column cannot be used with i.kvs, a stream, whose columns have fixed names. Leave it out.",
        ),
        (
            "kvtools pairs i.kvs --column user=who",
            2,
            "--column cannot be used with i.kvs, a stream, whose columns have fixed names. Leave it out.",
        ),
        (
            "kvtools convert clicks.txt -o clicks.txt --force",
            2,
            "clicks.txt: this is both an input and the output. Name another output.",
        ),
        ("kvtools convert clicks.txt -o who.csv", 73, "--force"),
        ("kvtools convert -q clicks.txt > /dev/full", 74, "no space left"),
    ],
)
def test_errors_are_one_line_with_their_code(sh, top, line, code, words):
    sh("kvtools pairs clicks.txt -o p.kvs; kvtools convert clicks.txt -o i.kvs")
    (top / "empty.txt").write_text("")
    (top / "who.csv").write_text("who,what\nu,a\nv,b\n")
    done = sh(line)
    assert (done.code, done.out) == (code, b""), done.err
    assert words in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("path", ["amazon_beauty_2014/sequential_data.txt", "ml-100k/ml-100k.inter"])
def test_real_logs_pair_alike_from_text_and_stream(sh, data, path):
    log = f"{data}/rec/{path}"
    options = "--max-users 100 --max-items 50"
    from_text = sh(f"kvtools pairs -q {options} {log} | kvtools sum -").out
    assert sh(f"kvtools convert {log} | kvtools pairs -q {options} - | kvtools sum -").out == from_text
