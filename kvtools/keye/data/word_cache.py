"""Token ids of words that were met before: a text is split as its tokenizer splits it, and most of its words are known.

Merging the byte pairs of a text costs some ten times as much as to look up its words. The invariant: ids are those of the
library, to the token. So texts are split here only where that is certain: by the rules of GPT-2 or of Qwen2, without words that
were added to the tokenizer, in normal form, and of characters that were the same already in Unicode 3.2, below the scripts of
East Asia, whose words are whole clauses. Other texts give None, and the library takes them.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

_END = 0x2E80  # radicals, kana, ideographs and hangul begin here
_FOLDS = "\u017f"  # a letter that is an s without case
_MOST_WORDS = 1 << 17

# the two ways of splitting, with L, N and S for letters, digits and white space
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[L]+| ?[N]+| ?[^SLN]+|[S]+(?![^S])|[S]+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nLN]?[L]+|[N]| ?[^SLN]+[\r\n]*|[S]*[\r\n]+|[S]+(?![^S])|[S]+"
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class WordCache:
    """Looks up words, and asks the library for those that are new; it forgets all where they become too many.

    encode: the ids of a text by the library. added: words that are tokens wherever they stand.
    """

    def __init__(self, split: str, encode: Callable[[str], Sequence[int]], added: Sequence[str]) -> None:
        self._words, self._safe = _patterns(split)
        self._encode = encode
        self._added = re.compile("|".join(map(re.escape, added))) if added else None
        self._ids: dict[str, Sequence[int]] = {}

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text; None where it is not certain how its tokenizer splits it."""
        if not (text.isascii() or (self._safe.fullmatch(text) and unicodedata.is_normalized("NFC", text))):
            return None
        if self._added is not None and self._added.search(text):
            return None
        known = self._ids
        ids: list[int] = []
        for word in self._words.findall(text):
            its = known.get(word)
            if its is None:
                if len(known) >= _MOST_WORDS:
                    known.clear()
                its = known[word] = tuple(self._encode(word))
            ids += its
        return ids


def split_of(document: dict[str, Any]) -> str | None:
    """How a tokenizer.json splits text: one of the ways known here, or None."""
    model, steps = document.get("model") or {}, document.get("pre_tokenizer") or {}
    is_plain = model.get("type") == "BPE" and not any(model.get(name) for name in ("dropout", "unk_token", "byte_fallback"))
    if not is_plain or (document.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        return None
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")):
        return None
    parts = steps.get("pretokenizers") or [steps]
    *splits, level = parts
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space"):
        return None
    if not splits:
        return _GPT2 if level.get("use_regex", True) else None
    way = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    return _QWEN2 if splits == [way] and not level.get("use_regex", True) else None


@cache
def _patterns(split: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds the words of a text, and what matches a text whose characters are known."""
    letters, digits, spaces = (_characters(is_one) for is_one in (_is_letter, _is_digit, _is_space))
    words = split.replace("[S]", f"[{spaces}]").replace("[^S]", f"[^{spaces}]")
    words = words.replace("SLN", f"{spaces}{letters}{digits}").replace("\\nLN", f"\\n{letters}{digits}")
    words = words.replace("[L]", f"[{letters}]").replace("[N]", f"[{digits}]")
    return re.compile(words), re.compile(f"[{_characters(_is_known)}]*")


def _characters(is_one: Callable[[str], bool]) -> str:
    """The ranges of characters for which is_one is true, as a set of a regular expression has them."""
    numbers = [number for number in range(_END) if is_one(chr(number))]
    runs = ([number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    return "".join(f"\\u{run[0]:04x}-\\u{run[-1]:04x}" for run in runs)


def _is_letter(x: str) -> bool:
    return unicodedata.category(x)[0] == "L"


def _is_digit(x: str) -> bool:
    return unicodedata.category(x)[0] == "N"


def _is_space(x: str) -> bool:
    return x.isspace() and x not in "\x1c\x1d\x1e\x1f"  # which have no White_Space property


def _is_known(x: str) -> bool:
    category = unicodedata.category(x)
    return category == unicodedata.ucd_3_2_0.category(x) and category not in ("Cn", "Cs") and x not in _FOLDS
