"""Interactions, titles and semantic IDs in the files that people have, read right or refused by name."""

import bz2
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from kvtools.errors import Corrupt
from kvtools.onerec.interactions.files import holds
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID, Source, parts_of, read_all, read_interactions
from kvtools.onerec.items.catalogue import read_catalogue, read_titles
from kvtools.onerec.semantic_ids.published import codes_of_id, read_ids, written


def opened(data):
    return io.BufferedReader(io.BytesIO(data if isinstance(data, bytes) else data.encode()))


def read(data, **options):
    return read_interactions(opened(data), "x", **options)


def items(found):
    """{user: items in order}."""
    ends = found.offsets.tolist()
    keys = found.item_keys[found.items].tolist()
    return {user: keys[a:b] for user, a, b in zip(found.user_keys.tolist(), ends[:-1], ends[1:], strict=True)}


@pytest.mark.parametrize(
    "title",
    [
        "user_id,item_id,time_ms",
        "User ID,Item.ID,TS",
        "reviewerID,asin,unixReviewTime",
        "uid,Video_Id,Event Time",
        "USER,sku,date",
        "customer_id,gmap id,t_dat",
        "userId,venueId,utcTimestamp",
    ],
)
def test_columns_are_known_by_the_names_of_public_logs(title):
    found, _ = read(f"{title}\nu,late,200\nu,early,100\nu,last,300\n")
    assert items(found) == {"u": ["early", "late", "last"]}
    assert found.account.order == "time"
    assert found.account.tables[0].unused == ()


def test_a_moment_goes_before_a_day_and_both_are_told():
    found, _ = read("user_id,video_id,date,time_ms\nu,b,20220408,1649400000002\nu,a,20220408,1649400000001\n")
    assert items(found) == {"u": ["a", "b"]}
    assert "'date' looks like a time and is not used" in found.account.line() or found.account.tables[0].unused == ("date",)


@pytest.mark.parametrize(
    ("title", "both"),
    [
        ("user,item,ts,created_at", "'ts' and 'created_at'"),
        ("user_id,UID,item", "'user_id' and 'UID'"),
        ("user,asin,sku", "'asin' and 'sku'"),
        ("user,item,date,time", "'time' and 'date'"),
    ],
)
def test_two_candidates_of_a_role_are_refused_with_both_names(title, both):
    with pytest.raises(Corrupt, match=both):
        read(title + "\n" + ",".join("1" * len(title.split(","))) + "\n")


def test_a_time_and_a_split_that_are_not_used_are_told():
    found, _ = read("user,item,seen,role\nu,a,1649400000,train\nu,b,1649400009,test\n")
    line = found.account.line()
    assert "'seen' looks like a time and is not used; --column time=seen uses it" in line
    assert "'role' looks like a split and is not used; --column part=role uses it" in line
    found, _ = read("user,item,RATED_DT,sentiment,candidate\nu,a,13/9/2009,5 of 5,b7\nu,b,12/9/2009,4 of 5,b8\n")
    (note,) = found.account.tables[0].notes
    assert note == "'RATED_DT' is named after a time and is not used, since '13/9/2009' is none that is read"


def test_a_split_is_that_of_the_file():
    found, _ = read("user,item,Split\nu,a,train\nu,b,TEST\nu,c,dev\nv,d,Train\n")
    assert parts_of(found).tolist() == [TRAIN, TEST, VALID, TRAIN]
    assert found.account.split == "column"
    unlike, _ = read("user,item,set\nu,a,city\nu,b,space\nu,c,city\n")
    assert unlike.parts is None
    assert "'set' holds none of the words train, valid and test" in unlike.account.line()


def test_users_whose_held_out_item_a_tie_decides_are_counted():
    rows = "u,a,1\nu,b,2\nu,c,2\nv,a,1\nv,b,2\nv,c,3\nw,a,1\nw,b,1\nw,c,2\n"
    assert read("user,item,ts\n" + rows)[0].account.ties == 2


