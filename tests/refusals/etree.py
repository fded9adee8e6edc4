"""Devices, networks, trees, and training over them."""

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import damage
import numpy as np
import same_outputs
from damage import edited
from PIL import Image

TRAIN = "etree-train --config fleet.toml fleet.devices"
MODELS = {
    "no-toml": "layers =",
    "no-layers": "width = 3\n",
    "kind": '[[layers]]\nkind = "attention"\n',
    "size": '[[layers]]\nkind = "linear"\nheight = 3\n',
    "number": '[[layers]]\nkind = "linear"\nwidth = 0\n',
    "vast": '[[layers]]\nkind = "linear"\nwidth = 65536\n[[layers]]\nkind = "linear"\nwidth = 65536\n',
    "conv": '[[layers]]\nkind = "conv"\nchannels = 3\nkernel = 3\n',
    "groups": '[[layers]]\nkind = "group-norm"\ngroups = 2\n',
}


def furnish():
    Path("cut-header.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ('<f8'  ")
    damage.furnish({"fleet.toml": 'tree = "fleet.tree"\ndata = "digits.csv"\nrounds = 2\n'})
    damage.furnish({f"{name}.toml": text for name, text in MODELS.items()} | labelled() | networks())
    Path("own.py").write_text(
        "from torch import nn\n\n\ndef number(shape, n_classes):\n    return 3\n\n\n"
        "def wide(shape, n_classes):\n    return nn.Linear(shape[0], n_classes + 1)\n\n\n"
        "def normed(shape, n_classes):\n    return nn.Sequential(nn.Linear(shape[0], n_classes), nn.BatchNorm1d(4))\n\n\n"
        "def dropping(shape, n_classes):\n    return nn.Sequential(nn.Linear(shape[0], n_classes), nn.Dropout(0.5))\n\n\n"
        "def vast(shape, n_classes):\n    return nn.Linear(shape[0], 70_000_000, device='meta')\n\n\n"
        "def empty(shape, n_classes):\n    return nn.Identity()\n"
    )
    arrays()
    same_outputs.call("devices --coordinates where.npy --devices 5 -o small.devices")
    devices()
    trees()


def labelled():
    return {
        "empty/readme.md": "nothing\n",
        "short-row.csv": "a,b,label\n1,2,0\n1,1\n",
        "word.csv": "a,b,label\n1,x,0\n",
        "label.csv": "a,b,label\n1,2,0.5\n2,2,1\n",
        "nan.csv": "a,b,label\n1,nan,0\n2,2,1\n",
        "bare-cell.csv": "a,b,label\n1,,0\n2,2,1\n",
        "colons.csv": "a:b:label\n1:2:0\n2:2:1\n",
        "none.csv": "a,b,label\n",
        "one.csv": "a,b,label\n1,2,0\n",
        "shapes/a.csv": "a,b,label\n1,2,0\n3,4,1\n",
        "shapes/b.csv": "a,b,c,label\n1,2,3,0\n3,4,5,1\n",
        "parts/train.csv": "a,b,label\n1,2,0\n3,4,1\n",
        "parts/test.csv": "a,b,c,label\n1,2,3,0\n3,4,5,1\n",
        "bare-shapes/a.csv": "1,2,0\n3,4,1\n",
        "bare-shapes/b.csv": "1,2,3,0\n3,4,5,1\n",
        "bare-parts/train.csv": "1,2,0\n3,4,1\n",
        "bare-parts/test.csv": "1,2,3,0\n3,4,5,1\n",
        "no-label.csv": "a,b,label\n1,2,cat\n3,4,\n",
        "na-label.csv": "a,b,label\n1,2,cat\n3,4,NA\n",
        "untitled/train.csv": "a,b,label\n1,2,0\n3,4,1\n",
        "untitled/test.csv": "1,2,0\n",
        "labels/train.csv": "a,b,label\n1,2,0\n3,4,1\n",
        "other.csv": "a,b,c,label\n" + "1,2,3,0\n3,4,5,1\n" * 9,
        "text.npz": "no archive\n",
        "whole.json": json.dumps([[*range(192)]]),
        "labels/test.csv": "a,b,label\n1,2,7\n3,4,1\n",
        "idx/train-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3i", 2, 2, 2) + bytes(8),
        "idx-bad/train-images-idx3-ubyte": b"\0\0\x0d\x03" + bytes(20),
        "idx-bad/train-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">i", 2) + bytes(2),
        "idx-cut/train-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3i", 2, 2, 2) + bytes(5),
        "idx-cut/train-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">i", 2) + bytes(2),
        "idx-few/train-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3i", 2, 2, 2) + bytes(8),
        "idx-few/train-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">i", 3) + bytes(3),
        "cut.csv.gz": gzip.compress(b"a,b,label\n1,2,0\n", mtime=0)[:-12],
        "leaf.json": json.dumps({"users": ["u"], "user_data": {"u": {"x": [[1], [2]], "y": [1]}}}),
        "leaf-broken.json": "{",
        "leaf-other.json": "{}",
        "holes.json": json.dumps([[0, 1], [2]]),
        "far.json": json.dumps([[*range(191)], [900]]),
        "double.json": json.dumps([[*range(192)], [0]]),
        "bare.json": json.dumps([[*range(192)], []]),
        "strings.json": json.dumps({"a": ["x"]}),
        "deep.json": "[" * 100_000,
    }


