"""Histories in the catalogue's numbers: encoders of features that survive JSON, and what is left out is counted."""

import io
import json
import math

import numpy as np
import pytest
from conftest import n_skipped
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.interactions.features import FeatureEncoder, gaps, join_catalogue
from kvtools.onerec.interactions.histories import log2_buckets
from kvtools.onerec.interactions.log import TEST, TRAIN, VALID, parts_of, read_interactions
from kvtools.onerec.semantic_ids.ids import SemanticIds

HEAD = "user_id,item_id,timestamp,rating,author_id,tag,playtime,duration\n"


def read(rows, head=HEAD):
    text = head + "".join(",".join("" if x is None else str(x) for x in row) + "\n" for row in rows)
    return read_interactions(io.BufferedReader(io.BytesIO(text.encode())), "x")[0]


def catalogue_of(keys):
    codes = np.zeros((len(keys), 2), np.int32)
    return SemanticIds(np.array(keys, np.dtypes.StringDType()), codes, np.zeros((2, 1, 3), np.float32))


ITEMS = [f"i{n}" for n in range(8)]
cells = st.tuples(
    st.sampled_from("uvw"),
    st.sampled_from(ITEMS),
    st.integers(0, 10**6),
    st.sampled_from([1, 2.5, 3, 0.1, 5]),
    st.sampled_from(["ann", "bob", "", "cy", "É"]),
    st.sampled_from(["x", "y", ""]),
    st.one_of(st.none(), st.integers(0, 10**9)),
    st.one_of(st.none(), st.floats(0, 1e6, width=32)),
)
tables = st.lists(cells, min_size=1, max_size=30)


def as_table(interactions):
    """One dictionary an interaction, in the order held."""
    words = {name: array.tolist() for name, array in interactions.words.items()}
    return [
        {
            "user": user,
            "time": time,
            "label": rating,
            **{name: words[name][interactions.extras[name][n]] for name in words},
            **{name: interactions.extras[name][n] for name in ("playtime", "duration")},
        }
        for n, (user, time, rating) in enumerate(
            zip(interactions.users().tolist(), interactions.times.tolist(), interactions.ratings.tolist(), strict=True)
        )
    ]


def slow_power(value):
    """1 below 1, and one more for each doubling, up to 40; 0 for what is not known."""
    if math.isnan(value):
        return 0
    n = 1
    while value >= 1 and n < 40:
        n, value = n + 1, value / 2
    return n


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=60)
@given(tables, st.integers(0, 10**6))
def test_features_are_numbers_that_a_slow_coding_gives_too(rows, seed):
    interactions = read(rows)
    is_train = np.random.default_rng(seed).random(len(interactions.items)) < 0.6
    is_train[0] = True
    encoder = FeatureEncoder.fit(interactions, is_train)
    coded, table = encoder.encode(interactions), as_table(interactions)
    assert coded.shape == (len(table), len(encoder.features))
    train = [row for row, mine in zip(table, is_train, strict=True) if mine]
    labels = sorted({row["label"] for row in train})
    for column, (name, n_codes) in enumerate(encoder.features.items()):
        expected = []
        for n, row in enumerate(table):
            if name == "time":
                is_first = n == 0 or table[n - 1]["user"] != row["user"]
                expected.append(slow_power(0 if is_first else row["time"] - table[n - 1]["time"]))
            elif name in ("playtime", "duration"):
                expected.append(slow_power(row[name]))
            elif name == "label":
                expected.append(labels.index(row["label"]) + 1 if row["label"] in labels else 0)
            else:
                counts = {}
                for other in train:
                    counts[other[name]] = counts.get(other[name], 0) + 1
                known = [word for word in encoder.words[name] if word]
                assert sorted(known) == sorted(word for word in counts if word)
                assert [counts[word] for word in known] == sorted((counts[word] for word in known), reverse=True)
                expected.append(known.index(row[name]) + 1 if row[name] in known else 0)
        assert coded[:, column].tolist() == expected, name
        assert n_codes > max(expected)


@settings(deadline=None, max_examples=40)
@given(tables)
def test_codings_come_back_from_json(rows):
    interactions = read(rows)
    encoder = FeatureEncoder.fit(interactions, np.ones(len(interactions.items), bool))
    again = FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    assert again.features == encoder.features
    assert np.array_equal(again.encode(interactions), encoder.encode(interactions))