def test_unknown_ratings_and_odd_times_lose_no_more_than_they_must():
    found, skipped = read(
        "user,item,rating,time\nu,a,,2020-01-01\nu,b,NA,2020-01-02T00:00:00Z\nu,c,4,2020-01-02T09:00:00+08:00\n"
        "u,d,good,2020-01-04 00:00:00 UTC\nu,e,5,2020-02-31\n"
    )
    assert items(found) == {"u": ["a", "b", "c", "d"]}
    np.testing.assert_array_equal(found.ratings, [np.nan, np.nan, 4, np.nan])
    assert skipped.lines() == [
        "rows whose time cannot be read were left out, 1 in all (row 5)",
        "ratings that cannot be read were taken as unknown, 1 in all (row 4)",
    ]


def test_equal_rows_are_equal_in_all_columns():
    found, skipped = read("user,item,ts,rating\nu,a,1,5\nu,a,1,3\nu,a,1,5\nu,a,1,\nu,a,1,\n")
    assert len(found.items) == 3
    assert skipped.counts["rows equal to another in all columns read, merged with it"] == 2


def test_a_damaged_byte_loses_its_row_only():
    rows = b"".join(b"u%d,i%d,%d\n" % (n % 7, n, n) for n in range(100))
    found, skipped = read(b"user,item,ts\n" + rows.replace(b"u3,i31,", b"u3,i\xff1,").replace(b",50\n", b",5\xfe0\n"))
    assert len(found.items) == 98
    assert skipped.lines() == [
        "rows whose item is not in this encoding (kvtools convert --encoding names another) were left out, 1 in all (row 32)",
        "rows whose time cannot be read were left out, 1 in all (row 51)",
    ]
    assert items(read("user,item\n\xe9,\xfc\n".encode("latin-1"), encoding="latin-1")[0]) == {"é": ["ü"]}


@pytest.mark.parametrize("quote", [b"", b'"'])
def test_a_row_with_a_cell_too_many_and_bytes_that_are_no_text_is_left_out_and_the_others_are_read(capfd, quote):
    cells = (b"u", b"\xff"), (b"u", b"\xff", b"\xc3"), (b"\xc3\xa9", b"\xe4\xb8\xad"), (b"v", b"j")
    rows = [b"user,item", *(b",".join(quote + cell + quote for cell in row) for row in cells)]
    found, skipped, *_ = read(b"\n".join(rows) + b"\n")
    assert items(found) == {"é": ["中"], "v": ["j"]}
    assert len(skipped.lines()) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("row", "line"), [(0, '"u,i,1'), (40, 'u,"i,1'), (99, 'u,i,"1')])
def test_a_quote_left_open_is_refused_with_its_row(row, line):
    rows = [f"u{n},i{n},{n}" for n in range(100)]
    rows[row] = line
    with pytest.raises(Corrupt, match=f"^x: row {row + 1}: a quote is opened and never closed"):
        read("user,item,ts\n" + "\n".join(rows) + "\n")


def test_a_name_that_swallows_rows_is_no_name():
    found, skipped = read('user,item\nu,"a\nu,b\nu,c"\nu,d\n')
    assert items(found) == {"u": ["d"]}
    assert skipped.lines() == ["rows whose item is no text of one line were left out, 1 in all (row 1)"]
    assert "2 lines are blank, or within quotes" in found.account.line()


TABLE = "user_id,item_id,timestamp\nu,b,2\nu,a,1\nv,a,5\n"


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(TABLE.encode(), mtime=0),
        bz2.compress(TABLE.encode()),
        zstandard.compress(TABLE[:30].encode()) + zstandard.compress(TABLE[30:].encode()),
        TABLE.encode("utf-16"),
        TABLE.replace(",", ";"),
        TABLE.replace(",", "::"),
        TABLE.replace("\n", "\r\n"),
        "\n".join(
            json.dumps(dict(zip(("user_id", "item_id", "timestamp"), row.split(","), strict=True))) for row in TABLE.split()[1:]
        ),
        json.dumps(
            [
                {"user_id": u, "item_id": i, "timestamp": t, "more": None}
                for u, i, t in (("u", "b", 2), ("u", "a", 1), ("v", "a", 5))
            ]
        ),
    ],
)
def test_containers_and_layouts_hold_the_same(data):
    found, _ = read(data)
    assert items(found) == {"u": ["a", "b"], "v": ["a"]}


