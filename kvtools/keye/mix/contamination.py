"""Samples that repeat an evaluation set: its texts by runs of words, its pictures and frames by perceptual hash.

Texts: a sample leaks where it shares a run of 13 words with an evaluation text, or holds the whole of a shorter one of at
least 5 words. Runs that stand in more than 1 % of the evaluation's texts (and in more than 10) are the wording of its tasks:
they count only where the whole text is the same. Pictures: the set bits of two 64-bit hashes have a Jaccard similarity above
0.95.

Every hash is compared with every other, 10^8 pairs a second. The report looks for candidates by MinHash of 128 permutations
first, which finds no others. Not found: a picture that is mirrored, turned, or cut by more than some 2 %, and a text in other
words.

Source: Keye-VL report (arXiv 2507.01949), appendix A; 13 words: Brown et al. 2020, appendix C; the hash: imagehash.phash.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from kvtools.keye.data.frames import frames_of
from kvtools.keye.mix.words import ngrams, words_of
from kvtools.keye.model.inputs import Visual

N_WORDS = 13
_FEWEST = 5  # words of an evaluation text that may be found inside another
_SIMILAR = 0.95
_BLOCK = 1 << 22  # pairs compared at once


@dataclass
class EvaluationSet:
    """Texts and pictures that must not be trained on, by the name of where each stands."""

    runs: dict[str, str] = field(default_factory=dict)  # a run of words -> name
    wholes: dict[str, str] = field(default_factory=dict)  # a short text -> name
    exact: dict[str, str] = field(default_factory=dict)  # any text as the whole of a question -> name
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    hash_names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]], pictures: Iterable[tuple[str, int]]) -> "EvaluationSet":
        """From (name, text) and (name, hash of a picture)."""
        made = cls()
        split = [(name, words_of(text)) for name, text in texts]
        met: Counter[str] = Counter()
        for name, words in split:
            if words:
                made.exact.setdefault(" ".join(words), name)
            if len(words) >= N_WORDS:
                met.update(set(ngrams(words, N_WORDS)))
            elif len(words) >= _FEWEST:
                made.wholes.setdefault(" ".join(words), name)
        most = max(10, len(split) // 100)
        for name, words in split:
            if len(words) >= N_WORDS:
                for run in ngrams(words, N_WORDS):
                    if met[run] <= most:
                        made.runs.setdefault(run, name)
        rows = list(pictures)
        made.hash_names = [name for name, _ in rows]
        made.hashes = np.array([value for _, value in rows], np.uint64)
        return made

    def text_leak(self, texts: Sequence[str]) -> str | None:
        """The name of an evaluation text that one of a sample's texts repeats; None where there is none."""
        lengths = sorted({whole.count(" ") + 1 for whole in self.wholes})
        for text in texts:
            words = words_of(text)
            if (name := self.exact.get(" ".join(words))) is not None and words:
                return name
            for n, known in ((N_WORDS, self.runs), *((n, self.wholes) for n in lengths)):
                if len(words) >= n and known:
                    for run in ngrams(words, n):
                        if run in known:
                            return known[run]
        return None

    def picture_leaks(self, hashes: np.ndarray) -> list[str | None]:
        """For each hash, uint64 (n,), the name of the evaluation's picture that looks like it, or None."""
        leaks: list[str | None] = [None] * len(hashes)
        if not len(self.hashes):
            return leaks
        step = max(1, _BLOCK // len(self.hashes))
        for begin in range(0, len(hashes), step):
            block = hashes[begin : begin + step, None]
            both = np.bitwise_count(block & self.hashes[None]).astype(np.float32)
            either = np.bitwise_count(block | self.hashes[None])
            alike = both > _SIMILAR * either
            for row in np.flatnonzero(alike.any(axis=1)):
                leaks[begin + int(row)] = self.hash_names[int(alike[row].argmax())]
        return leaks


def perceptual_hash(picture: Image.Image) -> int:
    """The 64-bit perceptual hash of a picture, as a number."""
    import imagehash

    bits = imagehash.phash(picture.convert("RGB")).hash.reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])


def hashes_of(visual: Visual) -> np.ndarray:
    """The perceptual hash of each frame of a picture or video, uint64 (T,)."""
    return np.array([perceptual_hash(Image.fromarray(frame_HWC)) for frame_HWC in frames_of(visual)], np.uint64)
