"""Text cut into words, also where a script has no spaces between them.

Chinese, Japanese, Thai, Lao, Khmer and Burmese are cut into characters and pairs of neighbouring characters, the usual terms of
search where there is no dictionary: texts that share a word share its pairs. A space or a sign ends a run of them. Korean and
all other scripts have words between spaces. Not here: segmentation by dictionary, stems, stop words.
"""

import re

# Han with its iteration marks, kana of both widths, Thai, Lao, Burmese, Khmer: their vowel signs are no letters to Python
_SPACELESS = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u1000-\u1049\u1050-\u109f\u1780-\u17d3"
)
_RUN = re.compile(rf"[{_SPACELESS}]+|[^\W{_SPACELESS}]{{2,}}")
_IS_SPACELESS = re.compile(f"[{_SPACELESS}]")


def words_of(text: str) -> list[str]:
    """The words of two or more letters or digits; of scripts without spaces each character, and each pair of neighbours."""
    if text.isascii():
        return _RUN.findall(text)
    words = []
    for run in _RUN.findall(text):
        if _IS_SPACELESS.match(run):
            words += [*run, *(run[n : n + 2] for n in range(len(run) - 1))]
        else:
            words.append(run)
    return words
