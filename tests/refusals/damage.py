"""Artifacts made wrong on purpose, byte by byte, without kvtools' own code."""

import json
import struct
from pathlib import Path
from zlib import crc32

import numpy as np

HEAD, KEYS, MARK, END = 0x184D2A50, 0x184D2A51, 0x184D2A52, 0x184D2A5E
MARK_BYTES = 8 + 28 + 4


def crc(data):
    return crc32(data).to_bytes(4, "little")


def skippable(magic, payload):
    return struct.pack("<II", magic, len(payload)) + payload


def head(words, tag=b"kvs1"):
    payload = tag + json.dumps(words).encode()
    return skippable(HEAD, payload + crc(payload))


def mark(number, n_stored, n_raw, raw_crc):
    payload = struct.pack("<QQQI", number, n_stored, n_raw, raw_crc)
    return skippable(MARK, payload + crc(payload))


def stored(raw):
    """One zstd frame of one raw block."""
    return struct.pack("<IBI", 0xFD2FB528, 0xA0, len(raw)) + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


def record(number, raw):
    frame = stored(raw)
    return mark(number, len(frame), len(raw), crc32(raw)) + frame


def keys(names, frames):
    order = sorted(range(len(names)), key=lambda n: names[n])
    ends, total = [], 0
    for n in order:
        total += len(names[n].encode())
        ends.append(total)
    payload = struct.pack("<Q", len(names)) + b"".join(crc(frame) for frame in frames)
    payload += b"".join(struct.pack("<Q", n) for n in order + ends) + b"".join(names[n].encode() for n in order)
    return skippable(KEYS, payload + crc(payload))


def end(sizes):
    table = b"".join(struct.pack("<II", *pair) for pair in sizes)
    return skippable(END, table + struct.pack("<IBI", len(sizes), 0, 0x8F92EAB1))


def key_of(raw):
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return json.loads(header["__metadata__"]["kvtools"]).get("key", "")


def stream(kind, raws, names=None, *, n_ends=None, key_crcs=None):
    """A whole stream of records that are already encoded."""
    first = head({"kind": kind, "schema": 1, "history": [], "config": {}})
    names = [key_of(raw) for raw in raws] if names is None else names
    frames = [stored(raw) for raw in raws]
    index = keys(names, key_crcs or frames)
    sizes = [(len(first), 0)]
    for raw, frame in zip(raws, frames, strict=True):
        sizes += [(MARK_BYTES, 0), (len(frame), len(raw))]
    sizes.append((len(index), 0))
    return first + b"".join(record(n, raw) for n, raw in enumerate(raws)) + index + end(sizes[:n_ends])


DTYPES = {"U8": 1, "I8": 1, "U16": 2, "BF16": 2, "F16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}


def blob(tensors, fields, **entries):
    """One safetensors blob. tensors: {name: (dtype, shape, bytes)}. entries: header entries put in place of what is right."""
    header, data = {"__metadata__": {"kvtools": json.dumps(fields)}}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header | entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def zeros(dtype, *shape):
    n = DTYPES[dtype]
    for size in shape:
        n *= size
    return dtype, [*shape], bytes(n)


def strings(name, words):
    data, ends = b"", [0]
    for word in words:
        data += word.encode()
        ends.append(len(data))
    return {
        f"{name}.bytes": ("U8", [len(data)], data),
        f"{name}.offsets": ("I64", [len(ends)], struct.pack(f"<{len(ends)}q", *ends)),
    }


def bag(kind, tensors, *, crc32s=None, **fields):
    sums = {name: crc32(content) for name, (_, _, content) in tensors.items()} if crc32s is None else crc32s
    return blob(tensors, {"kind": kind, "config": {}, "history": [], "crc32": sums, **fields})


NUMPY = {"U8": "u1", "I8": "i1", "U16": "<u2", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}


def edited(src, dst, edit):
    """Write a bag again after edit(tensors, fields) has changed numpy arrays or fields in place; checksums are right again."""
    data = Path(src).read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    fields = json.loads(header.pop("__metadata__")["kvtools"])
    tensors = {}
    for name, entry in header.items():
        begin, last = (8 + n + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:last], NUMPY[entry["dtype"]]).reshape(entry["shape"]).copy()
    edit(tensors, fields)
    named = {value: key for key, value in NUMPY.items()}
    given = {
        name: (named[x.dtype.str.lstrip("|")], [*x.shape], np.ascontiguousarray(x).tobytes()) for name, x in tensors.items()
    }
    kind = fields.pop("kind")
    fields.pop("crc32")
    Path(dst).write_bytes(bag(kind, given, **fields))


def array(x, dtype):
    """A numpy array as blob() takes tensors."""
    x = np.ascontiguousarray(x, NUMPY[dtype])
    return dtype, [*x.shape], x.tobytes()


def furnish(files):
    """Write files by name, text or bytes; a folder that a name has is made."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
