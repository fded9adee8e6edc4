"""Artifacts, streams, files and the commands that take any of them: info, cat, check, sum, merge, plot."""

import json
import os
import struct
from pathlib import Path

import damage
import same_outputs
from damage import (
    bag,
    blob,
    end,
    head,
    mark,
    record,
    skippable,
    stored,
    stream,
    strings,
    zeros,
)  # fmt: skip

VECTORS = {"vectors": zeros("F32", 2, 3), **strings("keys", ["a", "b"])}


def embedding(key, tensors=VECTORS, **fields):
    return blob(tensors, {"kind": "embedding", "key": key, **fields})


def furnish():
    same_outputs.call("tokenize-video --jobs 1 videos --shard 0/2 -o part-0.kvs")
    good = stream("embedding", [embedding("r0"), embedding("r1")])
    first = head({"kind": "embedding", "schema": 1, "history": [], "config": {}})
    one = record(0, embedding("r0"))
    n_end = len(end([(0, 0)] * 6))
    files = {
        "empty": b"",
        "text.txt": "neither the one nor the other\n",
        "good.kvs": good,
        "cut-later.kvs": good,
        "no-end.kvs": good[:-n_end],
        "no-end-mark.kvs": first + one,
        "cut.kvs": good[: len(first) + len(one) - 9],
        "cut-mark.kvs": good[: len(first) + 20],
        "cut-head.kvs": good[:20],
        "one-word.kvs": good[:6],
        "other-head.kvs": head({"kind": "embedding", "schema": 2}) + good[len(first) :],
        "long-head.kvs": good[:4] + b"\xff" * 4 + good[8:],
        "lost-record.kvs": first + record(1, embedding("r1")),
        "bad-mark.kvs": first + one[:12] + b"\x09" + one[13:],
        "vast-mark.kvs": first + mark(0, 1 << 40, 1 << 40, 0),
        "unknown-frame.kvs": first + one + skippable(0x184D2A57, b"?"),
        "changed.kvs": good[:-n_end].replace(b"\0\0\0\0\0\0\0\0\0\0\0\0", b"\0\0\0\0\0\1\0\0\0\0\0\0", 1),
        "bad-frame.kvs": first
        + mark(0, 12 + len(embedding("r0")), len(embedding("r0")), 0)
        + b"\x28\xb5\x2f\xfd\x00"
        + bytes(400),
        "bad-block.kvs": first + one[: 40 + 9] + b"\0\0\0" + one[40 + 12 :],
        "no-zstd.kvs": compressed(first, embedding("r0"), b"\xff" * 90),
        "no-key.kvs": stream("embedding", [blob(VECTORS, {"kind": "embedding"})]),
        "bad-keys.kvs": good[: -n_end - 3] + b"\0\0\0" + good[-n_end:],
        "other-keys.kvs": stream("embedding", [embedding("r0"), embedding("r1")], ["r0", "rX"]),
        "other-crc.kvs": stream("embedding", [embedding("r0"), embedding("r1")], key_crcs=[stored(embedding("r0")), b"?"]),
        "more-keys.kvs": stream("embedding", [embedding("r0")], ["r0", "r1"], key_crcs=[b"", b""]),
        "vast-end.kvs": good[:-n_end] + end([(1 << 20, 0)] * 3),
        "bad-end.kvs": good[:-5] + b"\1" + good[-4:],
        "other-end.kvs": good[: -n_end + 8] + b"\7" + good[-n_end + 9 :],
        "two-kinds.kvs": good + stream("conversation", [blob({"json": zeros("U8", 2)}, {"kind": "conversation", "key": "c"})]),
        "conversation.kvs": stream("conversation", [blob({"json": zeros("U8", 2)}, {"kind": "conversation", "key": "c"})]),
        "no-mark.kvs": first + skippable(0x184D2A57, bytes(32)) + good[len(first) + 40 :],
    }
    files |= blobs() | kinds() | models() | logs() | tables() | directories()
    damage.furnish(files)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    os.truncate("hf-large/config.json", 129 << 20)  # takes no room on the disk


def compressed(first, raw, junk):
    """A stream whose one record is a compressed frame of junk."""
    header = struct.pack("<IBI", 0xFD2FB528, 0x84 | 0x20, len(raw))
    return first + mark(0, len(header) + len(junk), len(raw), 0) + header + junk


