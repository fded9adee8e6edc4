"""What is known of users, read into codes that mean the same in every table."""

import io
import json

import numpy as np
import pytest
from conftest import n_skipped
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.artifact.blob import canonical
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.users import Vocabulary, read_users


def read(text, **options):
    return read_users(io.BufferedReader(io.BytesIO(text.encode())), "x", **options)


def words_of(users):
    """{user: (word, …)}, None where nothing is known, buckets as numbers."""
    return {
        key: tuple(
            None if code == 0 else vocabulary.words[code - 1] if vocabulary.words else code
            for code, vocabulary in zip(codes, users.vocabularies, strict=True)
        )
        for key, codes in zip(users.keys.tolist(), users.codes.tolist(), strict=True)
    }


def people(n, **columns):
    """A CSV of n users; columns: name → what cell n holds."""
    lines = [",".join(["user_id", *columns])]
    return "\n".join(lines + [",".join([f"u{i}", *(str(cell(i)) for cell in columns.values())]) for i in range(n)]) + "\n"


rows = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from(["", "a", "b", "007", "7", "é"]), st.sampled_from(["", "m", "f"])),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(rows)
def test_cells_come_back_from_their_codes_and_the_last_row_of_a_user_stays(rows):
    users, skipped = read("user_id,one,two\n" + "".join(",".join(row) + "\n" for row in rows), columns=["one", "two"])
    expected = {}
    for user, one, two in rows:
        expected[user] = (one or None, two or None)
    assert words_of(users) == expected
    assert users.keys.tolist() == list(dict.fromkeys(user for user, *_ in rows))
    assert users.names == ["one", "two"]
    assert all(list(v.words) == sorted(v.words) for v in users.vocabularies)
    assert users.codes.dtype == np.int32
    assert (users.codes.max(axis=0) < [v.n_codes for v in users.vocabularies]).all()
    assert skipped.counts.get("rows of a user who has a later one, which stays", 0) == len(rows) - len(expected)
    assert n_skipped(skipped) == 0


def test_all_forms_of_one_table_read_alike():
    forms = [
        'user_id,gender,work\nu,F,"a, b"\nv,M,\nw,F,\nx,M,c\n',
        "\ufeffuserId\tgender\twork\r\nu\tF\ta, b\r\nv\tM\t\r\nw\tF\t\r\nx\tM\tc\r\n",
        "gender:token\tuser_id:token\twork:token\nF\tu\ta, b\nM\tv\t\nF\tw\t\nM\tx\tc\n",
    ]
    for form in forms:
        users, skipped = read(form)
        assert words_of(users) == {"u": ("F", "a, b"), "v": ("M", None), "w": ("F", None), "x": ("M", "c")}, form
        assert skipped.counts == {}


def test_many_numbers_become_buckets_of_about_as_many_users():
    users, skipped = read(people(100, age=lambda i: (7 * i) % 50, few=lambda i: i % 20, wage=lambda i: i / 8))
    age, few, wage = users.vocabularies
    assert (len(age.edges), len(few.words), len(wage.edges)) == (9, 20, 9)
    for column in (0, 2):
        assert np.bincount(users.codes[:, column], minlength=11).tolist() == [0] + [10] * 10
    # codes follow the numbers
    assert (np.diff(users.codes[:, 2]) >= 0).all()
    assert skipped.counts == {}


def test_buckets_that_many_users_share_are_fewer():
    users, _ = read(people(100, visits=lambda i: max(0, i - 60)))
    assert users.vocabularies[0].n_codes == 6
    assert np.bincount(users.codes[:, 0]).tolist() == [0, 61, 9, 10, 10, 10]


def test_identifiers_are_left_out_and_reported_unless_they_are_asked_for():
    text = people(40, zip=lambda i: f"0{i}", gender=lambda i: "mf"[i % 2], nothing=lambda i: "")
    users, skipped = read(text)
    assert users.names == ["gender"]
    assert n_skipped(skipped) == 0
    assert skipped.lines(skipped=False) == [
        "columns without a value were left out, 1 in all (nothing)",
        "columns with more than half as many categories as users were left out, 1 in all (zip)",
    ]
    users, skipped = read(text, columns=["zip", "nothing"])
    assert ([v.n_codes for v in users.vocabularies], skipped.counts) == ([41, 1], {})


def test_numbers_with_leading_zeros_and_numbers_among_words_are_words():
    users, _ = read(
        people(90, code=lambda i: f"{i % 30:03}", mixed=lambda i: i % 30 or "none", size=lambda i: f"0.{10 + i % 30}")
    )
    assert [bool(v.edges) for v in users.vocabularies] == [False, False, True]


