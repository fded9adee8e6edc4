"""Items, interactions, semantic IDs, and the generator of recommendations."""

import json
from pathlib import Path

import damage
import numpy as np
from damage import array, blob, edited, stream, strings, zeros

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer
from kvtools.artifact.strings import pack

ONEREC = "pretrain onerec --config shop.toml clicks.csv"


def furnish():
    Path("other.txt").write_text("".join(f"o{n}\n" for n in range(40)))
    np.save("other.npy", np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32))
    np.save("bare.npy", np.ones((4, 3), np.float32))
    np.save("whole.npy", np.ones((4, 3), np.int32))
    np.save("later-wide.npy", np.ones((9, 5), np.float32))
    nan = np.ones((4, 3), np.float32)
    nan[2, 1] = np.nan
    np.save("nan.npy", nan)
    np.save("zeros.npy", np.zeros((4, 3), np.float32))
    Path("cut.npy").write_bytes(Path("bare.npy").read_bytes()[:-5])
    Path("pickle.npy").write_bytes(Path("bare.npy").read_bytes().replace(b"'<f4'", b"'|O' ")[:200])
    damage.furnish({
        "shop.toml": 'items = "items.ids"\nbatch = 64\nsteps = "1"\n',
        "names.txt": "a\nb\nc\nd\n",
        "twice.txt": "a\nb\nc\na\n",
        "few.txt": "a\n",
        "list.json": "[1, 2]",
        "broken.json": "[1",
        "items.json": '{"1": ["x"]',
        "list-items.json": "[1]",
        "titles.csv": "colour,title\nred,House\n",
        "untitled.csv": "item_id,price\n1,2\n",
        "words.txt": "one two\nthree four\n",
        "numbers.json": json.dumps({str(n): ["a"] for n in range(4)}),
        "unpredicted.csv": "user_id,item_id\n1,2\n",
        "two-items.csv": "user_id,asin,sku,score\n1,2,3,4\n",
        "empty.jsonl": '{"user": 1}\n',
        "clicks.txt": "u1 i1 i2 i3\nu2 i4 i5 i6\n",
        "silent.json": json.dumps({str(n): [] for n in range(4)}),
        "strangers.json": json.dumps({"x": ["a", "b"], "y": ["a"]}),
        "colons.csv": "1::2::3\n",
        "no-user.csv": "who,item_id\n1,2\n",
        "no-item.csv": "user_id,what\n1,2\n",
        "bad-times.csv": "user_id,item_id,timestamp\n1,2,x\n",
        "single.csv": "user_id,item_id,timestamp\n1,2,3\n2,3,4\n",
        "strange.csv": "user_id,item_id,timestamp\n1,x,3\n1,y,4\n",
        "lonely.csv": "user_id,item_id\n1,2\n2,3\n",
        "unrated.csv": "user_id,item_id\n1,2\n1,3\n",
        "users-words.txt": "one two\n",
        "users-none.csv": "age,gender\n1,f\n",
        "users-only.csv": "user_id\n1\n",
        "users-empty.csv": "user_id,gender\n,f\n",
        "empty-list.txt": "\n",
    })  # fmt: skip
    streams()
    fitted = Head("embedding", [], {"fit": {"digest": "0" * 24, "mean": [], "deviation": []}})
    for name in ("half-fitted.kvs", "other-fit.kvs"):
        with Writer(Sink(name), fitted, level=0) as writer:
            writer.write("0", {"vectors": np.ones((1, 3), np.float32), **pack("keys", ["a"])})
    ids()
    models()


