"""Samples that repeat an evaluation set: its texts by runs of words, its pictures and frames by their fingerprints.

Texts: a sample leaks where it shares a run of 13 words with an evaluation text, or where its question holds the whole of a
shorter one of at least 5 words, or is the whole of one of 3 or 4. Runs that stand in more than 1 % of the evaluation's texts
(and in more than 10) are the wording of its tasks: they count only where the whole text is the same. Short texts are looked
for in questions alone, since "The answer is 4." is an answer to much. Pictures: see fingerprint.py.

Not found: a text in other words.

Source: Keye-VL report (arXiv 2507.01949), appendix A; 13 words: Brown et al. 2020, appendix C.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from kvtools.keye.data.frames import frames_of
from kvtools.keye.mix.fingerprint import Fingerprint, KnownPictures, fingerprint
from kvtools.keye.mix.words import ngrams, words_of
from kvtools.keye.model.inputs import Visual

N_WORDS = 13
_FEWEST = 5  # words of an evaluation text that may be found inside a question
_FEWEST_ALONE = 3  # of one that is a whole question


@dataclass
class EvaluationSet:
    """Texts and pictures that must not be trained on, by the name of where each stands."""

    runs: dict[str, str] = field(default_factory=dict)  # a run of words -> name
    ends: set[tuple[str, str]] = field(default_factory=set)  # the first and the last word of each run: cheap to ask first
    wholes: dict[str, str] = field(default_factory=dict)  # a short text -> name
    lengths: dict[str, set[int]] = field(default_factory=dict)  # the first word of a short text -> numbers of words
    exact: dict[str, str] = field(default_factory=dict)  # any text as the whole of a question -> name
    pictures: KnownPictures = field(default_factory=lambda: KnownPictures([]))
    picture_names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]], pictures: Iterable[tuple[str, Fingerprint]]) -> "EvaluationSet":
        """From (name, text) and (name, fingerprint of a picture with its crops)."""
        made = cls()
        split = [(name, words_of(text)) for name, text in texts]
        met: Counter[str] = Counter()
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for name, words in split:
            if len(words) >= _FEWEST_ALONE:
                made.exact.setdefault(" ".join(words), name)
            if len(words) >= N_WORDS:
                met.update(set(ngrams(words, N_WORDS)))
            elif len(words) >= _FEWEST:
                made.wholes.setdefault(" ".join(words), name)
                lengths[words[0]].add(len(words))
        made.lengths = dict(lengths)
        most = max(10, len(split) // 100)
        for name, words in split:
            for begin in range(len(words) - N_WORDS + 1):
                run = " ".join(words[begin : begin + N_WORDS])
                if met[run] <= most:
                    made.runs.setdefault(run, name)
                    made.ends.add((words[begin], words[begin + N_WORDS - 1]))
        rows = list(pictures)
        made.picture_names = [name for name, _ in rows]
        made.pictures = KnownPictures([known for _, known in rows])
        return made

    def text_leak(self, questions: Sequence[str], answers: Sequence[str] = ()) -> str | None:
        """The name of an evaluation text that one of a sample's texts repeats; None where there is none."""
        for number, text in enumerate((*questions, *answers)):
            words = words_of(text)
            if number < len(questions):
                name = self.exact.get(" ".join(words)) or self._whole_in(words)
                if name is not None:
                    return name
            for begin in range(len(words) - N_WORDS + 1):
                if (words[begin], words[begin + N_WORDS - 1]) in self.ends:
                    name = self.runs.get(" ".join(words[begin : begin + N_WORDS]))
                    if name is not None:
                        return name
        return None

    def _whole_in(self, words: Sequence[str]) -> str | None:
        for begin, word in enumerate(words):
            for n in sorted(self.lengths.get(word, ())):
                if (name := self.wholes.get(" ".join(words[begin : begin + n]))) is not None:
                    return name
        return None

    def picture_leak(self, fingerprints: Iterable[Fingerprint]) -> str | None:
        """The name of the evaluation's picture that is the same as one of these; None where there is none."""
        found = next((number for number in map(self.pictures.find, fingerprints) if number is not None), None)
        return None if found is None else self.picture_names[found]


def fingerprints_of(visual: Visual, *, is_known: bool = False) -> list[Fingerprint]:
    """The fingerprint of each frame of a picture or video; is_known: with those of their crops."""
    return [fingerprint(Image.fromarray(frame_HWC), is_known=is_known) for frame_HWC in frames_of(visual)]