def test_another_table_is_coded_by_the_same_vocabularies():
    first, _ = read(people(100, age=lambda i: i, gender=lambda i: "mf"[i % 2]))
    stored = json.loads(canonical([vocabulary.to_json() for vocabulary in first.vocabularies]))
    vocabularies = [Vocabulary.of(words) for words in stored]
    assert tuple(vocabularies) == first.vocabularies
    other, skipped = read("gender,user,zip,age\nf,a,1,0\nx,b,2,old\n,c,3,\nm,d,4,1e6\n", vocabularies=vocabularies)
    assert other.names == ["age", "gender"]
    assert other.keys.tolist() == ["a", "b", "c", "d"]
    assert other.codes.tolist() == [[1, 1], [0, 0], [0, 0], [10, 2]]
    assert n_skipped(skipped) == 0
    assert skipped.lines(skipped=False) == [
        "cells of age that are no number were taken as unknown, 1 in all (row 2)",
        "cells of gender that are in no known category were taken as unknown, 1 in all (row 2)",
    ]
    with pytest.raises(Corrupt, match="no column 'age' among user, gender"):
        read("user,gender\na,f\n", vocabularies=vocabularies)


def test_a_declared_number_may_be_missing_or_wrong():
    header = "user_id:token\tage:float\n"
    users, skipped = read(header + "".join(f"u{i}\t{'?' if i == 3 else i}\n" for i in range(50)))
    assert len(users.vocabularies[0].edges) == 9
    assert users.codes[3, 0] == 0
    assert skipped.lines(skipped=False) == ["cells of age that are no number were taken as unknown, 1 in all (row 4)"]


def test_bad_rows_are_named_and_the_others_kept():
    users, skipped = read("user_id,gender\nu,f\n,m\nv,m,1\nw,f\nw,m\nx,f\ny,m\n")
    assert words_of(users) == {"u": ("f",), "w": ("m",), "x": ("f",), "y": ("m",)}
    assert skipped.lines(skipped=True) == [
        "rows with too many or too few cells were left out, 1 in all (row 3 has 3, not 2)",
        "rows without user were left out, 1 in all (row 2)",
    ]
    assert skipped.lines(skipped=False) == ["there are rows of a user who has a later one, which stays, 1 in all (row 4)"]


def test_users_are_found_by_key_and_strangers_are_unknown():
    users, _ = read("user_id,gender\nu,f\nv,m\nw,m\nx,f\n")
    assert users.codes_of(np.array(["v", "nobody", "u"], np.dtypes.StringDType())).tolist() == [[2], [0], [1]]
    assert users.codes_of([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, r"x: this is empty\. Give a table\.$"),
        ("u a b\n", {}, "^x: this is no table of users. Give one with a header and more than one column.$"),
        ("who,gender\nu,f\n", {}, "^x: there is no user column among who, gender. Rename it user_id.$"),
        ("user_id,gender\nu,f\n", {"columns": ["sex"]}, "no column 'sex'"),
        (
            "user_id,gender\n",
            {},
            (
                "^x: no feature of any user is left to use. "
                "Columns without a value were left out, 1 in all .gender.. Repair the table.$"
            ),
        ),
        (
            "user_id,name\nu,Ann\nv,Bob\n",
            {},
            "no feature of any user is left to use. .* half as many categories as users were left out, 1 in all .name.",
        ),
    ],
)
def test_what_tells_of_no_user_is_refused(text, options, words):
    with pytest.raises(Corrupt, match=words):
        read(text, **options)
    assert read("who,gender\nu,f\nv,f\n", key="who")[0].keys.tolist() == ["u", "v"]


@pytest.mark.parametrize(
    "words",
    [
        None,
        {},
        {"name": "a", "words": [1]},
        {"name": "a", "words": ["b", "b"]},
        {"name": "a", "edges": [2, 1]},
        {"name": "a", "edges": [float("nan")]},
        {"name": "a", "edges": ["1"]},
        {"name": "a", "words": ["b"], "edges": [1.0]},
    ],
)
def test_a_vocabulary_that_is_none_is_refused(words):
    with pytest.raises(ValueError, match="is no vocabulary: a name with distinct words, or with rising edges$"):
        Vocabulary.of(words)


def test_movielens_users_have_age_gender_and_occupation(data):
    with open(data / "rec" / "ml-100k" / "ml-100k.user", "rb", buffering=1 << 20) as file:
        users, skipped = read_users(file, "ml-100k.user")
    assert (users.names, users.codes.shape) == (["age", "gender", "occupation"], (943, 3))
    age, gender, occupation = users.vocabularies
    assert (gender.words, len(occupation.words), len(age.edges)) == (("F", "M"), 21, 9)
    assert np.bincount(users.codes[:, 1]).tolist() == [0, 273, 670]
    assert 60 < np.bincount(users.codes[:, 0])[1:].min() <= np.bincount(users.codes[:, 0]).max() < 120
    assert users.codes.min() == 1
    assert skipped.lines(skipped=False) == [
        "columns with more than half as many categories as users were left out, 1 in all (zip_code)"
    ]