def networks():
    return {
        "empty.txt": "",
        "row.txt": "0 1\n1 0 5\n",
        "word.txt": "0 1\nx 0\n",
        "decimals.csv": "0;1,5\n1,5;0\n",
        "colons.txt": "ms:source:target\n5:a:b\n5:b:a\n",
        "odd.csv": ",a,b\na,0,1\nb,5,0\n",
        "wide.txt": "0 1 2\n1 0 2\n",
        "negative.txt": "0 -1\n-1 0\n",
        "odd.txt": "0 1\n5 0\n",
        "names.csv": ",a,b\na,0,1\nc,1,0\n",
        "twice.csv": ",a,a\na,0,1\nb,1,0\n",
        "two-ways.txt": "a b 3\nb a 9\n",
        "one-way.gml": "graph [ directed 1 node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 delay 5 ] ]",
        "unplaced.gml": "graph [\n node [ id 0 Latitude 1 Longitude 2 ]\n node [ id 1 ]\n edge [ source 0 target 1 ]\n]\n",
        "hole.csv": "0,1,\n1,0,2\n,2,0\n",
        "apart.csv": "source,target,ms\na,b,3\nc,d,3\n",
        "bad-pings.csv": "source,target,ms\na,b,fast\n",
        "lonely-edges.txt": "a b 3\nc d 4\n",
        "bad-edges.txt": "a b\n",
        "negative-edges.txt": "a b -3\n",
        "no-edges.txt": "# nothing\n",
        "broken.gml": "graph [ node [",
        "word.gml": 'graph [ node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 delay "far" ] ]',
        "no-edges.gml": "graph [\n  node [\n    id 0\n  ]\n]\n",
        "where.csv": "city,country\na,b\n",
        "where-word.csv": "latitude,longitude\n1,east\n",
        "where-far.csv": "latitude,longitude\n91,0\n",
        "Paris-Ping.csv": "City,Average\nRome,fast\n",
        "pings-empty/readme.txt": "",
        "pings-columns/Paris-Ping.csv": "Town,Mean\nRome,3ms\n",
        "pings-row/Paris-Ping.csv": "City,Average\nRome,fast\n",
    }


def arrays():
    np.savez("other.npz", a=np.ones(3))
    np.savez("shapes.npz", x=np.ones((2, 3, 4, 5, 6)), y=np.ones(2))
    np.savez("users.npz", x=np.ones((6, 3), np.float32), y=np.arange(6) % 2)
    np.savez("objects.npz", x=np.ones((2, 2)), y=np.array(["a", None], object))
    np.savez("na.npz", x=np.ones((3, 2)), y=np.array(["a", "NA", "b"]))
    np.savez("nan.npz", x=np.array([[1.0], [np.inf]]), y=np.arange(2))
    np.savez("half.npz", x=np.ones((2, 1)), y=np.array([0, 0.5]))
    np.save("objects.npy", np.array([[0, None], [1, 0]], object))
    np.save("text.npy", np.array([["a"]]))
    np.save("where-shape.npy", np.ones((2, 2, 2)))
    np.save("where-nan.npy", np.array([[0.0, np.nan], [1.0, 1.0]]))
    for name, images in (("sizes.tar", [(2, 2), (3, 3)]), ("broken.tar", [None])):
        with tarfile.open(name, "w") as tar:
            for n, size in enumerate(images):
                data = io.BytesIO()
                if size:
                    Image.new("RGB", size).save(data, "PNG")
                info = tarfile.TarInfo(f"cat/{n}.png")
                info.size = len(data.getvalue()) or 4
                tar.addfile(info, io.BytesIO(data.getvalue() or b"text"))