def test_what_the_training_part_does_not_know_is_0():
    old = read([("u", "i0", 0, 3, "ann", "x", 5, 5), ("u", "i1", 5, 4, "bob", "", 5, 5)])
    encoder = FeatureEncoder.fit(old, np.ones(2, bool))
    new = read(
        [("u", "i0", 0, 3.5, "zoe", "y", None, 5), ("u", "i0", 1, 9, "", "x", 1, None), ("u", "i0", 2, 4, "bob", "", 1, 1)]
    )
    coded = dict(zip(encoder.features, encoder.encode(new).T.tolist(), strict=True))
    assert coded["label"] == [0, 0, 2]
    assert coded["author"] == [0, 0, 2]
    assert coded["tag"] == [0, 1, 0]
    assert coded["playtime"] == [0, 2, 2]
    assert coded["duration"] == [4, 0, 2]


def test_many_ratings_are_distinguished_by_tenths():
    ratings = np.random.default_rng(0).random(500).round(3)
    interactions = read([("u", f"i{n}", n, rating, "", "", None, None) for n, rating in enumerate(ratings)])
    encoder = FeatureEncoder.fit(interactions, np.ones(500, bool))
    labels = encoder.encode(interactions)[:, list(encoder.features).index("label")]
    assert encoder.features["label"] == 11
    assert np.bincount(labels, minlength=11)[1:].tolist() == pytest.approx([50] * 10, abs=2)
    assert (np.diff(labels[np.argsort(interactions.ratings, kind="stable")]) >= 0).all()
    # beyond both ends too
    strange = read([("u", "i0", 0, -9, "", "", None, None), ("u", "i0", 1, 9, "", "", None, None)])
    assert encoder.encode(strange)[:, list(encoder.features).index("label")].tolist() == [1, 10]


