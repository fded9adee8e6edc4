"""The trie against sets of prefixes: numbers, children, collisions and look-up, whatever the catalogue."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.model.trie import Trie


@st.composite
def catalogues(draw):
    """int (N, S): few codes, so that prefixes and whole IDs are shared."""
    n_levels, n_codes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    ids = draw(st.lists(st.tuples(*[st.integers(0, n_codes - 1)] * n_levels), min_size=1, max_size=40))
    return np.array(ids, np.int32).reshape(len(ids), n_levels)


def prefixes(codes_NS, n):
    """The distinct prefixes of n codes, in lexical order."""
    return sorted({tuple(row[:n]) for row in codes_NS.tolist()})


@settings(deadline=None, max_examples=100)
@given(catalogues())
def test_prefixes_are_numbered_in_lexical_order(codes_NS):
    trie = Trie(codes_NS)
    for level in range(codes_NS.shape[1]):
        assert trie.codes[level].tolist() == [prefix[-1] for prefix in prefixes(codes_NS, level + 1)]
    assert trie.ids_US.tolist() == [list(one) for one in prefixes(codes_NS, codes_NS.shape[1])]
    assert (trie.n_ids, trie.n_levels) == trie.ids_US.shape


@settings(deadline=None, max_examples=100)
@given(catalogues(), st.randoms(use_true_random=False))
def test_children_are_the_prefixes_that_go_on(codes_NS, random):
    trie = Trie(codes_NS)
    for level in range(codes_NS.shape[1]):
        above, here = prefixes(codes_NS, level), prefixes(codes_NS, level + 1)
        wanted = random.choices(range(len(above)), k=7)
        child_MW, is_there = trie.children(level, torch.tensor(wanted))
        for number, row, there in zip(wanted, child_MW, is_there, strict=True):
            assert row[there].tolist() == [n for n, prefix in enumerate(here) if prefix[:-1] == above[number]]


@settings(deadline=None, max_examples=50)
@given(catalogues())
def test_children_come_in_one_width_that_the_largest_family_fills(codes_NS):
    trie = Trie(codes_NS)
    for level in range(codes_NS.shape[1]):
        n_above = len(prefixes(codes_NS, level))
        child_MW, is_there = trie.children(level, torch.arange(n_above))
        assert child_MW.shape == (n_above, trie.widths[level])
        assert int(is_there.sum(1).max()) == trie.widths[level]
        # what stands in for a child that is not there can still be looked up
        assert (child_MW >= 0).all()
        assert (child_MW < len(trie.codes[level])).all()


@settings(deadline=None, max_examples=100)
@given(catalogues())
def test_items_that_share_an_id_are_counted_in_its_bucket(codes_NS):
    trie = Trie(codes_NS)
    assert trie.ids_US[torch.from_numpy(trie.id_of_item)].tolist() == codes_NS.tolist()
    for number, one in enumerate(trie.ids_US.tolist()):
        assert trie.bucket[number + 1] - trie.bucket[number] == codes_NS.tolist().count(one)
    assert trie.bucket[-1] == len(codes_NS)


@settings(deadline=None, max_examples=100)
@given(catalogues(), st.data())
def test_find_gives_the_number_of_an_id_and_minus_one_to_what_no_item_has(codes_NS, data):
    trie = Trie(codes_NS)
    code = st.integers(0, 5)
    strange = data.draw(st.lists(st.tuples(*[code] * codes_NS.shape[1]), max_size=20))
    wanted = [*map(tuple, codes_NS.tolist()), *strange]
    known = prefixes(codes_NS, codes_NS.shape[1])
    found = trie.find(np.array(wanted, np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == [known.index(one) if one in known else -1 for one in wanted]


def test_find_of_nothing_is_nothing():
    assert Trie(np.array([[0, 1]])).find(np.empty((0, 2), np.int64)).shape == (0,)


@settings(deadline=None, max_examples=30)
@given(catalogues(), st.randoms(use_true_random=False))
def test_the_order_of_the_catalogue_does_not_matter(codes_NS, random):
    order = random.sample(range(len(codes_NS)), len(codes_NS))
    one, other = Trie(codes_NS), Trie(codes_NS[order])
    assert torch.equal(one.ids_US, other.ids_US)
    assert all(map(torch.equal, one.codes + one.starts, other.codes + other.starts))
    assert one.id_of_item[order].tolist() == other.id_of_item.tolist()


@pytest.mark.parametrize("n_levels", [1, 3])
def test_a_catalogue_of_one_item_has_one_way_down(n_levels):
    trie = Trie(np.full((1, n_levels), 4))
    for level in range(n_levels):
        child_MW, is_there = trie.children(level, torch.zeros(1, dtype=torch.long))
        assert (child_MW.tolist(), is_there.tolist()) == ([[0]], [[True]])