def devices():
    def put(name, value):
        return lambda t, f: t.__setitem__(name, np.asarray(value, t[name].dtype if name in t else None))

    def network(**words):
        return lambda t, f: f["network"].update(words)

    source = "fleet.devices"
    edited(source, "none.devices", lambda t, f: [t.__setitem__(n, t[n][:0]) for n in ("labels", "index")])
    edited(source, "offsets.devices", lambda t, f: t.__setitem__("offsets", t["offsets"][:-1]))
    edited(source, "twice.devices", lambda t, f: t["index"].__setitem__(0, t["index"][1]))
    edited(source, "labels.devices", lambda t, f: t["labels"].__setitem__((0, 0), t["labels"][0, 0] + 1))
    edited(source, "metric.devices", network(metric="mood"))
    edited(source, "matrix.devices", network(metric="matrix"))
    edited(source, "site.devices", put("site", np.zeros(3, np.int32)))
    edited(source, "far-site.devices", put("site", np.full(12, 99, np.int32)))
    edited(source, "nan.devices", lambda t, f: t["coordinates"].__setitem__((0, 0), np.nan))
    edited(source, "mile.devices", put("last_mile", np.full(12, -1, np.float32)))
    edited(source, "no-network.devices", lambda t, f: [t.pop("coordinates"), f.__setitem__("network", {})])
    edited(source, "no-data.devices", lambda t, f: f.__setitem__("data", {}))
    edited(source, "graph.devices", graph)
    edited(source, "moved.devices", lambda t, f: t["coordinates"].__setitem__((0, 0), 1.0))


def graph(t, f):
    t.pop("coordinates")
    t.update(edges=np.array([[-1, 0]], np.int32), edge_ms=np.ones(1, np.float32))
    f["network"]["metric"] = "graph"


def trees():
    def put(name, place, value):
        return lambda t, f: t[name].__setitem__(place, value)

    edited("fleet.tree", "level.tree", put("level", 0, 1))
    edited("fleet.tree", "device.tree", put("device", 0, 5))
    edited("fleet.tree", "root.tree", put("parent", -1, 0))
    edited("fleet.tree", "up.tree", lambda t, f: t["parent"].__setitem__(0, len(t["parent"]) - 1))
    edited("fleet.tree", "childless.tree", lambda t, f: t["parent"].__setitem__(slice(0, 12), 12))
    edited("fleet.tree", "stranger.tree", lambda t, f: t["device"].__setitem__(12, next(
        d for d in range(12) if t["parent"][d] != 12)))  # fmt: skip
    edited("fleet.tree", "ratios.tree", put("ratios", -1, 3))
    edited("fleet.tree", "order.tree", lambda t, f: t.__setitem__("order", t["order"][:-1]))
    edited("fleet.tree", "public.tree", lambda t, f: t.__setitem__("public", np.array([99], np.int32)))
    edited("fleet.tree", "made-of.tree", lambda t, f: f.__setitem__("made_of", "kvs1_other"))


