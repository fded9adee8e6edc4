"""Tables, lists and semantic IDs that other programs have written, and that kvtools cannot take as they are."""

import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def furnish():
    table = "user_id,item_id,ts\n1,2,3\n1,3,4\n"
    files = {
        "two-times.csv": "user_id,item_id,ts,event_time\n1,2,3,4\n",
        "day-and-time.csv": "user_id,item_id,date,time\n1,2,2020-01-01,10:00\n",
        "headerless.csv": "196,242,3,881250949\n186,302,3,891717742\n",
        "headerless.txt": "196 242 3 881250949\n186 302 3 891717742\n",
        "spaces.txt": "user_id item_id\n1 2\n",
        "cut.csv.gz": gzip.compress(table.encode() * 50)[:-9],
        "cut.bz2": bz2.compress(table.encode())[:-3],
        "archive.csv": b"PK\x03\x04\x14\0",
        "tar.csv": b"x" * 257 + b"ustar\0" + b"0" * 200,
        "cut.parquet": b"PAR1" + b"x" * 50,
        "open.csv": 'user_id,item_id\n1,2\n2,"3\n3,4\n4,5\n',
        "open-end.csv": 'user_id,item_id\n1,2\n2,3\n"3,4\n',
        "untimed.csv": "user_id,item_id\n1,2\n",
        "timed.csv": table,
        "lines.txt": "u a b c\nv b\n",
        "numbers-only.json": "[1, 2]",
        "users.json": '{"u": [["a", 1]], "v": [["b", 2]]}',
        "histories.csv": 'user_id,history_item_id,item_id\nu,"[{]",1\n',
        "histories-of-lists.csv": 'user_id,history_item_id,item_id\nu,"[[1]]",1\n',
        "histories-of-nobody.csv": "user_id,history,item_id,part\n,1 2,3,train\nu,1 2,3,later\nu,1 2,3,train\n",
        "ragged.csv": "user_id,item_id\n1,2\n3\n4,5,6\n",
        "levels.json": '{"a": "<a_1><b_2>", "b": "<a_1><c_2>"}',
        "long-header.csv": '"' + "user_id" * 30_000 + '",item_id\n1,2\n',
        "no-ids.json": '{"a": ["<x_1>"], "b": ["<b_1>"]}',
        "ragged-ids.json": '{"a": ["<a_1>", "<b_1>"], "b": ["<a_1>"], "c": ["<a_99999999>", "<b_1>"], "d": ["<a_1>", "b"]}',
        "no-item.csv": "sid,title\n<a_1><b_2>,x\n",
        "index.json": '{"a": ["<a_1>", "<b_2>"], "b": ["<a_1>", "<b_3>"]}',
        "columns.jsonl": '{"user_id": 1, "item_id": 2, "ts": 1}\n[1, 2]\n{"user_id"\n',
        "empty-list.json": "[]",
    }
    for name, content in files.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pq.write_table(pa.table({"a": [1], "b": [2]}), "ab.parquet")


CASES = """
kvtools convert two-times.csv
kvtools convert day-and-time.csv
kvtools convert headerless.csv
kvtools convert headerless.txt
kvtools convert headerless.csv --columns user,item
kvtools convert spaces.txt
kvtools convert cut.csv.gz
kvtools convert cut.bz2
kvtools convert archive.csv
kvtools convert tar.csv
kvtools convert cut.parquet --kind interaction
kvtools convert ab.parquet --kind interaction
kvtools convert open.csv
kvtools convert open-end.csv --strict
kvtools convert untimed.csv timed.csv
kvtools convert timed.csv untimed.csv
kvtools convert timed.csv lines.txt
kvtools convert timed.csv clicks.kvs
kvtools convert timed.csv --encoding klingon
kvtools convert timed.csv --to csv
kvtools convert index.json --encoding latin-1
kvtools convert keye --to index
kvtools convert items.ids
kvtools convert numbers-only.json --kind interaction
kvtools convert empty-list.json --kind interaction
kvtools convert columns.jsonl
kvtools convert users.json --kind interaction
kvtools convert histories.csv
kvtools convert histories-of-lists.csv
kvtools convert histories-of-nobody.csv
kvtools convert ragged.csv
kvtools convert long-header.csv
kvtools convert levels.json
kvtools convert no-ids.json --kind semantic-id
kvtools convert ragged-ids.json
kvtools convert no-item.csv --kind semantic-id
"""