def test_a_rating_that_is_an_edge_between_tenths_belongs_above_it():
    interactions = read([("u", f"i{n}", n, n, "", "", None, None) for n in range(101)])
    encoder = FeatureEncoder.fit(interactions, np.ones(101, bool))
    assert encoder.labels == pytest.approx(range(10, 100, 10))
    labels = encoder.encode(interactions)[:, list(encoder.features).index("label")]
    assert labels.tolist() == [min(n // 10, 9) + 1 for n in range(101)]


def test_features_that_are_not_there_are_not_coded():
    interactions = read([("u", "i0"), ("u", "i1")], "user_id,item_id\n")
    encoder = FeatureEncoder.fit(interactions, np.ones(2, bool))
    assert encoder.features == {}
    assert encoder.positive_from is None
    assert encoder.encode(interactions).shape == (2, 0)


def test_features_that_a_later_file_lacks_are_0():
    encoder = FeatureEncoder.fit(read([("u", "i0", 7, 3, "ann", "x", 5, 5)]), np.ones(1, bool))
    coded = encoder.encode(read([("u", "i0"), ("u", "i1")], "user_id,item_id\n"))
    assert coded.tolist() == [[0] * len(encoder.features)] * 2


@settings(deadline=None, max_examples=80)
@given(st.lists(st.one_of(st.floats(-10, 2**45), st.integers(0, 45).map(lambda n: 2.0**n), st.just(math.nan)), max_size=20))
def test_powers_go_up_by_one_with_each_doubling(values):
    assert log2_buckets(np.array(values, float)).tolist() == [slow_power(value) for value in values]


def test_powers_have_an_end():
    assert log2_buckets(np.array([1e300, math.inf, -math.inf])).tolist() == [40, 40, 1]


@settings(deadline=None, max_examples=40)
@given(tables)
def test_gaps_are_seconds_since_the_users_interaction_before(rows):
    interactions = read(rows)
    found = gaps(interactions).tolist()
    table = as_table(interactions)
    for n, row in enumerate(table):
        is_first = n == 0 or table[n - 1]["user"] != row["user"]
        assert found[n] == (0 if is_first else row["time"] - table[n - 1]["time"])


# ── the catalogue's items alone ──────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=60)
@given(tables, st.sets(st.sampled_from(ITEMS), min_size=1))
def test_items_that_the_catalogue_lacks_are_counted_named_and_left_out(rows, known):
    interactions, ids = read(rows), catalogue_of(sorted(known, reverse=True))
    histories, _, skipped = join_catalogue(interactions, ids, "c.ids")
    keys, parts = interactions.item_keys[interactions.items], parts_of(interactions)
    kept = np.array([key in known for key in keys.tolist()])
    assert ids.keys[histories.items].tolist() == keys[kept].tolist()
    assert histories.times.tolist() == interactions.times[kept].tolist()
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    assert users.tolist() == interactions.users()[kept].tolist(), "users who lose all they had stay, with nothing"
    # the split is that of the whole file
    assert histories.parts.tolist() == parts[kept].tolist()
    strange = sorted(set(keys[~kept].tolist()))
    assert n_skipped(skipped) == len(strange)
    if strange:
        (what,) = skipped.counts
        assert what == f"items that c.ids does not have, left out with their {(~kept).sum()} interactions"
        assert set(skipped.names[what]) <= set(strange)
        assert len(skipped.names[what]) == min(3, len(strange))
    else:
        assert skipped.counts == {}


def test_a_user_whose_last_item_is_unknown_has_no_test_item():
    interactions = read([("u", f"i{n}", n, 3, "", "", None, None) for n in range(5)])
    histories, _, _ = join_catalogue(interactions, catalogue_of(["i0", "i1", "i2", "i3"]), "c.ids")
    assert histories.parts.tolist() == [TRAIN, TRAIN, TRAIN, VALID]
    histories, _, _ = join_catalogue(interactions, catalogue_of(["i0", "i1", "i2", "i4"]), "c.ids")
    assert histories.parts.tolist() == [TRAIN, TRAIN, TRAIN, TEST]


def test_gaps_are_between_interactions_that_are_left():
    interactions = read([("u", f"i{n}", n * n, 3, "", "", None, None) for n in range(4)])
    histories, encoder, _ = join_catalogue(interactions, catalogue_of(["i0", "i1", "i3"]), "c.ids")
    assert histories.gaps.tolist() == [0, 1, 8]
    assert histories.features[:, list(encoder.features).index("time")].tolist() == [1, 2, 5]


def test_codings_are_fitted_on_what_is_left_of_the_training_part():
    rows = [("u", f"i{n}", n, n + 1, "abcde"[n], "", None, None) for n in range(5)]
    _, encoder, _ = join_catalogue(read(rows), catalogue_of(["i1", "i2", "i3", "i4"]), "c.ids")
    # the first is unknown, the last two are VALID and TEST
    assert encoder.labels == (2, 3)
    assert encoder.words["author"] == ("b", "c")


def test_codings_that_are_given_are_kept():
    ids = catalogue_of(ITEMS)
    _, encoder, _ = join_catalogue(read([("u", f"i{n}", n, n, "ann", "", 3, 3) for n in range(3)]), ids, "c.ids")
    histories, again, _ = join_catalogue(read([("v", "i7", 0, 2, "zoe", "", 3, 3)]), ids, "c.ids", encoder)
    assert again is encoder
    assert dict(zip(encoder.features, histories.features[0].tolist(), strict=True))["author"] == 0


# ── positives ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=40)
@given(tables)
def test_ratings_from_the_median_of_the_training_part_on_are_positive(rows):
    interactions = read(rows)
    histories, encoder, _ = join_catalogue(interactions, catalogue_of(ITEMS), "c.ids")
    is_train = parts_of(interactions) == TRAIN
    in_order = sorted(interactions.ratings[is_train].tolist())
    middle = (in_order[(len(in_order) - 1) // 2] + in_order[len(in_order) // 2]) / 2
    assert encoder.positive_from == pytest.approx(middle)
    assert histories.is_positive.tolist() == [rating >= encoder.positive_from for rating in interactions.ratings.tolist()]


def test_what_is_positive_can_be_said():
    interactions = read([("u", f"i{n}", n, n, "", "", None, None) for n in range(5)])
    histories, encoder, _ = join_catalogue(interactions, catalogue_of(ITEMS), "c.ids", positive_from=4)
    assert encoder.positive_from == 4
    assert histories.is_positive.tolist() == [False] * 4 + [True]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("said", [None, 4.0])
def test_without_ratings_to_learn_from_only_what_is_said_is_positive(said):
    rows = [("u", f"i{n}", n, n, "", "", None, None) for n in range(5)]
    # all that is known of the catalogue is held out
    histories, encoder, _ = join_catalogue(read(rows), catalogue_of(["i3", "i4"]), "c.ids", positive_from=said)
    assert histories.parts.tolist() == [VALID, TEST]
    assert (encoder.labels, encoder.positive_from) == ((), said)
    assert histories.is_positive is None if said is None else histories.is_positive.tolist() == [False, True]
    assert FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json(), allow_nan=False))) == encoder


def test_without_ratings_nothing_is_said_to_be_positive():
    histories, encoder, _ = join_catalogue(read([("u", "i0"), ("u", "i1")], "user_id,item_id\n"), catalogue_of(ITEMS), "c.ids")
    assert (encoder.positive_from, histories.is_positive, histories.gaps) == (None, None, None)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=40)
@given(tables)
def test_a_part_is_the_interactions_of_each_user_that_belong_to_it(rows):
    histories, _, _ = join_catalogue(read(rows), catalogue_of(ITEMS), "c.ids")
    for part in (TRAIN, VALID, TEST):
        offsets, items = histories.only(histories.parts == part)
        for user in range(len(histories)):
            mine = slice(histories.offsets[user], histories.offsets[user + 1])
            expected = histories.items[mine][histories.parts[mine] == part]
            assert items[offsets[user] : offsets[user + 1]].tolist() == expected.tolist()
