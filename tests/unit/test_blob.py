import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from kvtools.artifact import blob

DTYPES = st.sampled_from(sorted(blob.DTYPES))


def bytes_for(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, shape).astype(blob.DTYPES[dtype])


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(DTYPES, hnp.array_shapes(min_dims=0, min_side=0)),
        max_size=6,
    )
)
def test_bytes_equal_those_of_the_safetensors_library(specs):
    tensors = {name: bytes_for(dtype, shape, i) for i, (name, (dtype, shape)) in enumerate(specs.items())}
    fields = {"kind": "video", "key": "é"}
    ours = b"".join(blob.encode(tensors, fields))
    assert ours == save(tensors, metadata={"kvtools": blob.canonical(fields).decode()})
    decoded, found = blob.decode(ours)
    assert found == fields
    assert all(np.array_equal(decoded[name], tensors[name]) and decoded[name].dtype == tensors[name].dtype for name in tensors)


def test_encoding_copies_no_tensor():
    tensor = np.arange(1000, dtype=np.float32)
    pieces = blob.encode({"x": tensor}, {})
    assert np.shares_memory(np.frombuffer(pieces[1], np.uint8), tensor)


def blob_with(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + data


X = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        blob_with(b"[]"),
        blob_with(b"{"),
        blob_with(b"\xff\xfe"),
        blob_with(b'{"x":' + json.dumps(X).encode() + b',"x":' + json.dumps(X).encode() + b"}", b"ab"),
        blob_with({"x": X}, b"a"),
        blob_with({"x": X}, b"abc"),
        blob_with({"x": X | {"dtype": "U9"}}, b"ab"),
        blob_with({"x": X | {"shape": [3]}}, b"ab"),
        blob_with({"x": X | {"shape": [-2]}}, b"ab"),
        blob_with({"x": X | {"shape": [1 << 40]}}, b"ab"),
        blob_with({"x": X | {"data_offsets": [1, 3]}}, b"abc"),
        blob_with({"x": X, "y": X}, b"ab"),
        blob_with({"x": 3}, b"ab"),
        blob_with({"__metadata__": {"kvtools": "{"}}),
        blob_with({"__metadata__": {"kvtools": "[]"}}),
        blob_with({"__metadata__": 5}),
    ],
)
def test_what_is_not_a_blob_is_refused(raw):
    with pytest.raises(ValueError):
        blob.decode(raw)


def test_a_foreign_file_has_no_fields():
    raw = save({"x": np.ones(3, np.float32)}, metadata={"format": "pt"})
    tensors, fields = blob.decode(raw)
    assert fields == {}
    assert np.array_equal(tensors["x"], load(raw)["x"])
