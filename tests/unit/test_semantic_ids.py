"""Collisions, balance and the report: what is promised of IDs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.artifact.files import Sink
from kvtools.artifact.strings import pack
from kvtools.errors import Corrupt
from kvtools.onerec.semantic_ids import collisions, quality
from kvtools.onerec.semantic_ids.balanced import Balanced, balanced
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.onerec.semantic_ids.nearest import Backend
from kvtools.onerec.semantic_ids.vector_store import VectorStore
from kvtools.world import World

IDS = st.integers(1, 60).flatmap(lambda n: st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=n, max_size=n))


@settings(max_examples=100, deadline=None)
@given(old=IDS, new=IDS)
def test_a_further_token_makes_every_id_its_own_and_leaves_old_ones_alone(old, new):
    old_codes = collisions.extend(np.array(old, np.int32))
    assert len(np.unique(old_codes, axis=0)) == len(old)
    new_codes = collisions.extend(np.array(new, np.int32), old_codes)
    assert np.array_equal(new_codes[:, :2], new)
    assert len(np.unique(np.concatenate([old_codes, new_codes]), axis=0)) == len(old) + len(new)
    # tokens are dense: 0, 1, 2 … in each bucket, old and new together
    for prefix in {tuple(row) for row in [*old, *new]}:
        together = np.concatenate([old_codes, new_codes])
        tokens = sorted(together[(together[:, :2] == prefix).all(axis=1), 2])
        assert tokens == list(range(len(tokens)))


@settings(max_examples=100, deadline=None)
@given(codes=IDS, n_old=st.integers(0, 20), seed=st.integers(0, 99))
def test_moving_takes_the_nearest_free_code_and_old_items_stay(codes, n_old, seed):
    codes = np.array(codes, np.int32)
    n_old = min(n_old, len(codes))
    rng = np.random.default_rng(seed)
    codebook = rng.normal(size=(4, 3)).astype(np.float32)
    rows = collisions.colliding(codes, n_old)
    left = rng.normal(size=(len(rows), 3))
    moved, n_stuck = collisions.move(codes, rows, left, codebook)
    assert np.array_equal(moved[:, 0], codes[:, 0])
    untouched = np.setdiff1d(np.arange(len(codes)), rows)
    assert np.array_equal(moved[untouched], codes[untouched])
    # obvious version: one after the other, the nearest last code that nobody of the prefix holds
    taken = {tuple(row) for row in codes.tolist()}
    stuck = 0
    for row, x in zip(rows, left, strict=True):
        order = np.argsort(np.square(codebook.astype(np.float64) - x).sum(axis=1), kind="stable")
        free = [k for k in order.tolist() if (codes[row, 0], k) not in taken]
        stuck += not free
        assert moved[row, 1] == (free[0] if free else codes[row, 1])
        taken.add((codes[row, 0], moved[row, 1]))
    assert n_stuck == stuck


def test_without_collisions_nothing_gives_way():
    assert len(collisions.colliding(np.array([[0, 1], [1, 0], [1, 1]], np.int32))) == 0


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 200), n_codes=st.integers(1, 40), seed=st.integers(0, 99))
def test_balanced_codes_differ_by_one_item_at_most(n, n_codes, seed):
    n_codes = min(n, n_codes)
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    for codebook, codes, _ in balanced(x, x[:n_codes], 5):
        sizes = np.bincount(codes, minlength=n_codes)
        assert sizes.max() - sizes.min() <= 1
        for k in range(n_codes):
            np.testing.assert_allclose(codebook[k], x[codes == k].mean(axis=0, dtype=np.float64), atol=1e-6)


def test_balanced_follows_the_greedy_algorithm():
    x = np.random.default_rng(1).normal(size=(37, 2)).astype(np.float32)
    start = x[:5].copy()
    _, codes, _ = next(balanced(x, start, 1))
    left = list(range(37))
    for k, size in enumerate([8, 8, 7, 7, 7]):
        left.sort(key=lambda i, k=k: (float(np.square(x[i].astype(float) - start[k]).sum()), i))
        mine, left = left[:size], sorted(left[size:])
        assert set(np.flatnonzero(codes == k)) == set(mine)


def test_a_balanced_fit_reports_the_error_of_its_own_codes():
    x = np.random.default_rng(2).normal(size=(120, 4)).astype(np.float32)
    rows = VectorStore(4)
    rows.append(0, x)
    fit = Balanced(2, 7, 6, 0)
    list(fit.fit(rows, Backend(torch.device("cpu"), torch.float32), World()))
    whole = sum(fit.codebooks[level][fit.codes_NL[:, level]].astype(np.float64) for level in range(2))
    assert fit.mse == pytest.approx(np.square(x - whole).mean(), rel=1e-6)


def test_ids_are_saved_and_opened_whole_and_by_the_same_bytes(tmp_path):
    rng = np.random.default_rng(3)
    keys = np.array(["a", "ü", "c"], np.dtypes.StringDType())
    codes = np.array([[0, 1, 0], [2, 2, 0], [2, 2, 1]], np.int32)
    books = rng.normal(size=(2, 3, 4)).astype(np.float32)
    report = quality.describe(codes, 2, 3)
    weights = {"encoder.align.queries": rng.normal(size=(4, 4)).astype(np.float32)}
    semantic_ids = SemanticIds(keys, codes, books, {"levels": 2}, report, weights, {"n_queries": 4})
    semantic_ids.save(Sink(str(tmp_path / "a.ids")), history=[])
    again = SemanticIds.open(str(tmp_path / "a.ids"))
    again.save(Sink(str(tmp_path / "b.ids")), history=again.history)
    assert (tmp_path / "a.ids").read_bytes() == (tmp_path / "b.ids").read_bytes()
    assert (again.keys.tolist(), again.codes_NS.tolist()) == (keys.tolist(), codes.tolist())
    assert (again.config, again.report, again.encoder) == ({"levels": 2}, report, {"n_queries": 4})
    assert np.array_equal(again.weights["encoder.align.queries"], weights["encoder.align.queries"])
    assert (again.digest, again.vocab_sizes) == (semantic_ids.digest, (3, 3, 2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"codes": np.array([[0, 3, 0]], np.int32)}, "codes run from 0 to 3, and a level has 3."),
        ({"codes": np.array([[0, -1, 0]], np.int32)}, "codes run from -1 to 0, and a level has 3."),
        ({"codes": np.array([[0, 1, 9]], np.int32)}, "code 9 is too large for 1 items."),
        ({"codes": np.zeros((2, 3), np.int32)}, "the number of keys is 1, and that of items with codes 2."),
        ({"codebooks": np.full((2, 3, 4), np.nan, np.float32)}, "a codebook holds NaN or infinity."),
        ({"codes": np.zeros((2, 3), np.int32), **pack("keys", ["a", "a"])}, "key 'a' names two items."),
    ],
)
def test_ids_that_contradict_themselves_are_refused(change, sentence):
    tensors = {"codes": np.zeros((1, 3), np.int32), "codebooks": np.zeros((2, 3, 4), np.float32), **pack("keys", ["a"])}
    with pytest.raises(Corrupt, match=f"^x: {sentence} Make the IDs again with kvtools semid-build.$"):
        SemanticIds.from_tensors({**tensors, **change}, "x")


def test_the_report_of_known_ids():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]], np.int32)
    described = quality.describe(codes, 2, 4)
    assert described["utilisation"] == [0.5, 0.5]
    assert described["dead_codes"] == [2, 2]
    assert described["entropy_nats"][0] == pytest.approx(np.log(2))
    assert described["entropy_share"][0] == pytest.approx(0.5)
    assert described["entropy_nats"][1] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert (described["distinct_share"], described["colliding_items"], described["max_bucket"]) == (0.75, 2, 2)
    # sizes 1, 1, 2: the mean difference of all nine pairs is 4/9, half of it over the mean of 4/3
    assert described["gini"] == pytest.approx((4 / 9) / 2 / (4 / 3))