def blobs():
    """Bags whose header or bytes are wrong."""
    good = bag("model", {"a": zeros("F32", 2, 3)})
    text = good[8:-24]

    def headed(header):
        return len(header).to_bytes(8, "little") + header + bytes(24)

    return {
        "bag": good,
        "bag-few-bytes": good[:9].replace(good[:8], b"\x02" + bytes(7)) + b"",
        "bag-cut": good[:60],
        "bag-no-json": headed(b"{nothing}   "),
        "bag-list": headed(b'{"a":[1, 2]}'),
        "bag-twice": headed(b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{}}'),
        "bag-dtype": blob({"a": zeros("F32", 6)}, {}, a={"dtype": "F7", "shape": [6], "data_offsets": [0, 24]}),
        "bag-shape": blob({"a": zeros("F32", 6)}, {}, a={"dtype": "F32", "shape": "six", "data_offsets": [0, 24]}),
        "bag-offsets": blob({"a": zeros("F32", 6)}, {}, a={"dtype": "F32", "shape": [6], "data_offsets": [0]}),
        "bag-short": blob({"a": zeros("F32", 6)}, {}, a={"dtype": "F32", "shape": [7], "data_offsets": [0, 24]}),
        "bag-long": blob({"a": zeros("F32", 6)}, {}) + b"more",
        "bag-metadata": blob({"a": zeros("F32", 6)}, {}, __metadata__=[]),
        "bag-words": blob({"a": zeros("F32", 6)}, {}, __metadata__={"kvtools": "{"}),
        "bag-no-object": blob({"a": zeros("F32", 6)}, {}, __metadata__={"kvtools": "[]"}),
        "bag-no-crc": bag("model", {"a": zeros("F32", 6)}, crc32s={}),
        "bag-crc": bag("model", {"a": zeros("F32", 6)}, crc32s={"a": 1}),
        "bag-foreign": blob({"a": zeros("F32", 6)}, {}, __metadata__={"format": "pt"}),
        "bag-header": (1 << 60).to_bytes(8, "little") + text,
    }


def kinds():
    """Whole artifacts that do not hold what their kind says."""
    pixels = {
        "pixels": zeros("U8", 4, 3, 14, 14),
        "grid": ("I32", [3], struct.pack("<3i", 2, 2, 2)),
        "seconds": zeros("F64", 2),
    }
    video = {"kind": "video", "key": "v", "fps": 2.0, "duration": 1.0, "source": [1, 1]}
    loose = {**VECTORS, "keys.offsets": ("I64", [3], struct.pack("<3q", 0, 1, 9))}
    return {
        "kind-unknown": bag("poem", {"a": zeros("F32", 6)}),
        "kind-form": bag("embedding", VECTORS),
        "kind-other.kvs": stream("embedding", [embedding("r0", kind="pair")]),
        "kind-field.kvs": stream("video", [blob(pixels, {"kind": "video", "key": "v"})]),
        "kind-missing.kvs": stream("embedding", [blob({"vectors": zeros("F32", 2, 3)}, {"kind": "embedding", "key": "k"})]),
        "kind-foreign.kvs": stream("embedding", [embedding("r0", {**VECTORS, "colour": zeros("F32", 1)})]),
        "kind-dtype.kvs": stream("embedding", [embedding("r0", {**VECTORS, "vectors": zeros("F64", 2, 3)})]),
        "kind-axis.kvs": stream("video", [blob({**pixels, "pixels": zeros("U8", 4, 3, 14, 15)}, video)]),
        "kind-grid.kvs": stream("video", [blob(pixels, video)]),
        "kind-strings.kvs": stream("embedding", [embedding("r0", loose)]),
    }


def models():
    two = {"a": ("F32", [2], struct.pack("<2f", 1, 2)), "n": ("I64", [1], struct.pack("<q", 4))}
    return {
        "one.model": bag("model", two, architecture={"size": 1}),
        "more.model": bag("model", {**two, "b": zeros("F32", 1)}, architecture={"size": 1}),
        "wide.model": bag("model", {**two, "a": zeros("F32", 3)}, architecture={"size": 1}),
        "infinite.model": bag(
            "model", {**two, "a": ("F32", [2], struct.pack("<2f", float("inf"), 2))}, architecture={"size": 1}
        ),
        "counts.model": bag("model", {**two, "n": ("I64", [1], struct.pack("<q", 5))}, architecture={"size": 1}),
        "other.model": bag("model", two, architecture={"size": 2}),
    }


