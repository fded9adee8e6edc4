"""Near duplicates, agreement of answers and reasoning paths, against cases worked by hand."""

import sqlite3

import numpy as np

from kvtools.keye.mix.duplicates import Duplicates, signatures
from kvtools.keye.mix.paths import best_path, commonest, same_answers
from kvtools.keye.mix.words import ngrams, words_of

WORDS = [f"w{n}" for n in range(2000)]


def found(rows):
    signed = ((name, group, signatures([text])[0].tobytes()) for name, group, text in rows)
    return dict(Duplicates(sqlite3.connect(":memory:")).filter(signed))


def text(begin, end):
    return " ".join(WORDS[begin:end])


def similarity(a, b):
    a, b = (set(ngrams(words_of(text), 5)) for text in (a, b))
    return len(a & b) / len(a | b)


def test_near_duplicates_name_the_first_and_other_groups_are_left_alone():
    rows = [
        ("a", "think", text(0, 100)),
        ("b", "think", text(0, 100).upper() + "!"),
        ("c", "think", text(0, 97) + " x y z"),
        ("d", "think", text(50, 150)),
        ("e", "auto", text(0, 100)),
        ("f", "think", text(50, 150).replace(" ", "\n")),
    ]
    assert found(rows) == {"a": None, "b": "a", "c": "a", "d": None, "e": None, "f": "d"}


def test_what_is_called_a_duplicate_is_similar():
    rng = np.random.default_rng(0)
    rows = []
    for n in range(300):
        begin, length, kept = int(rng.integers(0, 1500)), 100, int(rng.integers(40, 100))
        rows += [
            (f"{n}", "think", text(begin, begin + length)),
            (f"{n}'", "think", text(begin, begin + kept) + f" end {n}" * 20),
        ]
    texts = {name: words for name, _, words in rows}
    for name, earlier in found(rows).items():
        if earlier is not None:
            assert similarity(texts[name], texts[earlier]) > 0.65  # 0.8 less four standard deviations
    missed = [name for name, earlier in found(rows).items() if name.endswith("'") and earlier is None]
    assert all(similarity(texts[name], texts[name[:-1]]) < 0.93 for name in missed)


def test_signatures_depend_on_the_text_alone():
    assert np.array_equal(signatures(["a b c d e f", "x"])[0], signatures(["a b c d e f"])[0])


def test_answers_are_the_same_in_other_writing():
    assert same_answers(["1/2", "0.5", "\\frac{1}{2}", "2", None, "", "1/2"]) == [0, 0, 0, 3, None, None, 0]
    assert same_answers(["x^2+1", "1+x^2", "Paris", "paris."]) == [0, 0, 2, 2]


def test_the_commonest_answer_and_its_share():
    assert commonest([0, 0, 2, None]) == (0, 0.5)
    assert commonest([0, 1]) == (0, 0.5)
    assert commonest([None]) == (None, 0.0)


def test_a_path_is_scored_by_its_mean_step_and_ties_go_to_the_shorter():
    paths = [
        ("a", "Add 2 and 2. It is 4."),
        ("b", "Add 2 and 2. So it is 4. Done."),
        ("c", "ADD 2 and 2!\nIt is 4."),
        ("d", "It is 4."),
    ]
    # a and c: (3/4 + 3/4) / 2, d: 3/4, b: (3/4 + 1/4 + 1/4) / 3; d is the shortest of the best
    assert best_path(paths) == "d"
    assert best_path(paths[:3]) == "a"
