"""The data of a training of Keye-VL: conversations or packed rows, held-out conversations, and where their media are."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

from kvtools.artifact import is_stream
from kvtools.artifact.blob import canonical
from kvtools.artifact.files import open_seekable
from kvtools.artifact.history import Step
from kvtools.artifact.open import source_name
from kvtools.artifact.stream import Reader
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt
from kvtools.keye.data.conversations import BAD, Conversations, open_conversations
from kvtools.keye.data.dataloader import ROW_UNREADABLE, UNREADABLE
from kvtools.keye.data.media import Media
from kvtools.keye.run.objectives import Loader
from kvtools.keye.run.recipe import TrainingRecipe
from kvtools.skipped import SkippedRows

_T = TypeVar("_T")
_FAULTS = (BAD, UNREADABLE, ROW_UNREADABLE)  # reasons that make the exit code 65; that a conversation is too long does not


@dataclass
class TrainingData:
    """The data of a run, by which `digest` a resumed run knows that it is the same.

    name: its files, joined. row_media: of packed rows by reference. skipped: what was left out by source, which all ranks know
    alike. lost_later: what became unreadable after it was measured, which one rank alone may know. valid_name: the file of the
    held-out conversations.
    """

    name: str
    media: Media
    row_media: Media | None
    conversations: list[dict[str, Any]]
    packed: list[Index]
    held_out: list[dict[str, Any]]
    histories: list[list[Step]]
    digest: str
    skipped: list[tuple[str, SkippedRows]]
    valid_name: str = ""
    lost_later: list[tuple[str, SkippedRows]] = field(default_factory=list)
    _reported: set[str] = field(default_factory=set)

    def watch(self, name: str, loader: Loader) -> None:
        """Report what this loader skips under this name from now on."""
        self.skipped.append((name, loader.skipped))
        self.lost_later.append((name, loader.lost_later))

    def refuse_faults(self) -> None:
        """Raise Corrupt where something bad was left out."""
        for name, skipped in self.skipped + self.lost_later:
            for reason in skipped.counts:
                if reason in _FAULTS:
                    raise Corrupt(f"{name}: {skipped.line(reason)}. Repair the input, or run without --strict.")

    def strictly(self, steps: Iterable[_T]) -> Iterator[_T]:
        """The steps of a run, which ends with Corrupt as soon as something bad was left out."""
        for step in steps:
            self.refuse_faults()
            yield step

    def report(self, log: Callable[[str], None], *, is_root: bool, strict: bool) -> int:
        """Log what was left out and was not logged before: rank 0 all of it, other ranks what they alone may know.

        Returns 65 where some of it was bad, else 0. Raises Corrupt where some of it was bad and strict is true.
        """
        if strict:
            self.refuse_faults()
        for name, skipped in (self.skipped if is_root else []) + self.lost_later:
            for line in (f"{name}: {line}." for line in skipped.lines()):
                if line not in self._reported:
                    log(line)
                self._reported.add(line)
        reasons = {reason for _, skipped in self.skipped + self.lost_later for reason in skipped.counts}
        return Corrupt.code if reasons & {*_FAULTS} else 0


@contextmanager
def open_training_data(
    sources: Sequence[str], recipe: TrainingRecipe, *, media: Sequence[str], valid: str | None
) -> Iterator[TrainingData]:  # fmt: skip
    """The data of these sources; media and valid as the options. Its media are closed at the end.

    Raises Corrupt for inputs of another kind, ValueError where they do not fit one another or recipe.ratio.
    """
    inputs: list[Conversations] = []
    packed: list[Index] = []
    histories: list[list[Step]] = []
    digest = hashlib.blake2b(digest_size=8)
    for src in sources:
        file = open_seekable(src)
        if _is_packed(file, source_name(src)):
            index = Index(file, source_name(src))
            packed.append(index)
            histories.append(index.heads[0].history)
            digest.update(index.digest.encode())
        else:
            inputs.append(open_conversations(src, file))
            histories.append(inputs[-1].history)
            for conversation in inputs[-1].conversations:
                digest.update(canonical(conversation))
    if packed and inputs:
        raise ValueError(f"{packed[0].name} holds packed rows, and others conversations. Give one or the other")
    if packed and recipe.ratio is not None:
        raise ValueError("packed rows are mixed already. Leave it out")
    conversations = mix([part.conversations for part in inputs], recipe.ratio)
    held_out = open_conversations(valid) if valid is not None else Conversations("", "")
    if valid is not None:
        inputs.append(held_out)
        if not held_out.conversations:
            lost = " ".join(f"{line}." for line in held_out.skipped.lines())
            raise Corrupt(f"{held_out.name}: {lost} Nothing is left to validate on. Repair the file.")
    roots = [part.root for part in inputs]
    with ExitStack() as stack:
        opened_media = stack.enter_context(Media(media, roots=roots, budget=recipe.budget, image_tokens=recipe.limits.picture))
        row_media = None
        if packed:  # rows by reference are read at the sizes at which they were packed, whatever the options of this run
            folders = [os.path.dirname(index.name) for index in packed]
            row_media = stack.enter_context(Media(media, roots=folders))
        digest.update(f"{recipe.ratio} {opened_media.digest} {opened_media.folders}".encode())
        digest.update(canonical(held_out.conversations))
        skipped = [(part.name, part.skipped) for part in inputs]
        name = ", ".join(map(source_name, sources))
        yield TrainingData(
            name, opened_media, row_media, conversations, packed, held_out.conversations, histories, digest.hexdigest(),
            skipped, held_out.name,
        )  # fmt: skip


def mix(parts: Sequence[list[dict[str, Any]]], ratio: str | None) -> list[dict[str, Any]]:
    """The conversations of all inputs in this ratio: each at least once, those of too small inputs repeated in turn.

    ratio: `A,B,...`, a number for each input; None: as they are. Raises ValueError for another number of parts, and for a
    part that is not above 0.
    """
    if ratio is None:
        return [conversation for part in parts for conversation in part]
    try:
        weights = [float(number) for number in ratio.replace(":", ",").split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(parts) or not all(0 < weight < float("inf") for weight in weights):
        example = ",".join("1" * len(parts))
        raise ValueError(f"the inputs are {len(parts)}, and each needs one number above 0. Give them as {example}")
    total = max(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    counts = [round(total * weight) if part else 0 for part, weight in zip(parts, weights, strict=True)]
    return [part[n % len(part)] for part, count in zip(parts, counts, strict=True) for n in range(count)]


def _is_packed(file: BinaryIO, name: str) -> bool:
    """Whether a file holds packed rows; its position is left where it was."""
    begin = file.tell()
    is_packed = is_stream(file) and Reader(file, name).head.kind == "sequence"
    file.seek(begin)
    return is_packed
