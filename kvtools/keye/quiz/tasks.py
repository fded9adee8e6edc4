"""Questions that clips answer without labels: the order of frames, which clip continues, when a scene changes; and labels.

Source: Keye-VL's report (arXiv 2507.01949, sections 3.1.5 and 4.2.1) names frame re-ordering (six shuffled frames, the original
order), multi-video matching, and questions about the time of events; it gives no more than that, the rest is ours. Each has
three forms: `choice` (letters), `open` (the answer itself) and `check` (yes or no). Each task draws a sample, checks that it is
fair, and renders it as a question.

What is fair, and what a question must not give away:
- The correct option and all text are drawn before any frame is looked at, and kept until a clip is found of which the question
  can be asked: the text, its length and its order do not depend on the answer. All videos of a question have the same number of
  frames, the same times and the same size.
- Frames do not tell forwards from backwards where motion does not (a pendulum, a street): the reverse of an order is never an
  option, nor are two options reverses of one another; any two share few neighbours. The open form asks for the true direction,
  as the report does, and gives the other one (`reversed`), for a score that accepts both.
- An order is asked for only where the path along the frames is clearly longer in any other order on offer, and where they move
  at all. The length of a path is the sum of the mean absolute differences of neighbouring thumbnails.
- Clips to choose from, or to join, are of different groups, and no frame of one looks like a frame of another: two views of one
  scene are no choice. The correct clip is not the one least similar to the beginning, as after a cut within the clip it may be.
- A cut is asked for only where it changes the picture more than any other step.
- What a clip looks like is described by rules (captions.py), and no two options have the same description.
These questions test the comparison of pictures, and saying so. They are no test of understanding.

A drawn question that is not fair gives None, and the caller draws again with the same answer. Legend: T frames, K options.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from kvtools.chance import rng_for
from kvtools.keye.quiz.captions import description
from kvtools.keye.quiz.clips import Clip, same_scene
from kvtools.keye.quiz.orders import orders, path_length

Form = Literal["choice", "open", "check"]
Question = dict[str, Any]

LETTERS = "ABCDEFGH"
_YES_NO = ["yes", "no"]
_MIN_MOTION = 1.5  # levels of 255 by which neighbouring frames differ at least, on average
_MIN_DETOUR = 1.25  # length of a wrong order's path over that of the right one
_MIN_CUT = 1.5  # change at a cut over the largest change elsewhere


@dataclass(frozen=True)
class Draw:
    """What is decided before frames are looked at: the form, numbers, and the index of the correct option (0 of two: yes).

    text_seed: of what is written, the same in every try, so that an unfair try leaves no trace in the text. rng: for what is
    shown.
    """

    form: Form
    n_frames: int
    n_choices: int
    answer: int
    text_seed: int
    rng: np.random.Generator

    @property
    def n_options(self) -> int:
        """How many options the text has to offer."""
        return {"choice": self.n_choices, "open": 1, "check": 2}[self.form]


@dataclass(frozen=True)
class _Shuffled:
    """Frames of a clip to put in order: their indices, the orders on offer, the right one, and wrong ones by frame."""

    frames: list[int]
    orders_KT: list[list[int]]
    right: list[int]
    wrong: list[list[int]]

    @property
    def shown(self) -> list[int]:
        """Which frame each number shows: number right[i] is the i-th in time."""
        return list(np.argsort(self.right).tolist())


def order(clip: Clip, _others: Sequence[Clip], draw: Draw) -> Question | None:
    """In which order were these shuffled frames of a clip taken? `check`: is a video of them in order?"""
    sample = _sample_order(clip, draw)
    min_detour = 1.0 if draw.form == "open" else _MIN_DETOUR
    if not _is_fair_order(clip.thumbnails[sample.frames], sample.wrong, min_detour=min_detour):
        return None
    return _render_order(clip, sample, draw)


def _sample_order(clip: Clip, draw: Draw) -> _Shuffled:
    orders_KT = orders(draw.n_frames, draw.n_options, rng_for(draw.text_seed))
    frames = _evenly_spaced(len(clip.seconds), draw.n_frames, draw.rng)
    right = orders_KT[draw.answer if draw.form == "choice" else 0]
    if draw.form == "open":
        wrong = [[*range(i), i + 1, i, *range(i + 2, draw.n_frames)] for i in range(draw.n_frames - 1)]
    else:
        shown = np.argsort(right).tolist()
        wrong = [[shown[number] for number in other] for other in orders_KT if other != right]
    return _Shuffled(frames, orders_KT, right, wrong)


def _render_order(clip: Clip, sample: _Shuffled, draw: Draw) -> Question:
    seconds = [float(clip.seconds[frame]) for frame in sample.frames]
    if draw.form == "check":
        times = [round(second - seconds[0], 6) for second in seconds]
        sequence = range(draw.n_frames) if draw.answer == 0 else sample.wrong[0]
        video = {"type": "video", "video": clip.key, "seconds": [seconds[i] for i in sequence], "shown": times}
        return _question([video, _text("Are the frames in order?")], draw, _YES_NO, clips=[clip.key])
    parts: list[dict[str, Any]] = []
    for number, index in enumerate(sample.shown, start=1):
        parts += [_text(f"{number}:"), {"type": "image", "image": clip.key, "second": seconds[index]}]
    text = "In which order were they taken?"
    options = [" ".join(str(number + 1) for number in option) for option in sample.orders_KT]
    if draw.form == "choice":
        return _question([*parts, _text(_listed(text, options))], draw, options, clips=[clip.key])
    chance_accuracy = 1.0 / float(np.prod(np.arange(1, draw.n_frames + 1, dtype=np.float64)))
    question = _question([*parts, _text(text)], draw, options[:1], clips=[clip.key])
    return {**question, "chance": chance_accuracy, "choices": [], "reversed": options[0][::-1]}


def _is_fair_order(thumbnails: np.ndarray, wrong: Sequence[Sequence[int]], *, min_detour: float) -> bool:
    """Whether frames in time order move, and a wrong order's path is longer by the factor min_detour."""
    distances_TT = _distances(thumbnails)
    length = path_length(distances_TT, range(len(thumbnails)))
    has_motion = length >= _MIN_MOTION * (len(thumbnails) - 1)
    return has_motion and all(path_length(distances_TT, path) >= min_detour * length + 1e-3 for path in wrong)


