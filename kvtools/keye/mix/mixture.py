"""A mixture from examined documents: counted, cleaned as a whole, and chosen by ratio. Rank 0's work.

What comes out depends on what the sources hold, on the rules and on the seed alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kvtools.keye.mix import ratio
from kvtools.keye.mix.examine import END, Rejected, with_frames
from kvtools.keye.mix.pool import Chosen, Pool, Sample
from kvtools.skipped import counted


@dataclass
class Tally:
    """What became of the documents: counts by mode, source and reason."""

    read: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    rejects: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # mode, source, reason
    duplicates: Counter[tuple[str, str]] = field(default_factory=Counter)
    repairs: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # mode, source, what was repaired
    leaks: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # mode, source, part of the evaluation set
    n_near: int = 0

    def collect(self, results: Iterable[Sample | Rejected], pool: Pool, reject: Callable[[Rejected], None]) -> None:
        """Put samples into the pool, and count and hand on what was rejected."""
        for result in results:
            if isinstance(result, Rejected) and result.where == END:
                reject(result)
                continue
            at = result.mode, result.source
            self.read[at] += 1
            if isinstance(result, Rejected):
                self.rejects[*at, result.reason] += 1
                if result.against is not None:
                    self.leaks[*at, result.against] += 1
                reject(result)
            elif pool.add(result):
                self.kept[at] += 1
                self.repairs.update((*at, what) for what in result.repairs)
            else:
                self.duplicates[at] += 1

    def clean(self, pool: Pool, *, min_agreement: float, reject: Callable[[Rejected], None]) -> None:
        """Drop all but one reasoning path of a prompt, and near duplicates."""
        pool.choose_paths("think", min_agreement)
        self.n_near = pool.drop_near_duplicates()
        for reason, mode, source, where, conversation in pool.dropped():
            if reason == "near duplicate":
                self.duplicates[mode, source] += 1
            else:
                self.rejects[mode, source, reason] += 1
            self.kept[mode, source] -= 1
            reject(Rejected(mode, source, where, reason, "", conversation))

    def hint(self) -> str:
        """What to look at where no sample is left, as a sentence."""
        reasons = _totals(self.rejects)
        return f"Most often, {next(iter(reasons))}: see --rejects FILE." if reasons else "Look at the stage before this one."


@dataclass(frozen=True)
class Request:
    """What a mixture is to hold.

    weights: of the modes, in their order. n: records in all, None for as many as there can be. epochs: in place of both, passes
    over each mode. is_repeated: whether samples of a mode that has too few are used more than once.
    """

    modes: tuple[str, ...]
    weights: tuple[int, ...]
    n: int | None = None
    epochs: tuple[Fraction, ...] = ()
    is_repeated: bool = False
    seed: int = 0
    frames: tuple[int, ...] = (16, 32)


@dataclass(frozen=True)
class Plan:
    """How many records of each mode are written; wanted and largest_n differ from it where sources are too small."""

    counts: dict[str, int]
    wanted: dict[str, int]
    available: dict[str, int]
    largest_n: int

    @property
    def n(self) -> int:
        """Records in all."""
        return sum(self.counts.values())

    @property
    def short(self) -> dict[str, tuple[int, int]]:
        """Modes of which there are too few: how many there are, and how many were asked for."""
        return {m: (self.counts[m], self.wanted[m]) for m in self.wanted if self.counts[m] < self.wanted[m]}

    def lacks(self) -> str:
        """What is short, and what to do, as sentences."""
        lacks = ", ".join(f"{mode} has {have} of {wanted}" for mode, (have, wanted) in self.short.items())
        if self.largest_n:
            return f"{lacks}. Give -n {self.largest_n}, the most that this ratio allows, or --repeat to use samples again."
        return f"{lacks}. Give more samples of it, or leave that mode out."


def choose(pool: Pool, request: Request) -> Plan:
    """Choose the records of a mixture in the pool."""
    available = {mode: pool.available(mode, request.frames) for mode in request.modes}
    most = ratio.largest_n(request.weights, list(available.values())) if all(available.values()) else 0
    wanted = _wanted(request, available, most)
    is_endless = request.is_repeated or bool(request.epochs)
    chosen = {mode: n if is_endless and available[mode] else min(n, available[mode]) for mode, n in wanted.items()}
    for mode, count in chosen.items():
        if mode == "video":
            _choose_videos(pool, count, request, is_endless=is_endless)
        else:
            pool.choose(mode, count, seed=request.seed, frames=request.frames)
    return Plan(chosen, wanted, available, most)


def _wanted(request: Request, available: Mapping[str, int], most: int) -> dict[str, int]:
    """How many records of each mode the request asks for."""
    if request.epochs:
        return ratio.by_epochs(request.epochs, available)
    n = most if request.n is None else request.n
    if not n:  # a mode has no sample: it is short, and the others keep their ratio
        others = {mode: w for mode, w in zip(request.modes, request.weights, strict=True) if available[mode]}
        n_others = ratio.largest_n(list(others.values()), [available[mode] for mode in others]) if others else 0
        n = n_others * sum(request.weights) // max(1, sum(others.values()))
    return dict(zip(request.modes, ratio.counts(request.weights, n), strict=True))


def records(pool: Pool) -> Iterator[tuple[Chosen, dict[str, Any]]]:
    """The chosen records, in the order of the mixture, and their conversations with `id`, `mode` and `source`."""
    for chosen in pool.chosen():
        conversation = with_frames(chosen.conversation, chosen.frames)
        own = {"source_id": conversation["id"]} if "id" in conversation else {}
        yield chosen, {**conversation, **own, "id": chosen.key, "mode": chosen.mode, "source": chosen.source}


def report(tally: Tally, pool: Pool, plan: Plan, fill: float | None) -> dict[str, Any]:
    """What the mixture holds and what was left out, as JSON."""
    by_mode: dict[str, dict[str, Any]] = {mode: {"samples": 0, "tokens": 0, "visual_tokens": 0} for mode in plan.counts}
    by_source: dict[str, dict[str, Any]] = {
        f"{mode}:{source}": {
            "read": n, "kept": tally.kept[mode, source], "samples": 0, "tokens": 0, "visual_tokens": 0,
            "rejects": _of_source(tally.rejects, mode, source), "repairs": _of_source(tally.repairs, mode, source),
            "duplicates": tally.duplicates[mode, source], "leaks": sum(_of_source(tally.leaks, mode, source).values()),
        }
        for (mode, source), n in sorted(tally.read.items())
    }  # fmt: skip
    n_thinking = 0
    for mode, source, is_thinking, samples, tokens, visual_tokens in pool.totals():
        for part in by_mode[mode], by_source[f"{mode}:{source}"]:
            for name, value in (("samples", samples), ("tokens", tokens), ("visual_tokens", visual_tokens)):
                part[name] += value
        n_thinking += samples if mode == "video" and is_thinking else 0
    if "video" in by_mode:
        by_mode["video"]["thinking"] = n_thinking
    for mode, part in by_mode.items():
        for name, counts in (("rejects", tally.rejects), ("repairs", tally.repairs)):
            part[name] = _totals(counts, mode)
        part["duplicates"] = sum(n for (its, _), n in tally.duplicates.items() if its == mode)
        part["leaks"] = sum(_totals(tally.leaks, mode).values())
    return {
        "n": plan.n, "by_mode": by_mode, "by_source": by_source, "rejects": _totals(tally.rejects),
        "repairs": _totals(tally.repairs), "duplicates": sum(tally.duplicates.values()), "near_duplicates": tally.n_near,
        "leaks": sum(tally.leaks.values()), "leaks_by_file": _totals(tally.leaks), "available": plan.available,
        "wanted": plan.wanted, "largest_n": plan.largest_n, "fill": fill,
    }  # fmt: skip


def summary(figures: Mapping[str, Any], tally: Tally) -> str:
    """One line for people: what was read, left out and written."""
    n_rejected = sum(figures["rejects"].values())
    reasons = ", ".join(f"{reason}: {n}" for reason, n in figures["rejects"].items())
    rejected = f", {n_rejected} rejected ({reasons})" if n_rejected else ""
    n_repairs = sum(figures["repairs"].values())
    repaired = f", {counted(n_repairs, 'repair')}" if n_repairs else ""
    mixed = ", ".join(f"{mode} {part['samples']}" for mode, part in figures["by_mode"].items())
    return (
        f"read {counted(sum(tally.read.values()), 'document')}{rejected}, {counted(figures['duplicates'], 'duplicate')}"
        f"{repaired}; wrote {counted(figures['n'], 'record')}: {mixed}."
    )


def _choose_videos(pool: Pool, n: int, request: Request, *, is_endless: bool) -> None:
    thinking, plain = (pool.available("video", request.frames, is_thinking=is_thinking) for is_thinking in (True, False))
    endless = tuple(n if is_endless and have else have for have in (thinking, plain))
    for is_thinking, count in zip((True, False), ratio.split_video(n, (endless[0], endless[1])), strict=True):
        pool.choose("video", count, seed=request.seed, frames=request.frames, is_thinking=is_thinking)


def _of_source(counted: Mapping[tuple[str, str, str], int], mode: str, source: str) -> dict[str, int]:
    return {what: n for (its, name, what), n in sorted(counted.items()) if (its, name) == (mode, source)}


def _totals(counted: Mapping[tuple[str, str, str], int], mode: str | None = None) -> dict[str, int]:
    """Counts by what was counted, the commonest first."""
    total: Counter[str] = Counter()
    for (its, _, what), n in counted.items():
        if mode in (None, its):
            total[what] += n
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
