"""RQ-KMeans against twenty obvious lines in float64; and what must hold of it whatever the rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.semantic_ids import equal_rows, kernels, rqkmeans
from kvtools.onerec.semantic_ids.initial_centroids import plus_plus
from kvtools.onerec.semantic_ids.nearest import Backend, CodebookIndex
from kvtools.onerec.semantic_ids.rqkmeans import RqKMeans, encode
from kvtools.onerec.semantic_ids.vector_store import VectorStore
from kvtools.world import World

CHOSEN = Backend(torch.device("cpu"), torch.bfloat16)


def slow_lloyd(x_ND, start_KD, n_iterations):
    """Plain Lloyd in float64; an empty cell stays where it is. Returns codes of a last assignment, and the cells."""
    x_ND, codes_KD = x_ND.astype(np.float64), start_KD.astype(np.float64)
    for iteration in range(n_iterations + 1):
        distances = np.stack([np.square(x_ND - code).sum(axis=1) for code in codes_KD], axis=1)
        nearest = distances.argmin(axis=1)
        if iteration < n_iterations:
            for k in range(len(codes_KD)):
                if (nearest == k).any():
                    codes_KD[k] = x_ND[nearest == k].mean(axis=0)
    return nearest, codes_KD


def held(x_ND, n_at_once=1000, **options):
    rows = VectorStore(x_ND.shape[1], **options)
    for begin in range(0, len(x_ND), n_at_once):
        rows.append(begin, x_ND[begin : begin + n_at_once])
    return rows


def fitted(x_ND, fit, **options):
    rows = held(x_ND, **options)
    steps = list(fit.fit(rows, CHOSEN, World()))
    return steps, rows


def clustered(seed, n=1500, width=12, n_centres=40):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_centres, width))[rng.integers(0, n_centres, n)] * 3 + rng.normal(size=(n, width))).astype(
        np.float32
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codes_are_those_of_plain_lloyd_in_float64_level_by_level(seed):
    x = clustered(seed)
    fit = RqKMeans(3, 16, 12, seed)
    left = x.copy()
    starts = []
    original = rqkmeans.initial_centroids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rqkmeans, "initial_centroids", lambda *a: starts.append(original(*a)) or starts[-1])
        fitted(x, fit)
    assert fit.reseeds == [0, 0, 0], "the slow version does not re-seed"
    for level in range(3):
        codes, cells = slow_lloyd(left, starts[level], 12)
        assert np.array_equal(fit.codes_NL[:, level], codes)
        # a mean of about a hundred float32 values, rounded to float32 in each of twelve iterations
        np.testing.assert_allclose(fit.codebooks[level], cells, rtol=0, atol=1e-5)
        left -= fit.codebooks[level][codes]
    assert fit.mse == pytest.approx(np.square(left, dtype=np.float64).mean(), rel=1e-9)


SIZES = {
    "one row far out": lambda x: np.concatenate([x[:-1], np.full((1, x.shape[1]), 1e12)]),
    "one dimension far out": lambda x: np.where(np.arange(x.shape[1]) == 3, 1e10 * x, x),
    "rows of many sizes": lambda x: x * 10.0 ** np.repeat([-9, -3, 3, 9], len(x) // 4)[:, None],
    "below the normal numbers of float32": lambda x: x * 1e-42,
    "near the largest": lambda x: x * 1e14,
    "far from the origin": lambda x: x + 1e4,
}


@pytest.mark.skipif(not kernels.are_there(), reason="numba is not installed")
@pytest.mark.parametrize("sizes", [*SIZES, "usual"])
def test_compiled_passes_change_no_byte(sizes):
    x = SIZES.get(sizes, np.copy)(clustered(5, n=4000, width=40)).astype(np.float32)
    fits = [RqKMeans(2, 128, 8, 0) for _ in range(2)]
    for fit, is_compiled in zip(fits, (False, True), strict=True):
        list(fit.fit(held(x.copy()), Backend(CHOSEN.device, CHOSEN.dtype, is_compiled), World()))
    assert np.array_equal(fits[0].codes_NL, fits[1].codes_NL)
    assert np.array_equal(fits[0].codebooks, fits[1].codebooks)


@pytest.mark.parametrize("sizes", SIZES)
def test_codebooks_are_means_of_their_cells_whatever_the_sizes_of_vectors(sizes):
    x = SIZES[sizes](clustered(10, n=800, width=6)).astype(np.float32)
    fit = RqKMeans(1, 9, 300, 1)
    fitted(x.copy(), fit)
    codebook, codes = fit.codebooks[0], fit.codes_NL[:, 0]
    distances = np.square(x[:, None].astype(np.float64) - codebook).sum(axis=2)
    assert np.array_equal(codes, distances.argmin(axis=1))
    means = [[math.fsum(column) / len(cell) for column in cell.T] for cell in (x[codes == k] for k in range(9))]
    np.testing.assert_array_equal(codebook, np.array(means, np.float32))
    assert len(set(codes)) == 9


def test_the_objective_never_rises_within_a_level():
    steps, _ = fitted(clustered(3), RqKMeans(2, 24, 30, 0))
    for level in (0, 1):
        costs = [step.objective for step in steps if step.level == level]
        assert len(costs) > 3
        assert all(b <= a * (1 + 1e-6) for a, b in zip(costs, costs[1:], strict=False)), costs


def test_the_fit_ends_when_nothing_moves_and_more_iterations_change_nothing():
    x = clustered(4)
    short, long = (RqKMeans(1, 8, n, 0) for n in (60, 200))
    steps, _ = fitted(x, short)
    fitted(x, long)
    assert len(steps) < 60
    assert np.array_equal(np.stack(short.codebooks), np.stack(long.codebooks))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(8, 300),
    width=st.integers(1, 9),
    n_codes=st.integers(1, 8),
    grain=st.sampled_from([0.0, 1.0]),
)
def test_every_row_reconstructs_and_every_code_is_the_nearest(seed, n, width, n_codes, grain):
    x = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    if grain:
        x = np.round(x)  # few distinct rows, often fewer than codes
    fit = RqKMeans(2, n_codes, 4, seed)
    _, rows = fitted(x, fit)
    left = x.copy()
    for level in range(2):
        distances = np.square(left[:, None].astype(np.float64) - fit.codebooks[level]).sum(axis=2)
        assert np.array_equal(fit.codes_NL[:, level], distances.argmin(axis=1))
        left -= fit.codebooks[level][fit.codes_NL[:, level]]
    assert np.array_equal(left, np.concatenate([block for _, block in rows]))
    codes, rest = encode(x, [CodebookIndex(c, CHOSEN) for c in fit.codebooks])
    assert np.array_equal(codes, fit.codes_NL)
    assert np.array_equal(rest, left)


def test_empty_cells_go_where_the_error_is_largest_and_are_counted():
    # three lumps; centroids that all lie in one of them leave cells empty as soon as they move
    x = np.concatenate([clustered(5, 300, 4, 1) + offset for offset in (0, 50, 100)]).astype(np.float32)
    x[-1] += 500
    fit = RqKMeans(1, 4, 20, 0)
    fit.begun, fit.reseeds = (0, np.stack([x[0], x[0], x[0] + 1e4, x[0] + 2e4]).astype(np.float32)), [0]
    steps, _ = fitted(x, fit)
    assert fit.reseeds[0] == sum(step.n_reseeded for step in steps) >= 3
    assert len(np.unique(fit.codes_NL)) == 4
    costs = [step.objective for step in steps]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(costs, costs[1:], strict=False))


def test_rows_fewer_than_codes_are_refused():
    with pytest.raises(ValueError, match="^5 vectors are too few for 6 codes$"):
        list(RqKMeans(1, 6, 3, 0).fit(held(np.zeros((5, 2), np.float32)), CHOSEN, World()))


def test_rows_on_disk_and_blocks_of_any_size_give_the_same(monkeypatch):
    x = clustered(6, n=3000)
    whole = RqKMeans(3, 32, 8, 1)
    fitted(x, whole)
    monkeypatch.setattr("kvtools.onerec.semantic_ids.vector_store._BLOCK_BYTES", 1 << 14)
    pieces = RqKMeans(3, 32, 8, 1)
    _, rows = fitted(x, pieces, n_at_once=77, limit_bytes=1 << 15)
    assert rows.is_on_disk
    assert np.array_equal(np.stack(whole.codebooks), np.stack(pieces.codebooks))
    assert np.array_equal(whole.codes_NL, pieces.codes_NL)
    assert whole.mse == pieces.mse


def test_a_fit_taken_up_anywhere_ends_as_if_never_left():
    x = clustered(7)
    whole = RqKMeans(2, 16, 6, 2)
    steps, _ = fitted(x, whole)
    for n_done in range(1, len(steps)):
        first = RqKMeans(2, 16, 6, 2)
        running = first.fit(held(x), CHOSEN, World())
        for _ in range(n_done):
            next(running)
        second = RqKMeans(2, 16, 6, 2)
        second.resume(*first.state())
        fitted(x, second)
        assert np.array_equal(np.stack(second.codebooks), np.stack(whole.codebooks))
        assert np.array_equal(second.codes_NL, whole.codes_NL)
        assert (second.mse, second.reseeds) == (whole.mse, whole.reseeds)


@pytest.mark.parametrize(
    "changed", [lambda x: clustered(9, 50), lambda x: x[::-1].copy(), lambda x: -x, lambda x: np.roll(x, 1, axis=1)]
)
def test_a_fit_is_not_taken_up_with_other_rows(changed):
    x = clustered(8, 50)
    first = RqKMeans(1, 4, 3, 0)
    fitted(x.copy(), first)
    fitted(x.copy(), RqKMeans(1, 4, 3, 0, digest=first.digest))
    with pytest.raises(rqkmeans.OtherVectors):
        fitted(changed(x), RqKMeans(1, 4, 3, 0, digest=first.digest))


def test_seeding_draws_distinct_rows_and_far_ones_more_often():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(990, 3)), rng.normal(size=(10, 3)) + 1000]).astype(np.float32)
    for seed in range(20):
        chosen = plus_plus(x, 5, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 5
        assert (chosen >= 990).any(), "the far lump holds nearly all of the squared distance"
    same = plus_plus(np.ones((6, 2), np.float32), 4, np.random.default_rng(0))
    assert len(set(same.tolist())) == 4


def test_equal_rows_are_assigned_once_and_codes_of_equal_centroids_cost_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 12)).astype(np.float32)[rng.integers(0, 60, 900)]
    n_asked, pairs = [], []
    nearest, decide = CodebookIndex.nearest, CodebookIndex._decide
    monkeypatch.setattr(
        CodebookIndex, "nearest", lambda self, x_ND, guess_N=None: n_asked.append(len(x_ND)) or nearest(self, x_ND, guess_N)
    )
    monkeypatch.setattr(CodebookIndex, "_decide", lambda self, *a: pairs.append(len(a[2])) or decide(self, *a))
    fit = RqKMeans(3, 80, 5, 0)
    _, rows = fitted(x, fit)
    assert set(n_asked) == {60}
    assert sum(pairs) < 60 * len(n_asked), "equal codes are no candidates of one another"
    assert fit.mse == 0
    np.testing.assert_array_equal(sum(fit.codebooks[level][fit.codes_NL[:, level]] for level in range(3)), x)
    assert all((fit.codes_NL[x_equal] == fit.codes_NL[x_equal[0]]).all() for x_equal in _sets_of_equal(x))
    assert not any(block.any() for _, block in rows)


def _sets_of_equal(x_ND):
    _, number_N = np.unique(x_ND, axis=0, return_inverse=True)
    return [np.flatnonzero(number_N.reshape(-1) == n) for n in range(number_N.max() + 1)]


def test_levels_without_error_are_not_fitted(monkeypatch):
    x = clustered(6, n=50)
    n_levels = []
    original = rqkmeans.initial_centroids
    monkeypatch.setattr(rqkmeans, "initial_centroids", lambda *a: n_levels.append(a) or original(*a))
    fit = RqKMeans(3, len(x), 5, 0)
    steps, _ = fitted(x, fit)
    assert len(n_levels) == 1
    assert [step.level for step in steps][-2:] == [1, 2]
    assert not fit.codebooks[1].any()
    assert not fit.codes_NL[:, 1:].any()
    assert len(set(fit.codes_NL[:, 0])) == len(x)


def test_equal_rows_are_found_whatever_their_hashes(monkeypatch):
    x = clustered(7, n=20)[np.array([3, 1, 3, 0, 1, 2])]
    x[5, 0], x[0, 1] = 0.0, 0.0
    x[2] = x[0]
    x[2, 1] = -0.0
    for hashes in (equal_rows._hashes, lambda x_ND: np.zeros(len(x_ND), np.uint64)):
        monkeypatch.setattr(equal_rows, "_hashes", hashes)
        first, number = equal_rows.equal_rows(x)
        assert first.tolist() == [0, 1, 3, 5]
        assert number.tolist() == [0, 1, 0, 2, 1, 3]