def streams():
    def embedding(key, *shape, names, value=1.0):
        return blob(
            {"vectors": array(np.full(shape, value), "F32"), **strings("keys", names)}, {"kind": "embedding", "key": key}
        )

    def log(key, users=("a", "b"), offsets=(0, 2, 3), items=(0, 1, 0), names=("x", "y"), **more):
        return blob({**strings("users", users), "offsets": array(offsets, "I64"), "items": array(items, "I32"),
                     **strings("keys", names), **more}, {"kind": "interaction", "key": key})  # fmt: skip

    def pairs(key, rows, names):
        return blob({"pairs": array(rows, "I32"), "scores": zeros("F32", len(rows)), **strings("keys", names)},
                    {"kind": "pair", "key": key})  # fmt: skip

    damage.furnish({
        "widths.kvs": stream("embedding", [embedding("0", 2, 3, names="ab"), embedding("1", 2, 4, names="cd")]),
        "again.kvs": stream("embedding", [embedding("0", 2, 3, names="aa")]),
        "huge.kvs": stream("embedding", [embedding("0", 2, 3, names="ab", value=1e30)]),
        "none.kvs": stream("embedding", []),
        "four.kvs": stream("embedding", [embedding("0", 4, 3, names="abcd")]),
        "bad-kind.kvs": stream("embedding", [blob({"vectors": zeros("F32", 2, 3)}, {"kind": "embedding", "key": "0"})]),
        "no-clicks.kvs": stream("interaction", []),
        "bad-offsets.kvs": stream("interaction", [log("0", offsets=(0, 3, 2))]),
        "bad-items.kvs": stream("interaction", [log("0", items=(0, 1, 7))]),
        "late.kvs": stream("interaction", [log("0", times=array([5, 4, 3], "I64"))]),
        "user-twice.kvs": stream("interaction", [log("0"), log("1")]),
        "columns.kvs": stream("interaction", [log("0"), log("1", users=("c", "d"), times=array([1, 2, 3], "I64"))]),
        "rating-inf.kvs": stream("interaction", [log("0", ratings=array([np.inf, 1, 2], "F32"))]),
        "authors.kvs": stream("interaction", [log("0", author=array([0, 0, 0], "I32"))]),
        "strange-pairs.kvs": stream("pair", [pairs("0", [[0, 1], [1, 0]], ("x", "y"))]),
        "four-pairs.kvs": stream("pair", [pairs("0", [[0, 1], [1, 0]], ("a", "b"))]),
        "bad-pairs.kvs": stream("pair", [blob({"pairs": zeros("I32", 2, 2)}, {"kind": "pair", "key": "0"})]),
    })  # fmt: skip


def ids():
    def keys(t, n):
        t["keys.bytes"], t["keys.offsets"] = np.frombuffer(b"".join(n), np.uint8), np.cumsum([0, *map(len, n)]).astype("<i8")

    edited("items.ids", "few-keys.ids", lambda t, f: keys(t, [b"a"]))
    edited("items.ids", "same-keys.ids", lambda t, f: keys(t, [b"a"] * len(t["codes"])))
    edited("items.ids", "large-code.ids", lambda t, f: t["codes"].__setitem__((0, 0), 900))
    edited("items.ids", "large-last.ids", lambda t, f: t["codes"].__setitem__((0, 3), 900))
    edited("items.ids", "nan.ids", lambda t, f: t["codebooks"].__setitem__((0, 0, 0), np.nan))
    edited("items.ids", "narrow.ids", lambda t, f: t.__setitem__("codes", t["codes"][:, :3]))
    edited("items.ids", "other.ids", lambda t, f: t["codes"].__setitem__((0, 1), (t["codes"][0, 1] + 1) % 8))
    edited("items.ids", "no-codes.ids", lambda t, f: t.pop("codes"))


def models():
    edited("shop.model", "version.model", lambda t, f: f.pop("static"))
    edited("shop.model", "digest.model", lambda t, f: f.__setitem__("semantic_ids", "other"))
    edited("shop.model", "layers.model", lambda t, f: f["architecture"].__setitem__("decoder_layers", 100_000))
    edited("shop.model", "shape.model", lambda t, f: f["architecture"].__setitem__("width", 18))
    edited("shop.model", "foreign.model", lambda t, f: f.__setitem__("system", "other"))