_Part = tuple[Clip, list[int]]  # frames of a clip


def match(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:
    """Which of these clips continues the beginning of a clip? `check`: does this one? There is no open form."""
    draw = replace(draw, form="choice") if draw.form == "open" else draw
    before, right, wrong = _sample_match(clip, others, draw)
    if len(wrong) < draw.n_options - 1 or not _is_fair_match(before, right, wrong):
        return None
    return _render_match(before, right, wrong, draw)


def _sample_match(clip: Clip, others: Sequence[Clip], draw: Draw) -> tuple[_Part, _Part, list[_Part]]:
    """The beginning of a clip, its continuation, and those of other clips."""
    n = max(1, draw.n_frames // 2)
    frames = _evenly_spaced(len(clip.seconds), 2 * n, draw.rng)
    return (clip, frames[:n]), (clip, frames[n:]), _other_scenes(clip, others, draw.n_options - 1, n, draw.rng)


def _render_match(before: _Part, right: _Part, wrong: list[_Part], draw: Draw) -> Question:
    clip, frames = before
    times = [round(float(clip.seconds[frame] - clip.seconds[frames[0]]), 6) for frame in frames]
    # the size of any of them: were it always the clip's own, the right one would be the one that is never resized
    size = [right, *wrong][int(draw.rng.integers(draw.n_options))][0].size

    def video(part: _Part) -> dict[str, Any]:
        seconds = [float(part[0].seconds[index]) for index in part[1]]
        return {"type": "video", "video": part[0].key, "seconds": seconds, "shown": times, "size": list(size)}

    keys = [clip.key, *(other.key for other, _ in wrong)]
    if draw.form == "check":
        second = right if draw.answer == 0 else wrong[0]
        content = [video(before), video(second), _text("Are they of the same clip?")]
        return _question(content, draw, _YES_NO, clips=keys[: 1 + draw.answer])
    content = [video(before), _text("How does it go on?")]
    for letter, option in zip(LETTERS, [*wrong[: draw.answer], right, *wrong[draw.answer :]], strict=False):
        content += [_text(f"\n{letter}:"), video(option)]
    return _question(content, draw, list(LETTERS[: draw.n_options]), clips=keys)


def _other_scenes(
    clip: Clip, others: Sequence[Clip], n_clips: int, n_frames: int, rng: np.random.Generator
) -> list[_Part]:  # fmt: skip
    """So many clips of different scenes, with the frames of each that are shown; fewer where there are not so many."""
    scenes: list[_Part] = []
    for other in (others[index] for index in rng.permutation(len(others))):
        known = [clip, *(scene for scene, _ in scenes)]
        is_new = all(other.group != scene.group and not same_scene(other, scene) for scene in known)
        if len(scenes) < n_clips and is_new and len(other.seconds) >= 2 * n_frames:
            scenes.append((other, _evenly_spaced(len(other.seconds), 2 * n_frames, rng)[n_frames:]))
    return scenes


def _is_fair_match(
    before: _Part, right: _Part, wrong: Sequence[_Part]
) -> bool:  # fmt: skip
    """Whether any wrong part is less similar to the beginning than the right one is."""
    means = [clip.thumbnails[frames].mean(0) for clip, frames in (before, right, *wrong)]
    from_before = _distances(np.stack(means))[0]
    return bool(from_before[1] < from_before[2:].max())


@dataclass(frozen=True)
class _Joined:
    """Frames of two clips, one after the other, step_s apart: n before the cut, and the cuts that are on offer."""

    pieces: list[_Part]
    cuts: list[int]
    cut: int
    step_s: float


def time(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:
    """Two clips joined: at which second does one become the other? `check`: is it at this second?"""
    sample = _sample_time(clip, others, draw)
    if sample is None or not _is_fair_cut(np.concatenate([of.thumbnails[frames] for of, frames in sample.pieces]), sample.cut):
        return None
    return _render_time(sample, draw)


def _sample_time(clip: Clip, others: Sequence[Clip], draw: Draw) -> _Joined | None:
    n = draw.n_frames
    cuts = rng_for(draw.text_seed).permutation(np.arange(1, n))[: draw.n_options].tolist()
    if draw.form != "check":  # of a check, the first is asked about
        cuts.sort()
    cut = cuts[draw.answer if draw.form != "open" else 0]
    step_s = clip.step_s * int(draw.rng.integers(1, max(2, (len(clip.seconds) - 1) // max(1, n - 2) + 1)))
    other = _joinable(clip, others, step_s, n, draw.rng)
    if other is None:
        return None
    parts = ((clip, cut), (other, n - cut))
    pieces = [(of, _frames_at_steps(of.seconds, count, step_s, draw.rng)) for of, count in parts]
    return _Joined(pieces, cuts, cut, step_s)


def _render_time(sample: _Joined, draw: Draw) -> Question:
    n, pieces = draw.n_frames, sample.pieces
    joined = [{"video": of.key, "seconds": [float(of.seconds[frame]) for frame in frames]} for of, frames in pieces]
    times = [round(k * sample.step_s, 6) for k in range(n)]
    size = list(pieces[int(draw.rng.integers(2))][0].size)
    video = {"type": "video", "video": joined, "shown": times, "size": size}
    text, options = "When does the scene change?", [f"{times[index]:.1f}" for index in sample.cuts]
    if draw.form == "check":
        text, options = f"Does the scene change at {options[0]} s?", _YES_NO
    elif draw.form == "choice":
        text = _listed(text, [f"{option} s" for option in options])
    question = _question([video, _text(text)], draw, options, clips=[of.key for of, _ in pieces])
    if draw.form == "open":
        question |= {"chance": 1 / (n - 1), "choices": []}
    return {**question, "second": times[sample.cut]}


def _joinable(clip: Clip, others: Sequence[Clip], step_s: float, n: int, rng: np.random.Generator) -> Clip | None:
    """A clip of another scene to join; None where there is none, or where the clip itself is too short for these steps."""
    shuffled = (others[index] for index in rng.permutation(len(others)))
    min_duration_s = (n - 2) * step_s - 1e-6  # wherever the cut is, so that durations do not give it away
    if step_s < 0.1 or clip.duration_s < min_duration_s:
        return None
    return next(
        (
            other
            for other in shuffled
            if other.group != clip.group and other.step_s <= 1.01 * step_s and other.duration_s >= min_duration_s
            and not same_scene(clip, other)
        ),
        None,
    )  # fmt: skip


def _is_fair_cut(thumbnails: np.ndarray, cut: int) -> bool:
    """Whether the step before frame `cut` changes the picture clearly more than any other step."""
    changes = [float(np.abs(a - b).mean()) for a, b in pairwise(thumbnails)]
    at_cut = changes.pop(cut - 1)
    return at_cut >= _MIN_CUT * max(changes, default=0.0)


def describe(clip: Clip, others: Sequence[Clip], draw: Draw) -> Question | None:
    """How is this clip described by its pixels (captions.py)? `check`: is it like this?"""
    frames = _evenly_spaced(len(clip.seconds), draw.n_frames, draw.rng)
    video = {"type": "video", "video": clip.key, "seconds": [float(clip.seconds[frame]) for frame in frames]}
    right = description(clip.thumbnails[frames])
    wrong = _other_descriptions(right, others, draw.n_options - 1, draw.rng)
    if len(wrong) < draw.n_options - 1:
        return None
    text, options = "What does it look like?", [right]
    if draw.form == "check":
        text, options = f"Is it {[right, wrong[0]][draw.answer]}?", _YES_NO
    elif draw.form == "choice":
        options = [*wrong[: draw.answer], right, *wrong[draw.answer :]]
        text = _listed(text, options)
    question = _question([video, _text(text)], draw, options, clips=[clip.key])
    if draw.form == "open":
        question |= {"chance": 0.0, "choices": []}
    return {**question, "as_is": True}  # the answer would be wrong of a mirrored or lighter clip


def _other_descriptions(right: str, others: Sequence[Clip], n: int, rng: np.random.Generator) -> list[str]:
    wrong: list[str] = []
    for other in (others[index] for index in rng.permutation(len(others)) if n):
        text = description(other.thumbnails)
        if text not in (right, *wrong):
            wrong.append(text)
        if len(wrong) == n:
            break
    return wrong


def label(clip: Clip, name: str, names: Sequence[str], draw: Draw, *, positive: str, question: str) -> Question:
    """Which label does the clip have? `check`: is it `positive`? `chance` is left to the caller, who knows all answers."""
    video = {"type": "video", "video": clip.key, "frames": draw.n_frames}
    if draw.form == "check":
        content = [video, _text(question or f"Does it show {positive}?")]
        return _question(content, replace(draw, n_choices=2, answer=int(name != positive)), _YES_NO, clips=[clip.key])
    text = question or "What does it show?"
    if draw.form == "open":
        return {**_question([video, _text(text)], draw, [name], clips=[clip.key]), "choices": list(names)}
    others = [other for other in names if other != name]
    draw.rng.shuffle(others)
    options = others[: draw.n_choices - 1]
    options.insert(draw.answer, name)
    return _question([video, _text(_listed(text, options))], draw, options, clips=[clip.key])


TASKS: dict[str, Callable[[Clip, Sequence[Clip], Draw], Question | None]] = {
    "order": order, "match": match, "time": time, "describe": describe,
}  # fmt: skip


def _evenly_spaced(n_available: int, n: int, rng: np.random.Generator) -> list[int]:
    """N indices at equal steps, the step and the first at random."""
    stride = int(rng.integers(1, (n_available - 1) // (n - 1) + 1)) if n > 1 else 1
    first = int(rng.integers(0, n_available - stride * (n - 1)))
    return [first + stride * i for i in range(n)]


def _frames_at_steps(seconds: np.ndarray, n: int, step_s: float, rng: np.random.Generator) -> list[int]:
    """The frames nearest to n moments `step_s` seconds apart, the first at random."""
    begin = seconds[0] + rng.random() * max(0.0, seconds[-1] - seconds[0] - (n - 1) * step_s)
    return [int(np.abs(seconds - begin - k * step_s).argmin()) for k in range(n)]


def _distances(thumbnails: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each two thumbnails (T, 8, 8, 3), in levels of 255: (T, T)."""
    return np.asarray(np.abs(thumbnails[:, None] - thumbnails[None]).mean((2, 3, 4)))


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _listed(question: str, options: Sequence[str]) -> str:
    return "\n".join([question, *(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))])


def _question(content: list[dict[str, Any]], draw: Draw, options: Sequence[str], *, clips: Sequence[str]) -> Question:
    answer = {"choice": LETTERS[draw.answer], "open": options[0], "check": _YES_NO[draw.answer % 2]}[draw.form]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [_text(answer)]}]
    fields = {"answer": answer, "chance": 1 / len(options), "choices": list(options), "clips": list(clips), "form": draw.form}
    return {"mode": None, "messages": messages, **fields}
