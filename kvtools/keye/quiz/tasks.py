"""Questions that clips answer by themselves: the order of frames, which clip goes on, when a scene changes; and labels.

Source: Keye-VL's report (arXiv 2507.01949, sections 3.1.5 and 4.2.1) names frame re-ordering (six shuffled frames, the original
order), multi-video matching, and questions about the time of events; it gives no more than that, the rest is ours. Each has
three forms: `choice` (letters), `open` (the answer itself) and `check` (yes or no).

What is fair, and what a question must not give away:
- Which option is right, and all that is written, is drawn before any picture is looked at, and kept until a clip is found that
  it can be asked of: nothing in the words, their length or their order knows the answer. All videos of a question have the same
  number of frames, the same times and the same size.
- Frames do not tell forwards from backwards where motion does not (a pendulum, a street), so the reverse of an order is never
  an option, nor are two options reverses of one another; any two share few neighbours. The open form asks for the one
  direction, as the report does, and says what the other is (`reversed`), for who would accept it.
- An order is asked for only where the way along the frames is clearly longer in any other order on offer, and where they move
  at all. A way is the sum of the mean absolute differences of neighbours, as pictures of 8 x 8.
- Clips to choose from, or to join, are of different groups, and no frame of one looks like a frame of another: two views of one
  scene are no choice. The right one does not look least like the beginning of all, as after a cut within the clip it may.
- A cut is asked for only where it changes the picture more than anything beside it.
- What a clip looks like is said by rules (describing.py), and no option says the same of it as another.
All this is told by looks alone, which is what it tests: comparing pictures, and saying so. It is no test of understanding.

A drawn question that is not fair gives None, and the caller draws again with the same answer. Legend: T frames, K options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from PIL import Image

from kvtools.chance import rng_for
from kvtools.keye.model.inputs import Visual
from kvtools.keye.quiz.captions import description
from kvtools.video import patch

Form = Literal["choice", "open", "check"]
Question = dict[str, Any]

LETTERS = "ABCDEFGH"
_LOOK = 8  # pixels a side of the pictures by which frames are compared
_STILL = 1.5  # levels of 255 by which frames in a row differ at least, on average
_LONGER = 1.25  # times the way in a wrong order is longer
# levels by which clips to choose from differ at least, at the two frames most alike: of 160 clips of surveillance whose scenes
# are known, two of one scene are nearer in 85 of 100 cases, two of others in 1 of 1,000 (and most of those of one camera too)
_ALIKE = 15.0
_N_COMPARED = 12  # frames of a clip that are compared for that
_CUT = 1.5  # times a cut changes more than what is beside it
_SIDE = patch.PATCH


@dataclass(frozen=True)
class Clip:
    """A clip as questions see it: seconds float64 (T,), size in pixels, looks float32 (T, 8, 8, 3), and whose scene it is."""

    key: str
    seconds: np.ndarray
    size: tuple[int, int]
    looks: np.ndarray
    group: str

    @staticmethod
    def of(key: str, visual: Visual, group: str) -> "Clip":
        """What questions need of a clip's patches."""
        n_frames, rows, cols = visual.grid.tolist()
        patches = visual.pixels_P3HW.reshape(n_frames, rows, cols, 3, _SIDE, _SIDE)
        frames = patches.transpose(0, 1, 4, 2, 5, 3).reshape(n_frames, rows * _SIDE, cols * _SIDE, 3)
        small = [Image.fromarray(f).resize((_LOOK, _LOOK), Image.Resampling.BOX) for f in np.ascontiguousarray(frames)]
        looks = np.stack([np.asarray(picture, np.float32) for picture in small])
        return Clip(key, visual.seconds, (rows * _SIDE, cols * _SIDE), looks, group)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.seconds[-1] - self.seconds[0])

    @property
    def step_s(self) -> float:
        """Seconds between frames, on average."""
        return self.duration_s / max(1, len(self.seconds) - 1)


@dataclass(frozen=True)
class Draw:
    """What is decided before pictures are looked at: the form, sizes, and which option is right (0 of two: yes)."""

    form: Form
    n_frames: int
    n_choices: int
    place: int
    words: int  # seed of what is written, the same in every try, so that what is not fair to ask leaves no trace in the rest
    chance: np.random.Generator  # of what is shown