def tables():
    """Delimited text that cannot be read as it is."""
    return {
        "quote.csv": 'user_id,item_id\n1,2\n3,"4\n5,6\n',
        "latin.csv": "user_id,item_id\n1,2\n\xe9,3\n".encode("latin-1"),
        "zeros.csv": b"\0\0\0\0\n",
        "twice.csv": "user_id,item_id,item_id\n1,2,3\n",
        "titles.csv": "nothing,else\n1,2\n",
        "ragged.txt": "1 2 3\n1 2\n",
        "ragged.csv": "a,b,c\n1,2\n",
        "words.csv": "a,b\n1,x\n",
        "words.txt": "1 2 3\n1 x 3\n",
        "long.tsv": "user_id\titem_id\n1\t2\n" + "3" * (3 << 23) + "\t4\n",
        "long.csv": 'user_id,item_id\n1,2\n3,"' + "4\n" * (3 << 22),
        "list-quote.txt": 'a,"b\nc\n',
    }


def directories():
    """Hugging Face directories that are not whole."""
    tensors = blob({"a": zeros("F32", 2)}, {}, __metadata__={"format": "pt"})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    return {
        "hf-empty/readme.txt": "",
        "hf-json/config.json": "{",
        "hf-list/config.json": "[]",
        "hf-nothing/config.json": "{}",
        "hf-pickle/config.json": "{}",
        "hf-pickle/pytorch_model.bin": b"\x80",
        "hf-two/config.json": "{}",
        "hf-two/one.safetensors": tensors,
        "hf-two/two.safetensors": tensors,
        "hf-map/config.json": "{}",
        "hf-map/model.safetensors.index.json": "{}",
        "hf-lost/config.json": "{}",
        "hf-lost/model.safetensors.index.json": json.dumps(index),
        "hf-lost/model-1.safetensors": tensors,
        "hf-less/config.json": "{}",
        "hf-less/model.safetensors.index.json": json.dumps(index),
        "hf-less/model-1.safetensors": tensors,
        "hf-less/model-2.safetensors": tensors,
        "hf-cut/config.json": "{}",
        "hf-cut/model.safetensors": tensors[:-3],
        "hf-large/config.json": "{}",
        "hf-void/config.json": "{}",
        "hf-void/model.safetensors": b"",
        "home/letter.txt": "Dear",
        "home/folder/letter.txt": "Dear",
    }


def logs():
    return {
        "log.jsonl": json.dumps({"algorithm": "etree", "round": 1}) + "\n",
        "list.jsonl": "{}\n[1]\n",
        "cut.jsonl": '{"step": 1\n',
        "steps.jsonl": json.dumps({"step": 1, "loss": 2.0, "rate": 0.1, "tokens": 5}) + "\n{}\n",
        "codes.ids": bag(
            "semantic-id", {"codebooks": zeros("F32", 1, 2, 3), "codes": zeros("U16", 2, 1), **strings("keys", "ab")}
        ),
    }


