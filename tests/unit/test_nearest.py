"""The nearest code is the one that exact arithmetic finds, whatever the precision of the first look."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.semantic_ids import centred_codes, kernels
from kvtools.onerec.semantic_ids.nearest import Backend, CodebookIndex

CPU = torch.device("cpu")
PLAIN = [Backend(CPU, dtype) for dtype in (torch.bfloat16, torch.float32)]
BACKENDS = PLAIN + [Backend(CPU, dtype, is_compiled=True) for dtype in (torch.bfloat16, torch.float32) if kernels.are_there()]


def slow_nearest(x_ND, codes_KD):
    """Every distance in float64; ties to the lower code."""
    distances = [np.square(x_ND.astype(np.float64) - code).sum(axis=1) for code in codes_KD.astype(np.float64)]
    return np.argmin(np.stack(distances, axis=1), axis=1)


def rows(seed, n, width, offset=0.0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(n, width)) * scale + offset).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize(
    ("width", "n_codes", "offset", "scale"),
    [
        (1, 1, 0, 1),
        (1, 7, 0, 1),
        (3, 64, 0, 1),
        (56, 64, 0, 1),
        (17, 100, 5, 1),
        (64, 130, 300, 1),
        (256, 1024, 0, 1e-6),
        (96, 300, -40, 1e4),
        (12, 1030, 0, 1),
        (40, 2500, 2, 1),
    ],
)
def test_nearest_code_is_the_exact_one(backend, width, n_codes, offset, scale):
    x = rows(1, 3000, width, offset * scale, scale)
    codes = rows(2, n_codes, width, offset * scale, scale * 0.3)
    search = CodebookIndex(codes, backend)
    exact = slow_nearest(x, codes)
    assert np.array_equal(search.nearest(x), exact)
    guesses = np.random.default_rng(3).integers(0, n_codes, len(x)).astype(np.int32)
    assert np.array_equal(search.nearest(x, guesses), exact)
    assert np.array_equal(search.nearest(x, exact.astype(np.int32)), exact)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("n", [5, 200])
def test_wrong_guesses_are_replaced_where_a_better_one_leaves_no_candidate(backend, n):
    codes = rows(12, 100, 16)
    exact = np.random.default_rng(13).integers(0, 100, n)
    guesses = (exact + np.random.default_rng(14).integers(1, 100, n)) % 100
    assert np.array_equal(CodebookIndex(codes, backend).nearest(codes[exact], guesses.astype(np.int32)), exact)


@pytest.mark.parametrize("n_distinct", [100, 2200])
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_near_ties_are_distinguished_and_ties_go_to_the_lower_code(backend, n_distinct):
    # codes a few float32 steps apart, and each of them twice: bfloat16 sees one code where there are two hundred
    base = rows(4, 1, 40, offset=1.0)
    near = base + np.linspace(-1e-6, 1e-6, 100, dtype=np.float32)[:, None]
    codes = np.repeat(np.concatenate([near[:50], rows(15, n_distinct - 100, 40), near[50:]]), 2, axis=0)
    x = base + rows(5, 500, 40, scale=1e-6)
    assert np.array_equal(CodebookIndex(codes, backend).nearest(x), slow_nearest(x, codes))


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_blocks_may_be_shared_by_threads(backend, n_threads, monkeypatch):
    monkeypatch.setattr(centred_codes, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    codes = rows(16, 150, 24, offset=30.0)
    x = rows(17, 4000, 24, offset=30.0)
    assert np.array_equal(CodebookIndex(codes, backend).nearest(x), slow_nearest(x, codes))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_rows_of_zeros_and_one_far_code_do_not_blur_the_others(backend):
    codes = rows(6, 200, 32)
    codes[17] *= 1e6
    x = np.concatenate([np.zeros((50, 32), np.float32), rows(7, 500, 32), codes])
    assert np.array_equal(CodebookIndex(codes, backend).nearest(x), slow_nearest(x, codes))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 40),
    n_codes=st.integers(1, 200),
    exponent=st.integers(-12, 12),
    offset=st.floats(-100, 100),
    grain=st.sampled_from([0, 0.5, 2.0]),
    backend=st.sampled_from(BACKENDS),
)
def test_any_rows_any_codes(seed, width, n_codes, exponent, offset, grain, backend):
    x, codes = (rows(seed + i, n, width, offset, 1.0) for i, n in enumerate((200, n_codes)))
    if grain:  # many exact ties
        x, codes = np.round(x / grain) * np.float32(grain), np.round(codes / grain) * np.float32(grain)
    x, codes = (np.ldexp(a, exponent).astype(np.float32) for a in (x, codes))
    assert np.array_equal(CodebookIndex(codes, backend).nearest(x), slow_nearest(x, codes))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_block_size_and_threads_do_not_matter(backend, monkeypatch):
    x, codes = rows(8, 2500, 48), rows(9, 500, 48)
    whole = CodebookIndex(codes, backend).nearest(x)
    monkeypatch.setattr(centred_codes, "BLOCK_BYTES", 1 << 16)
    assert np.array_equal(CodebookIndex(codes, backend).nearest(x), whole)
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert np.array_equal(CodebookIndex(codes, backend).nearest(x), whole)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_finds_the_same():
    x, codes = rows(10, 20_000, 64), rows(11, 1000, 64)
    there = CodebookIndex(codes, Backend(torch.device("cuda"), torch.bfloat16)).nearest(x)
    assert np.array_equal(there, CodebookIndex(codes, BACKENDS[1]).nearest(x))