CASES = f"""
kvtools embed bare.npy
kvtools embed bare.npy --keys few.txt
kvtools embed bare.npy --keys broken.json
kvtools embed bare.npy --keys list.json
kvtools embed whole.npy --keys names.txt
kvtools embed pickle.npy --keys names.txt
kvtools embed cut.npy --keys names.txt
kvtools embed bare.npy --keys names.txt --dim 3
kvtools embed bare.npy --keys names.txt --text title
kvtools embed zeros.npy --keys names.txt
kvtools embed nan.npy --keys names.txt --strict
kvtools embed clicks.kvs
kvtools embed widths.kvs
kvtools embed bad-kind.kvs
kvtools embed items.json
kvtools embed list-items.json
kvtools embed titles.csv
kvtools embed untitled.csv
kvtools embed untitled.csv --text colour
kvtools embed keywords.json --text colour
kvtools embed words.txt
kvtools embed numbers.json --dim 64
kvtools embed silent.json --dim 2
kvtools convert colons.csv
kvtools convert no-user.csv
kvtools convert no-item.csv
kvtools convert bad-times.csv
kvtools convert clicks.csv --column nonsense
kvtools convert clicks.csv --column colour=red
kvtools convert clicks.kvs --column time=timestamp
kvtools convert lists.txt --column time=timestamp
kvtools pairs clicks.csv --all --split time:0.8,0.1
kvtools convert clicks.csv --split soon
kvtools pairs items.kvs
kvtools pairs no-clicks.kvs
kvtools pairs bad-offsets.kvs
kvtools pairs bad-items.kvs
kvtools pairs late.kvs
kvtools pairs user-twice.kvs
kvtools pairs columns.kvs
kvtools pairs rating-inf.kvs
kvtools pairs authors.kvs
kvtools pairs lonely.csv
kvtools pairs unrated.csv --min-rating 3
kvtools semid-build bare.npy
kvtools semid-build words.txt
kvtools semid-build - < empty-list.txt
kvtools semid-build clicks.kvs
kvtools semid-build widths.kvs --codes 2
kvtools semid-build again.kvs --codes 2
kvtools semid-build huge.kvs --codes 2
kvtools semid-build nan.npy --keys names.txt --codes 2
kvtools semid-build none.kvs --codes 2
kvtools semid-build four.kvs --codes 64
kvtools semid-build four.kvs --codes 64 --method balanced
kvtools semid-build four.kvs --codes 64 --method rq-vae
kvtools semid-build items.kvs --pairs pairs.kvs --codebook items.ids
kvtools semid-build items.kvs --captions keywords.json
kvtools semid-build items.kvs --align-steps 5
kvtools semid-build items.kvs --append
kvtools semid-build items.kvs --json
kvtools semid-build - --codebook - < items.kvs
kvtools semid-build items.kvs --codes 8 --pairs items.kvs
kvtools semid-build items.kvs --codes 8 --pairs strange-pairs.kvs
kvtools semid-build items.kvs --codes 8 --pairs bad-pairs.kvs
kvtools semid-build four.kvs --codes 2 --pairs four-pairs.kvs
kvtools semid-build items.kvs --codes 8 --pairs pairs.kvs --captions strangers.json
kvtools semid-build items.kvs --codebook fleet.devices
kvtools semid-build later-wide.npy --keys later.txt --codebook items.ids
kvtools semid-build items.kvs --other-fit
kvtools semid-build other-fit.kvs --codebook items.ids
kvtools embed keywords.json --like items.kvs --dim 3
kvtools embed keywords.json --like four.kvs
kvtools embed keywords.json --like half-fitted.kvs
kvtools semid-build later-wide.npy --keys later.txt --codebook vae.ids
kvtools semid-build later.npy --keys later.txt --codebook items.ids --append
kvtools semid-build later.npy --keys later.txt --codebook narrow.ids --append --collisions extend
SLURM_JOB_END_TIME=1 kvtools semid-build items.kvs --codes 8 -o stopped.ids
kvtools semid-build items.kvs --codes 9 -o stopped.ids
kvtools semid-build other.npy --keys other.txt --codes 8 -o stopped.ids
kvtools {ONEREC} --users users-words.txt
kvtools {ONEREC} --users users-none.csv
kvtools {ONEREC} --users users-only.csv
kvtools {ONEREC} --users users-empty.csv
kvtools {ONEREC} --without colour
kvtools {ONEREC} --architecture width=17
kvtools {ONEREC} --architecture experts=1
kvtools {ONEREC} --architecture expert_hidden=0
kvtools {ONEREC} --architecture layers=3
kvtools pretrain onerec clicks.csv
kvtools pretrain onerec clicks.csv --items fleet.tree
kvtools pretrain onerec clicks.csv --items few-keys.ids
kvtools pretrain onerec clicks.csv --items same-keys.ids
kvtools pretrain onerec clicks.csv --items large-code.ids
kvtools pretrain onerec clicks.csv --items large-last.ids
kvtools pretrain onerec clicks.csv --items nan.ids
kvtools pretrain onerec clicks.csv --items no-codes.ids
kvtools pretrain onerec strange.csv --items items.ids
kvtools pretrain onerec single.csv --items items.ids
kvtools pretrain onerec - --items - < clicks.csv
SLURM_JOB_END_TIME=1 kvtools {ONEREC} -o stopped.model
kvtools {ONEREC} --seed 4 -o stopped.model
kvtools recgen clicks.csv
kvtools recgen --model shop.model --model near.model clicks.csv
kvtools recgen --model shop.model --baseline popular clicks.csv
kvtools recgen --baseline popular clicks.csv
kvtools recgen --baseline popular --items items.ids --exact clicks.csv
kvtools recgen --baseline popular --items items.ids --blend 0.1 clicks.csv
kvtools recgen --model shop.model -k 10 --beam 5 clicks.csv
kvtools recgen --model shop.model --exact --no-trie clicks.csv
kvtools recgen --model shop.model --sure --exact clicks.csv
kvtools recgen --model shop.model --json -o found.kvs clicks.csv
kvtools recgen --model shop.model --evaluate test --users 3 clicks.csv
kvtools recgen --model shop.model --titles films.item clicks.csv
kvtools recgen --model shop.model --blend 3 clicks.csv
kvtools recgen --model - - < clicks.csv
kvtools recgen --model items.ids clicks.csv
kvtools recgen --model items.kvs clicks.csv
kvtools recgen --model keye.safetensors clicks.csv
kvtools recgen --model foreign.model clicks.csv
kvtools recgen --model version.model clicks.csv
kvtools recgen --model digest.model clicks.csv
kvtools recgen --model layers.model clicks.csv
kvtools recgen --model shape.model clicks.csv
kvtools recgen --model shop.model --items other.ids clicks.csv
kvtools recgen --model shop.model strange.csv
kvtools recgen --model shop.model --evaluate test single.csv
kvtools recgen --model shop.model --blend auto single.csv
kvtools recgen --model shop.model --users empty-list.txt clicks.csv
kvtools recgen --predictions shop.csv clicks.csv
kvtools recgen --predictions shop.csv --model shop.model --evaluate test clicks.csv
kvtools recgen --predictions unpredicted.csv --evaluate test clicks.csv
kvtools recgen --predictions two-items.csv --evaluate test clicks.csv
kvtools recgen --predictions words.txt --evaluate test clicks.csv
kvtools recgen --predictions empty.jsonl --evaluate test clicks.csv
kvtools recgen --model shop.model --json --csv clicks.csv
kvtools recgen --model shop.model --evaluate test --csv clicks.csv
kvtools recgen --model shop.model --split time:0.9 clicks.csv
kvtools recgen --model shop.model --split time:0.8,0.1 clicks.txt
kvtools recgen --model shop.model --users nowhere.txt clicks.csv
kvtools recgen --model shop.model --titles untitled.csv --json clicks.csv
kvtools recgen --model shop.model clicks.kvs --column time=timestamp
kvtools.onerec.model.lifelong.compress(np.ones(3), seed=0, key="u")
kvtools.onerec.model.lifelong.compress(np.ones((3, 2)), seed=0, key="u", leaf_items=0)
kvtools.onerec.model.lifelong.average(np.ones((3, 2)), np.array([0, 0, 2]), 3)
kvtools.onerec.recommend.metrics.hit_rate(np.array([]), 5)
kvtools.onerec.interactions.users.Vocabulary.of({{"name": "age", "words": ["a", "a"]}})
kvtools.onerec.semantic_ids.align.align(np.ones(3), np.array([[0, 1], [1, 0]]))
kvtools.onerec.semantic_ids.align.align(np.ones((3, 8)), np.array([[0, 1]]))
kvtools.onerec.semantic_ids.align.align(np.ones((3, 8)), np.array([[0, 1], [1, 7]]))
kvtools.onerec.semantic_ids.align.align(np.ones((3, 7)), np.array([[0, 1], [1, 0]]))
kvtools.onerec.semantic_ids.align.align(np.full((3, 8), np.nan), np.array([[0, 1], [1, 0]]))
kvtools.onerec.semantic_ids.align.align(np.ones((3, 2, 8)), np.array([[0, 1], [1, 0]]), mask_NT=np.ones((3, 3)))
kvtools.onerec.semantic_ids.align.align(np.ones((3, 2, 8)), np.array([[0, 1], [1, 0]]), mask_NT=np.zeros((3, 2)))
kvtools.onerec.semantic_ids.align.align(np.ones((3, 8)), np.array([[0, 1], [1, 0]]), captions=[[1]])
kvtools.onerec.semantic_ids.align.align(np.ones((3, 8)), np.array([[0, 1], [1, 0]]), captions=[[1], [-1], [2]])
kvtools.onerec.semantic_ids.align.align(np.ones((3, 8)), np.array([[0, 1], [1, 0]]), captions=[[], [], []])
kvtools.onerec.semantic_ids.align.align(np.eye(3, 8), np.array([[0, 1], [1, 0]]), config=hot())
kvtools.onerec.semantic_ids.align.encode(np.ones((3, 8)), {{"queries": np.ones((4, 16))}}, hot())
kvtools.onerec.semantic_ids.rqvae.train_rqvae(np.ones((3, 8)), 1, 4, seed=0)
kvtools.onerec.semantic_ids.rqvae.train_rqvae(np.full((9, 8), np.nan), 1, 4, seed=0)
kvtools.onerec.semantic_ids.rqvae.train_rqvae(np.full((9, 8), 1e30), 1, 4, seed=0)
"""