def order(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:  # noqa: ARG001 all tasks are called alike
    """Frames of a clip, shuffled: in which order were they taken? `check`: a video, in order or not."""
    options = orders(draw.n_frames, {"choice": draw.n_choices, "open": 1, "check": 2}[draw.form], rng_for(draw.words))
    frames = _evenly(len(clip.seconds), draw.n_frames, draw.chance)
    away = _apart(clip.looks[frames])
    straight = list(range(draw.n_frames))
    right = options[draw.place if draw.form == "choice" else 0]
    # frames by the numbers they are shown under: number right[i] is the i-th in time
    in_time = np.argsort(right)
    wrong = [[int(in_time[number]) for number in each] for each in options if each != right]
    if draw.form == "open":
        wrong = [[*straight[:i], i + 1, i, *straight[i + 2 :]] for i in range(draw.n_frames - 1)]
    way = _way(away, straight)
    if way < _STILL * (draw.n_frames - 1):
        return None
    if any(_way(away, each) < (1.0 if draw.form == "open" else _LONGER) * way + 1e-3 for each in wrong):
        return None
    seconds = [float(clip.seconds[f]) for f in frames]
    if draw.form == "check":
        mixed = straight if draw.place == 0 else wrong[0]
        times = [round(second - seconds[0], 6) for second in seconds]
        video = {"type": "video", "video": clip.key, "seconds": [seconds[i] for i in mixed], "shown": times}
        return _asked([video, _text("Are the frames in order?")], draw, _YES_NO, clips=[clip.key])
    parts: list[dict[str, Any]] = []
    for number, place in enumerate(in_time.tolist(), start=1):
        parts += [_text(f"{number}:"), {"type": "image", "image": clip.key, "second": seconds[place]}]
    words = [" ".join(str(number + 1) for number in each) for each in options]
    if draw.form == "choice":
        return _asked([*parts, _text(_listed("In which order were they taken?", words))], draw, words, clips=[clip.key])
    asked = _asked([*parts, _text("In which order were they taken?")], draw, [words[0]], clips=[clip.key])
    asked["chance"] = 1.0 / float(np.prod(np.arange(1, draw.n_frames + 1, dtype=np.float64)))
    return {**asked, "choices": [], "reversed": words[0][::-1]}


def match(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:
    """The beginning of a clip: which of some clips is how it goes on? `check`: is this one? There is no open form."""
    draw = replace(draw, form="choice") if draw.form == "open" else draw
    n = max(1, draw.n_frames // 2)
    n_choices = 2 if draw.form == "check" else draw.n_choices
    frames = _evenly(len(clip.seconds), 2 * n, draw.chance)
    before, after = frames[:n], frames[n:]
    groups = {clip.group}
    chosen: list[tuple[Clip, list[int]]] = []
    for other in (others[i] for i in draw.chance.permutation(len(others))):
        is_new = other.group not in groups and not any(are_alike(other, each) for each, _ in [(clip, after), *chosen])
        if len(chosen) < n_choices - 1 and is_new and len(other.seconds) >= 2 * n:
            groups.add(other.group)
            chosen.append((other, _evenly(len(other.seconds), 2 * n, draw.chance)[n:]))
    if len(chosen) < n_choices - 1:
        return None
    looks = [each.looks[part].mean(0) for each, part in [(clip, before), (clip, after), *chosen]]
    away = _apart(np.stack(looks))[0]
    if away[1] >= away[2:].max():
        return None
    times = [round(float(clip.seconds[f] - clip.seconds[before[0]]), 6) for f in before]
    # the size of any of them: were it always the clip's own, the right one would be the one that is never stretched
    size = [clip, *(other for other, _ in chosen)][int(draw.chance.integers(n_choices))].size

    def shown(which: Clip, part: Sequence[int]) -> dict[str, Any]:
        seconds = [float(which.seconds[f]) for f in part]
        return {"type": "video", "video": which.key, "seconds": seconds, "shown": times, "size": list(size)}

    keys = [clip.key, *(other.key for other, _ in chosen)]
    if draw.form == "check":
        second = shown(clip, after) if draw.place == 0 else shown(*chosen[0])
        words = [shown(clip, before), second, _text("Are they of the same clip?")]
        return _asked(words, draw, _YES_NO, clips=keys[: 1 + draw.place])
    chosen.insert(draw.place, (clip, after))
    parts: list[dict[str, Any]] = [shown(clip, before), _text("How does it go on?")]
    for letter, candidate in zip(LETTERS, chosen, strict=False):
        parts += [_text(f"\n{letter}:"), shown(*candidate)]
    return _asked(parts, draw, list(LETTERS[:n_choices]), clips=keys)


def time(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:
    """Two clips joined: at which second does the one become the other? `check`: is it at this second?"""
    n = draw.n_frames
    n_choices = {"choice": draw.n_choices, "open": 1, "check": 2}[draw.form]
    cuts = rng_for(draw.words).permutation(np.arange(1, n))[:n_choices].tolist()
    if draw.form != "check":  # where the first is asked about
        cuts.sort()
    cut = cuts[draw.place if draw.form != "open" else 0]
    step = clip.step_s * int(draw.chance.integers(1, max(2, (len(clip.seconds) - 1) // max(1, n - 2) + 1)))
    long_enough = (n - 2) * step - 1e-6  # wherever the cut is, so that lengths do not tell
    shuffled = (others[i] for i in draw.chance.permutation(len(others)))
    fits = (
        other
        for other in shuffled
        if other.group != clip.group and other.step_s <= 1.01 * step and other.duration_s >= long_enough
    )
    other = next((each for each in fits if not are_alike(clip, each)), None)
    if step < 0.1 or other is None or clip.duration_s < long_enough:
        return None
    pieces = [(clip, cut), (other, n - cut)]
    frames = [_spaced(each.seconds, count, step, draw.chance) for each, count in pieces]
    looks = np.concatenate([each.looks[part] for (each, _), part in zip(pieces, frames, strict=True)])
    changes = [float(np.abs(a - b).mean()) for a, b in pairwise(looks)]
    if changes[cut - 1] < _CUT * max([change for i, change in enumerate(changes) if i != cut - 1], default=0.0):
        return None
    joined = [
        {"video": each.key, "seconds": [float(each.seconds[f]) for f in part]}
        for (each, _), part in zip(pieces, frames, strict=True)
    ]
    times = [round(k * step, 6) for k in range(n)]
    video = {"type": "video", "video": joined, "shown": times, "size": list(pieces[int(draw.chance.integers(2))][0].size)}
    keys = [each.key for each, _ in pieces]
    words = [f"{times[c]:.1f}" for c in cuts]
    if draw.form == "check":
        asked = _asked([video, _text(f"Does the scene change at {words[0]} s?")], draw, _YES_NO, clips=keys)
    elif draw.form == "choice":
        text = _listed("When does the scene change?", [f"{word} s" for word in words])
        asked = _asked([video, _text(text)], draw, words, clips=keys)
    else:
        asked = _asked([video, _text("When does the scene change?")], draw, words, clips=keys)
        asked |= {"chance": 1 / (n - 1), "choices": []}
    return {**asked, "second": times[cut]}


def describe(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:
    """A clip: what do its pixels say (describing.py)? `check`: is it this?"""
    frames = _evenly(len(clip.seconds), draw.n_frames, draw.chance)
    video = {"type": "video", "video": clip.key, "seconds": [float(clip.seconds[f]) for f in frames]}
    right = description(clip.looks[frames])
    n_wrong = {"choice": draw.n_choices - 1, "open": 0, "check": 1}[draw.form]
    wrong: list[str] = []
    for other in (others[i] for i in draw.chance.permutation(len(others)) if n_wrong):
        words = description(other.looks)
        if words not in (right, *wrong):
            wrong.append(words)
        if len(wrong) == n_wrong:
            break
    if len(wrong) < n_wrong:
        return None
    if draw.form == "check":
        words = [right, wrong[0]][draw.place]
        return _of_looks([video, _text(f"Is it {words}?")], draw, _YES_NO, clip)
    if draw.form == "open":
        asked = _of_looks([video, _text("What does it look like?")], draw, [right], clip)
        return {**asked, "chance": 0.0, "choices": []}
    options = [*wrong[: draw.place], right, *wrong[draw.place :]]
    return _of_looks([video, _text(_listed("What does it look like?", options))], draw, options, clip)


def label(clip: Clip, word: str, words: Sequence[str], draw: Draw, *, asked_for: str, question: str) -> Question:
    """What the clip is said to be. `check`: whether it is `asked_for`. chance is left to the caller, who knows the shares."""
    video = {"type": "video", "video": clip.key, "frames": draw.n_frames}
    if draw.form == "check":
        text = question or f"Does it show {asked_for}?"
        is_it = replace(draw, n_choices=2, place=int(word != asked_for))
        return _asked([video, _text(text)], is_it, _YES_NO, clips=[clip.key])
    text = question or "What does it show?"
    if draw.form == "open":
        return {**_asked([video, _text(text)], draw, [word], clips=[clip.key]), "choices": list(words)}
    rest = [each for each in words if each != word]
    draw.chance.shuffle(rest)
    options = rest[: draw.n_choices - 1]
    options.insert(draw.place, word)
    return _asked([video, _text(_listed(text, options))], draw, options, clips=[clip.key])


def are_alike(a: Clip, b: Clip) -> bool:
    """Whether two clips may be of one scene: whether any two of their frames nearly look the same."""
    some = [each.looks[:: -(-len(each.looks) // _N_COMPARED)].reshape(-1, 1, _LOOK * _LOOK * 3) for each in (a, b)]
    return bool(np.abs(some[0] - some[1].swapaxes(0, 1)).mean(2).min() < _ALIKE)


def orders(n: int, n_options: int, chance: np.random.Generator) -> list[list[int]]:
    """So many orders of n things, no two the reverse of one another and any two with few neighbours in common, by chance.

    The rule is the same for any two, so that which one is meant cannot be guessed from the others. Raises ValueError where
    there are not so many.
    """
    most = 2 if n == 4 else (n - 1) // 2  # of 4 things there are no four orders with one in common
    for _ in range(200):
        found: list[list[int]] = []
        for _ in range(50):
            each = chance.permutation(n).tolist()
            if all(len(_neighbours(each) & _neighbours(other)) <= most for other in found):
                found.append(each)
            if len(found) == n_options:
                return found
    raise ValueError(f"{n_options} orders of {n} frames that differ enough: not found, fewer options or more frames expected")


TASKS = {"order": order, "match": match, "time": time, "describe": describe}
_YES_NO = ["yes", "no"]


def _neighbours(each: Sequence[int]) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in pairwise(each)}


def _evenly(n_found: int, n: int, chance: np.random.Generator) -> list[int]:
    """So many places at equal steps, the step and the first by chance."""
    stride = int(chance.integers(1, (n_found - 1) // (n - 1) + 1)) if n > 1 else 1
    first = int(chance.integers(0, n_found - stride * (n - 1)))
    return [first + stride * i for i in range(n)]


def _spaced(seconds: np.ndarray, n: int, step: float, chance: np.random.Generator) -> list[int]:
    """Frames nearest to n moments `step` seconds apart, the first by chance."""
    begin = seconds[0] + chance.random() * max(0.0, seconds[-1] - seconds[0] - (n - 1) * step)
    return [int(np.abs(seconds - begin - k * step).argmin()) for k in range(n)]


def _apart(looks: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each two pictures, in levels of 255."""
    return np.asarray(np.abs(looks[:, None] - looks[None]).mean((2, 3, 4)))


def _way(apart: np.ndarray, each: Sequence[int]) -> float:
    return float(sum(apart[a, b] for a, b in pairwise(each)))


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _listed(question: str, words: Sequence[str]) -> str:
    return "\n".join([question, *(f"{letter}: {word}" for letter, word in zip(LETTERS, words, strict=False))])


def _asked(parts: list[dict[str, Any]], draw: Draw, options: Sequence[str], *, clips: Sequence[str]) -> Question:
    answer = {"choice": LETTERS[draw.place], "open": options[0], "check": _YES_NO[draw.place % 2]}[draw.form]
    said = {"role": "assistant", "content": [_text(answer)]}
    told = {"answer": answer, "chance": 1 / len(options), "choices": list(options), "clips": list(clips), "form": draw.form}
    return {"mode": None, "messages": [{"role": "user", "content": parts}, said], **told}


def _of_looks(parts: list[dict[str, Any]], draw: Draw, options: Sequence[str], clip: Clip) -> Question:
    """A question whose answer would be another were its clip mirrored or lighter."""
    return {**_asked(parts, draw, options, clips=[clip.key]), "as_is": True}
