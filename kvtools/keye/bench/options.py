"""Which option an answer names: letters A to J, labels such as `Option 1`, yes and no, or the text of the option itself.

Two readings, never mixed in one figure. The rules here are those of this project: they read what people would read, and give
None where an answer names no option or several. Those named `strict` are what evaluators elsewhere do, word for word.

Pure: texts in, letters out. Not here: thinking and tags around an answer, which are cut before.
"""

import re
import unicodedata
from collections.abc import Mapping

LETTERS = "ABCDEFGHIJ"

_LISTED = re.compile(r"^\s*[(（]?([A-J])[.)）:：、]\s*(.*)$")  # noqa: RUF001 full-width marks
_LEADING = re.compile(r"[(\[{<\"'*\s]*([A-J])[*\"']*(?:[.):,;\]}>、。]|\s*(?:\n|$|[-–—]\s))")  # noqa: RUF001 dashes
_CUE = re.compile(
    r"(?:\b(?:answer|option|choice|choose|select|pick)(?:ed)?\b|答案|选项|选择|应选|选)"
    r"(?:\s*(?:is|are|should be|would be|would|be|letter|option|:|=|是|为|应为|应该是))*"
    r"\s*[(\[{<\"'*$\\]*(?:boxed\{|text\{)*([A-J])"
    r"(?![A-Za-z'])",
    re.IGNORECASE,
)
_MARKED = re.compile(r"[(\[{]\s*([A-J])\s*[)\]}]|\*\*\s*([A-J])\b[^*]{0,80}\*\*")
_TOKEN = re.compile(r"(?<![A-Za-z0-9'’])([A-J])(?![A-Za-z0-9'’])")  # noqa: RUF001 an apostrophe
_STRICT_SPACE = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def listed_options(question: str) -> dict[str, str]:
    """The options that a question lists on lines of their own, as `A. a dog` or `(B) a cat`: letter to text."""
    found = (_LISTED.match(line) for line in question.splitlines())
    return {match[1]: match[2].strip() for match in found if match}


def letter_of(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer names, by the rules; None where it names none, or more than one.

    In this order: the answer is a letter, or an option's text; it begins with a letter and a mark, as `B.` or `(B)`; the
    letter after the last `answer is`, `option` or `答案`; the only letter in brackets or bold; the only letter that stands
    alone, where an `A` or `I` before a word in small letters is none; the only option whose text occurs.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    bare = plain(text)
    if len(bare) == 1 and bare.upper() in options:
        return bare.upper()
    equal = [letter for letter, option in options.items() if bare and plain(option) == bare]
    if len(equal) == 1:
        return equal[0]
    first = _LEADING.match(text)
    if first and first[1] in options:
        return first[1]
    cued = [letter for match in _CUE.finditer(text) if (letter := _cued(text, match)) in options]
    if cued:
        return cued[-1]
    for pattern in (_MARKED, _TOKEN):
        found = {match[1] or match[match.lastindex or 1] for match in pattern.finditer(text) if not _is_article(text, match)}
        if len(found & options.keys()) == 1:
            return (found & options.keys()).pop()
    return _by_text(bare, options)


def plain(text: str) -> str:
    """A text for comparing: NFKC, small letters, no marks at its ends, single spaces."""
    small = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(small.split()).strip(" .,:;!?*#()[]{}<>\"'`$\\。、“”‘’")  # noqa: RUF001


def yes_or_no(text: str) -> str | None:
    """What an answer says, by the rules: "yes" or "no", by the first word, or where only one of the two occurs; else None."""
    words: list[str] = re.findall(r"[a-z]+", unicodedata.normalize("NFKC", text).casefold())
    if words and words[0] in ("yes", "no"):
        return words[0]
    found = [word for word in ("yes", "no") if word in words]
    return found[0] if len(found) == 1 else None


def strict_letter_of(text: str, options: Mapping[str, str]) -> str | None:
    """The letter as VLMEvalKit's matching finds it without a judge: the only option letter among the words, marks removed; else
    the only option whose text occurs, in an answer at most twice as long as all options. None is left to a judge there."""
    words = {*text.translate(_STRICT_SPACE).split()}
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        return found[0]
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    small = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in small]
    return named[0] if len(named) == 1 else None


def _cued(text: str, match: re.Match[str]) -> str:
    """The letter after a cue; a small one counts at the end alone, and a word counts never."""
    letter, rest = match[1], text[match.end(1) :]
    if letter.islower():
        return letter.upper() if re.match(r"\W*$", rest) else ""
    return "" if _is_word(text, match.end(1), letter) else letter


def _is_article(text: str, match: re.Match[str]) -> bool:
    """Whether the letter is the word `A` or `I` of a sentence: a word in small letters follows without a mark."""
    letter = match[match.lastindex or 1]
    return match.re is _TOKEN and _is_word(text, match.end(), letter)


def _is_word(text: str, end: int, letter: str) -> bool:
    return letter in "AI" and re.match(r" (?!(?:or|and|nor|is|was|are|because|since|as|but)\b)[a-z]", text[end:]) is not None


def _by_text(bare: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text occurs as whole words; one within another that occurs does not count."""
    texts = {letter: plain(option) for letter, option in options.items()}
    found = {
        letter: text
        for letter, text in texts.items()
        if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)" if text.isascii() else re.escape(text), bare)
    }
    longest = [letter for letter, text in found.items() if not any(text != other and text in other for other in found.values())]
    return longest[0] if len(longest) == 1 else None