CASES = f"""
kvtools devices
kvtools devices --delay pings.csv --graph edges.txt
kvtools devices --data digits.csv --rtt
kvtools devices --coordinates here.csv --symmetrize
kvtools devices --graph edges.txt --last-mile far
kvtools devices --data digits.csv --partition best --devices 4
kvtools devices --data digits.csv --partition dirichlet:0 --devices 4
kvtools devices --data digits.csv --partition natural --devices 4
kvtools devices --data digits.csv --partition shards:90 --devices 9
kvtools devices --data digits.csv --partition classes:9 --devices 9
kvtools devices --data digits.csv --partition classes:1 --devices 2
kvtools devices --data digits.csv --devices 900
kvtools devices --data digits.csv
kvtools devices --data digits.csv --partition file:nowhere.json
kvtools devices --data digits.csv --partition file:holes.json
kvtools devices --data digits.csv --partition file:far.json
kvtools devices --data digits.csv --partition file:double.json
kvtools devices --data digits.csv --partition file:bare.json
kvtools devices --data digits.csv --partition file:strings.json
kvtools devices --data digits.csv --partition file:deep.json
kvtools devices --data digits.csv --partition file:whole.json --devices 5
kvtools devices --data nowhere --devices 4
kvtools devices --data empty --devices 4
kvtools devices --data short-row.csv --devices 1
kvtools devices --data word.csv --devices 1
kvtools devices --data label.csv --devices 1
kvtools devices --data nan.csv --devices 1
kvtools devices --data bare-cell.csv --devices 1
kvtools devices --data colons.csv --devices 1
kvtools devices --data objects.npz --devices 1
kvtools devices --data na.npz --devices 1
kvtools devices --data nan.npz --devices 1
kvtools devices --data half.npz --devices 1
kvtools devices --data none.csv --devices 1
kvtools devices --data one.csv --devices 1
kvtools devices --data shapes --devices 1
kvtools devices --data parts --devices 1
kvtools devices --data bare-shapes --devices 1
kvtools devices --data bare-parts --devices 1
kvtools devices --data no-label.csv --devices 1
kvtools devices --data na-label.csv --devices 1
kvtools devices --data untitled --devices 1
kvtools devices --data labels --devices 1
kvtools devices --data idx --devices 1
kvtools devices --data idx-bad --devices 1
kvtools devices --data idx-cut --devices 1
kvtools devices --data idx-few --devices 1
kvtools devices --data cut.csv.gz --devices 1
kvtools devices --data leaf.json --devices 1
kvtools devices --data leaf-broken.json --devices 1
kvtools devices --data leaf-other.json --devices 1
kvtools devices --data other.npz --devices 1
kvtools devices --data shapes.npz --devices 1
kvtools devices --data text.npz --devices 1
kvtools devices --data sizes.tar --devices 1
kvtools devices --data broken.tar --devices 1
kvtools devices --delay empty.txt
kvtools devices --delay row.txt
kvtools devices --delay word.txt
kvtools devices --delay decimals.csv
kvtools devices --delay colons.txt
kvtools devices --delay odd.csv
kvtools devices --delay objects.npy
kvtools devices --delay wide.txt
kvtools devices --delay negative.txt
kvtools devices --delay odd.txt
kvtools devices --delay names.csv
kvtools devices --delay twice.csv
kvtools devices --delay hole.csv
kvtools devices --delay apart.csv --symmetrize
kvtools devices --delay bad-pings.csv
kvtools devices --delay Paris-Ping.csv
kvtools devices --delay pings-empty
kvtools devices --delay pings-columns
kvtools devices --delay pings-row
kvtools devices --graph lonely-edges.txt
kvtools devices --graph bad-edges.txt
kvtools devices --graph negative-edges.txt
kvtools devices --graph no-edges.txt
kvtools devices --graph broken.gml
kvtools devices --data blobs --last-mile 5:2
kvtools devices --graph no-edges.gml
kvtools devices --graph two-ways.txt
kvtools devices --graph one-way.gml
kvtools devices --graph unplaced.gml
kvtools devices --graph word.gml
kvtools devices --coordinates where.csv
kvtools devices --coordinates where-word.csv
kvtools devices --coordinates where-far.csv
kvtools devices --coordinates where-shape.npy
kvtools devices --coordinates where-nan.npy
kvtools kma-cluster -k 3 items.ids
kvtools kma-cluster -k 3 --method k-medoids clips.kvs
kvtools kma-cluster -k 3 --method k-medoids none.devices
kvtools kma-cluster -k 3 --method k-medoids offsets.devices
kvtools kma-cluster -k 3 --method k-medoids twice.devices
kvtools kma-cluster -k 3 --method k-medoids labels.devices
kvtools kma-cluster -k 3 --method k-medoids metric.devices
kvtools kma-cluster -k 3 --method k-medoids matrix.devices
kvtools kma-cluster -k 3 --method k-medoids site.devices
kvtools kma-cluster -k 3 --method k-medoids far-site.devices
kvtools kma-cluster -k 3 --method k-medoids nan.devices
kvtools kma-cluster -k 3 --method k-medoids mile.devices
kvtools kma-cluster -k 3 --method k-medoids graph.devices
kvtools kma-cluster -k 3 --method k-medoids no-network.devices
kvtools kma-cluster --since fleet.tree small.devices
kvtools kma-cluster -k 99 --method k-medoids fleet.devices
kvtools kma-cluster -k 3 fleet.devices
kvtools kma-cluster -k 3 --data labels fleet.devices
kvtools kma-cluster -k 3 --data digits.csv no-data.devices
kvtools kma-cluster -k 3 --public 1 --method k-medoids fleet.devices
kvtools kma-cluster -k 4 --levels 2,3 fleet.devices
kvtools kma-cluster -k 4 --levels x fleet.devices
kvtools kma-cluster -k 4 --ratios 1,2 fleet.devices
kvtools kma-cluster -k 4 --ratios 1,x,1 fleet.devices
kvtools kma-cluster --since fleet.tree -k 3 fleet.devices
kvtools kma-cluster --since nowhere.tree fleet.devices
kvtools etree-train --data digits.csv fleet.devices
kvtools etree-train --tree fleet.tree fleet.devices
kvtools etree-train --tree - --data digits.csv - < fleet.tree
kvtools etree-train --tree fleet.devices --data digits.csv fleet.devices
kvtools etree-train --tree fleet.tree --data digits.csv items.ids
kvtools etree-train --tree level.tree --data digits.csv fleet.devices
kvtools etree-train --tree device.tree --data digits.csv fleet.devices
kvtools etree-train --tree root.tree --data digits.csv fleet.devices
kvtools etree-train --tree up.tree --data digits.csv fleet.devices
kvtools etree-train --tree childless.tree --data digits.csv fleet.devices
kvtools etree-train --tree stranger.tree --data digits.csv fleet.devices
kvtools etree-train --tree ratios.tree --data digits.csv fleet.devices
kvtools etree-train --tree order.tree --data digits.csv fleet.devices
kvtools etree-train --tree public.tree --data digits.csv fleet.devices
kvtools etree-train --tree fleet.tree --data digits.csv small.devices
kvtools etree-train --tree made-of.tree --data digits.csv fleet.devices
kvtools etree-train --tree fleet.tree --data digits.csv no-network.devices
kvtools etree-train --tree fleet.tree --data other.csv fleet.devices
kvtools {TRAIN} --ratios 1,2
kvtools {TRAIN} --secure --late carry
kvtools {TRAIN} --secure --algorithm gossip
kvtools {TRAIN} --fail root@2 --algorithm gossip
kvtools {TRAIN} --compare
kvtools {TRAIN} --epochs 3 --ratios 1,2,2,1
kvtools {TRAIN} --fail fire@3
kvtools {TRAIN} --fail leaf:200%@3
kvtools {TRAIN} --fail leaf:1@0
kvtools {TRAIN} --fail join:1@2-3
kvtools {TRAIN} --fail aggregator:9@2
kvtools {TRAIN} --fail leaf:99@2
kvtools {TRAIN} --fail ,
kvtools {TRAIN} --fail ""
kvtools {TRAIN} --lr 1e30 --model mlp:4
kvtools {TRAIN} --model cnn
kvtools {TRAIN} --model transformer
kvtools {TRAIN} --model nowhere.toml
kvtools {TRAIN} --model no-toml.toml
kvtools {TRAIN} --model no-layers.toml
kvtools {TRAIN} --model kind.toml
kvtools {TRAIN} --model size.toml
kvtools {TRAIN} --model number.toml
kvtools {TRAIN} --model vast.toml
kvtools {TRAIN} --model conv.toml
kvtools {TRAIN} --model groups.toml
kvtools {TRAIN} --model nowhere.py:net
kvtools {TRAIN} --model own.py:nobody
kvtools {TRAIN} --model own.py:number
kvtools {TRAIN} --model own.py:wide
kvtools {TRAIN} --model own.py:normed
kvtools {TRAIN} --model own.py:dropping
kvtools {TRAIN} --model own.py:empty
kvtools {TRAIN} --model mlp:60000,60000 --algorithm gossip
SLURM_JOB_END_TIME=1 kvtools {TRAIN} -o stopped.model
kvtools {TRAIN} --lr 0.1 -o stopped.model
kvtools devices --delay cut-header.npy
kvtools devices --delay text.npy
SLURM_JOB_END_TIME=1 kvtools kma-cluster -k 3 --data digits.csv fleet.devices -o stopped.tree
kvtools kma-cluster -k 2 --data digits.csv fleet.devices -o stopped.tree
kvtools.etree.tree.balanced.balanced(delays(10_001), np.zeros((10_001, 0), np.int32), 10_000, seed=0, world=world())
kvtools.etree.tree.kma.cluster("kma", delays(20_001), 3, seed=0, world=world())
kvtools.etree.tree.bounded_assignment.assign(np.zeros((5, 2)), 3, 4)
kvtools.etree.train.secure_aggregation.to_units(np.full(3, 1e30), 1.0, 2)
"""
