"""Text as words, for comparing: the same for another case, other white space, other punctuation, or full-width letters."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

# scripts without spaces: each letter is a word of its own
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0eff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W_]+")


def words_of(text: str) -> list[str]:
    """The words of a text, normalised (NFKC) and without case; marks of punctuation are none."""
    return list(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def ngrams(words: Sequence[str], n: int) -> Iterator[str]:
    """Each run of n words, joined by blanks; the whole where there are fewer, nothing where there are none."""
    if not words:
        return
    for begin in range(max(1, len(words) - n + 1)):
        yield " ".join(words[begin : begin + n])
