"""Text of scripts with and without spaces as words, and what vectors then know of shared words."""

import numpy as np
import pytest

from kvtools.onerec.items import lsa
from kvtools.onerec.items.words import words_of

SCRIPTS = {"chinese": (0x4E00, 0x5200), "japanese": (0x3042, 0x3094), "thai": (0x0E01, 0x0E3A), "khmer": (0x1780, 0x17B3)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blue hair-mask 5 ml x2_b", ["blue", "hair", "mask", "ml", "x2_b"]),
        ("naïve café à la carte", ["naïve", "café", "la", "carte"]),
        ("蓝牙耳机", ["蓝", "牙", "耳", "机", "蓝牙", "牙耳", "耳机"]),
        ("iphone手机，书", ["iphone", "手", "机", "手机", "书"]),
        ("ミルク・ティー", [*"ミルク", "ミル", "ルク", *"ティー", "ティ", "ィー"]),
        ("น้ำ", ["น", "\u0e49", "ำ", "น\u0e49", "\u0e49ำ"]),
        ("무선 이어폰", ["무선", "이어폰"]),
        ("", []),
    ],
)
def test_scripts_without_spaces_are_cut_into_characters_and_their_pairs(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize("script", SCRIPTS)
def test_cosines_follow_shared_words_also_without_spaces(script):
    rng = np.random.default_rng(3)
    letters = [chr(code) for code in range(*SCRIPTS[script])]
    vocabulary = ["".join(rng.choice(letters, rng.integers(2, 6))) for _ in range(80)]
    items = [rng.choice(80, 5, replace=False) for _ in range(150)]
    terms = [words_of("".join(vocabulary[word] for word in words)) for words in items]
    x_ND = lsa.embed([f"i{n}" for n in range(150)], terms, np.empty((150, 0)), 64, is_unit=True, n_powers=None, seed=0).vectors
    shared = np.array([[len(np.intersect1d(a, b)) for b in items] for a in items])
    pairs = np.triu_indices(150, 1)
    assert np.corrcoef((x_ND @ x_ND.T)[pairs], shared[pairs])[0, 1] > 0.6