CASES = """
SLURM_JOB_END_TIME=1 kvtools cat good.kvs -o stopped.kvs
kvtools check nothing.kvs
kvtools check folder
kvtools check empty
kvtools check text.txt
kvtools check - < TERMINAL
kvtools check - < CLOSED
kvtools check - < empty
kvtools check no-end.kvs
kvtools check no-end-mark.kvs
kvtools check cut.kvs
kvtools check cut-mark.kvs
kvtools check cut-head.kvs
kvtools check one-word.kvs
kvtools check other-head.kvs
kvtools check long-head.kvs
kvtools check lost-record.kvs
kvtools check bad-mark.kvs
kvtools check vast-mark.kvs
kvtools check unknown-frame.kvs
kvtools check changed.kvs
kvtools check bad-frame.kvs
kvtools check bad-block.kvs
kvtools check no-zstd.kvs
kvtools check no-key.kvs
kvtools check bad-keys.kvs
kvtools check other-keys.kvs
kvtools check other-crc.kvs
kvtools check bad-end.kvs
index("vast-end.kvs")
kvtools check other-end.kvs
kvtools check two-kinds.kvs
kvtools check bag-few-bytes
kvtools check bag-cut
kvtools check bag-header
kvtools check bag-no-json
kvtools check bag-list
kvtools check bag-twice
kvtools check bag-dtype
kvtools check bag-shape
kvtools check bag-offsets
kvtools check bag-short
kvtools check bag-long
kvtools check bag-metadata
kvtools check bag-words
kvtools check bag-no-object
kvtools check bag-no-crc
kvtools check bag-crc
kvtools check bag-foreign
kvtools check kind-unknown
kvtools check kind-form
kvtools check kind-other.kvs
kvtools check kind-field.kvs
kvtools check kind-missing.kvs
kvtools check kind-foreign.kvs
kvtools check kind-dtype.kvs
kvtools check kind-axis.kvs
kvtools check kind-grid.kvs
kvtools check kind-strings.kvs
kvtools info empty
kvtools info no-end.kvs
kvtools info other-end.kvs
kvtools info more-keys.kvs
kvtools info nothing.kvs
kvtools sum cut.kvs
kvtools cat --json --tar good.kvs
kvtools cat --key nobody good.kvs
kvtools cat --key r0 no-mark.kvs
kvtools cat --key r1 other-crc.kvs
kvtools cat good.kvs conversation.kvs
kvtools cat --strict good.kvs conversation.kvs
kvtools cat part-0.kvs part-0.kvs -o both.kvs
kvtools cat good.kvs -o good.kvs
kvtools cat good.kvs > TERMINAL
kvtools cat good.kvs -o folder
kvtools cat good.kvs -o nowhere/all.kvs
kvtools cat good.kvs -o bag
kvtools cat -n x good.kvs
kvtools merge bag
kvtools merge bag bag -o bag
kvtools merge - - < bag
kvtools merge --weights 1,x one.model one.model
kvtools merge folder one.model
kvtools merge good.kvs one.model
kvtools merge codes.ids one.model
kvtools merge one.model other.model
kvtools merge one.model more.model
kvtools merge one.model wide.model
kvtools merge one.model counts.model
kvtools merge one.model infinite.model
kvtools plot log.jsonl -o picture.gif
kvtools plot log.jsonl -o picture.png
kvtools plot list.jsonl -o picture.png
kvtools plot cut.jsonl -o picture.png
kvtools plot steps.jsonl -o picture.png
kvtools plot codes.ids codes.ids -o picture.png
kvtools plot codes.ids -o picture.png
kvtools plot good.kvs -o picture.png
kvtools convert nothing.csv
kvtools convert empty
kvtools convert zeros.csv
kvtools convert quote.csv
kvtools convert latin.csv
kvtools convert twice.csv
kvtools convert titles.csv
kvtools convert long.csv
kvtools convert long.tsv
kvtools convert clicks.csv --column time=moment
kvtools devices --delay words.txt
kvtools devices --delay ragged.txt
kvtools convert hf-empty
kvtools convert hf-json
kvtools convert hf-list
kvtools convert hf-nothing
kvtools convert hf-pickle
kvtools convert hf-two
kvtools convert hf-map
kvtools convert hf-lost
kvtools convert hf-less
kvtools convert hf-cut
kvtools convert hf-void
kvtools convert hf-large
kvtools convert keye.safetensors -o home/
kvtools convert keye.safetensors -o home/ --force
kvtools convert keye.safetensors -o text.txt/ --force
kvtools convert keye.safetensors -o nowhere/keye/
kvtools convert keye.safetensors -o keye/
kvtools convert keye -o keye/ --force
kvtools convert keye.safetensors -o other.safetensors
kvtools convert keye -o again/ --file-size much
kvtools convert keye --column time=when -o again.safetensors
kvtools convert messages.jsonl --column time=when -o again.kvs
kvtools convert clicks.csv -o clicks.csv
kvtools pairs clicks.csv -o clicks.csv
kvtools embed keywords.json -o keywords.json
kvtools.artifact.directory.read_directory("nowhere")
kvtools.artifact.blob.encode({"a": np.zeros(2, complex)}, {})
kvtools.artifact.blob.decode(b"1234")
kvtools.artifact.blob.decode(b"\\x02\\0\\0\\0\\0\\0\\0\\0[]")
kvtools.artifact.strings.unpack("keys", {})
writer("big.kvs").write_pieces("k", [bytes(129 << 20)])
index("good.kvs").fetch("nobody")
cut(index("cut-later.kvs"), "cut-later.kvs").fetch(1)
kvtools.artifact.directory.refuse_existing_directory("text.txt", force=False)
kvtools.artifact.delimited.read_rows(open("ragged.csv", "rb"), "ragged.csv")
kvtools.artifact.delimited.read_rows(open("words.csv", "rb"), "words.csv").numbers([1])
"""