def test_parquet_is_read_by_its_types():
    table = pa.table({
        "user_id": pa.array([7, 7, 8], pa.int32()), "item_id": pa.array(["b", "a", "a"]).dictionary_encode(),
        "rating": pa.array([1.5, None, 2.0]), "time": pa.array([2_000_000, 1_000_000, 5], pa.timestamp("us")),
    })  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(table, sink)
    found, _ = read(sink.getvalue())
    assert items(found) == {"7": ["a", "b"], "8": ["a"]}
    assert found.times.tolist()[:2] == [1.0, 2.0]
    np.testing.assert_array_equal(found.ratings, [np.nan, 1.5, 2.0])


def test_tables_without_a_header_take_names_and_keep_their_first_row():
    rows = "1::10::5::978300760\n1::11::3::978300700\n"
    found, _ = read(rows, header=["user", "item", "rating", "time"])
    assert items(found) == {"1": ["11", "10"]}
    assert items(read(rows.replace("::", " "), header=["user", "item", "_", "time"])[0]) == {"1": ["11", "10"]}


def test_lists_of_users_and_rows_with_histories_are_joined():
    assert items(read(json.dumps({"u": [3, 1], "v": [2]}))[0]) == {"u": ["3", "1"], "v": ["2"]}
    train = 'user_id,history_item_id,item_id\nu,[5],6\nu,"[5, 6]",7\nv,"[\'a\']",b\n'
    test = 'user_id,history_item_id,item_id\nu,"[6, 7]",8\n'
    found, skipped = read_all([Source(opened(train), "a"), Source(opened(test), "b", TEST)])
    assert items(found) == {"u": ["5", "6", "7", "8"], "v": ["a", "b"]}
    assert parts_of(found).tolist() == [TRAIN, TRAIN, TRAIN, TEST, TRAIN, TRAIN]
    assert skipped.counts == {}


def test_ids_of_other_projects_come_and_go():
    index = {"9": ["<a_1>", "<b_2>"], "7": ["<a_1>", "<b_0>"]}
    ids, skipped = read_ids(opened(json.dumps(index)), "x")
    assert (ids.keys.tolist(), ids.codes_NS.tolist(), skipped.counts) == (["9", "7"], [[1, 2], [1, 0]], {})
    for layout in ("index", "openonerec", "csv"):
        again, _ = read_ids(opened("\n".join(written(ids, layout)) + "\n"), "x")
        assert again.digest == ids.digest
    assert json.loads("\n".join(written(ids, "index"))) == index
    assert codes_of_id("<|sid_begin|><s_a_340><s_b_6566><s_c_5603><|sid_end|>") == (340, 6566, 5603)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ('{"u": ["a", "b"]}', "interaction"),
        ('{"u": ["<a_1>", "<b_2>"]}', "semantic-id"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "conversation"),
        ('{"messages": [], "images": ["a.png"]}', "conversation"),
        ('{"user_id": 1, "item_id": 2}\n', "interaction"),
        ("item_id,code_1,code_2\na,1,2\n", "semantic-id"),
        ("<a_1><b_2>\tA title, with commas\t7\n", "semantic-id"),
        ("user_id,item_id\n", "interaction"),
    ],
)
def test_what_a_file_holds_is_seen(data, kind):
    file = opened(data)
    assert holds(file, "x") == kind
    assert file.read() == data.encode()


def test_metadata_with_nested_and_missing_fields_gives_the_named_text(tmp_path):
    rows = [
        {
            "parent_asin": "B1",
            "title": "Blue saw",
            "price": None,
            "images": [{"large": "u"}],
            "details": {"Brand": "x"},
            "features": ["sharp"],
        },
        {"parent_asin": "B2", "title": "Red saw", "price": 2.5, "images": [], "details": {}, "features": []},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n"
    catalogue, skipped = read_catalogue(
        opened(gzip.compress(text.encode())), "x", text=["title", "features"], numeric=["price"]
    )
    assert (catalogue.keys, skipped.counts) == (["B1", "B2"], {})
    assert catalogue.terms == [["blue", "saw", "sharp"], ["red", "saw"]]
    np.testing.assert_array_equal(catalogue.numbers, [[np.nan], [2.5]])
    (tmp_path / "meta.jsonl").write_text("\ufeff" + text)
    assert read_titles(str(tmp_path / "meta.jsonl"))[0] == {"B1": "Blue saw", "B2": "Red saw"}
    (tmp_path / "item.json").write_text(json.dumps({"0": {"title": "A", "brand": ""}, "1": {"title": "B"}}))
    assert read_titles(str(tmp_path / "item.json"))[0] == {"0": "A", "1": "B"}
