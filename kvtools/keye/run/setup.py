"""What a training of Keye-VL starts from: its data, a model of given or random weights, and the task of its stage.

A model may be put together of parts: `--init siglip/ --init qwen3/` takes the tower of one and the decoder of the other, and
what none brings is random. Stage 0 trains a SigLIP, whose tower later stages begin with. Not here: options
(commands/pretrain_keye.py), the loop (learn/loop.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

from kvtools.artifact import is_stream
from kvtools.artifact.blob import bytes_of, canonical
from kvtools.artifact.files import open_seekable
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Reader
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Usage
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.checkpoint.weights import Weights
from kvtools.keye.data import dataloader as feed
from kvtools.keye.data.augment import Augment
from kvtools.keye.data.chat_template import Chat
from kvtools.keye.data.conversations import open_conversations
from kvtools.keye.data.media import Media
from kvtools.keye.data.tokenizer import FILE as TOKENIZER
from kvtools.keye.model.config import SIZES, ModelConfig, TextConfig
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.objectives import Answering, Contrasting, Task
from kvtools.keye.run.recipe import Recipe
from kvtools.skipped import SkippedRows
from kvtools.train.durations import EpochLength
from kvtools.world import World

_T = TypeVar("_T")
_ROUND = 64  # vocabularies are made a multiple of it: products of even sizes are faster
_TEXT_POSITIONS = 64  # SigLIP's
_PICTURE_TOKENS = 4, 16_384  # of a picture, as published
_SPOKEN = (
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_BAD_INPUT = (feed.BAD, feed.UNREADABLE)  # what makes the exit code 65; what is only too long does not


@dataclass
class Given:
    """The data of a run: conversations or packed streams, held-out ones, and where their pictures are.

    skipped: what was left out, which all ranks know alike. gone: what went between two looks at it, which one of them may know.
    """

    media: Media
    conversations: list[dict[str, Any]] = field(default_factory=list)
    packed: list[Index] = field(default_factory=list)
    held: list[dict[str, Any]] = field(default_factory=list)
    histories: list[list[Step]] = field(default_factory=list)
    digest: str = ""
    skipped: list[tuple[str, SkippedRows]] = field(default_factory=list)
    gone: list[tuple[str, SkippedRows]] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def refuse_bad(self) -> None:
        """Raise Corrupt where something bad was left out."""
        for name, skipped in self.skipped + self.gone:
            for line, reason in zip(skipped.lines(), skipped.counts, strict=True):
                if reason in _BAD_INPUT:
                    raise Corrupt(f"{name}: {line}. Mend the input, or run without --strict.")

    def guarded(self, steps: Iterable[_T]) -> Iterator[_T]:
        """The steps of a run, which ends as soon as something bad was left out."""
        for step in steps:
            self.refuse_bad()
            yield step

    def report(self, note: Callable[[str], None], *, is_root: bool, strict: bool) -> int:
        """Tell what was left out and has not been told: rank 0 all of it, others what they alone may know. Returns 65 where
        some of it was bad, which with strict raises Corrupt."""
        if strict:
            self.refuse_bad()
        for name, skipped in (self.skipped if is_root else []) + self.gone:
            lines = [f"{name}: {line}." for line in skipped.lines()]
            for line in lines:
                if line not in self.told:
                    note(line)
            self.told |= set(lines)
        reasons = {reason for _, skipped in self.skipped + self.gone for reason in skipped.counts}
        return Corrupt.code if reasons & {*_BAD_INPUT} else 0


@dataclass(frozen=True)
class Start:
    """A model to train, its tokenizer, and where its weights came from."""

    model: Keye | Siglip
    arch: ModelConfig
    chat: Chat
    like: Weights | None
    histories: list[list[Step]]
    digest: str
    files: dict[str, bytes] = field(default_factory=dict)  # small ones that go with the tokenizer

    @property
    def n_learning(self) -> str:
        """How many parameters learn, in words."""
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return f"{sum(n for n, learns in counts if learns):,} of {sum(n for n, _ in counts):,}"


@contextmanager
def open_data(data: Sequence[str], recipe: Recipe, *, media: Sequence[str], valid: str | None) -> Iterator[Given]:
    """The data that options name. Raises Corrupt for inputs of another kind, Usage for options that do not fit them."""
    streams = [src for src in media if not Path(src).is_dir()]
    found: list[list[dict[str, Any]]] = []
    packed: list[Index] = []
    digest = hashlib.blake2b(digest_size=8)
    histories, skipped, roots = [], [], [src for src in media if Path(src).is_dir()]
    for src in data:
        file = open_seekable(src)
        if _is_packed(file, _named(src)):
            index = Index(file, _named(src))
            packed.append(index)
            histories.append(index.heads[0].history)
            digest.update(index.digest.encode())
        else:
            opened = open_conversations(src, file)
            found.append(opened.found)
            histories.append(opened.history)
            skipped.append((_named(src), opened.skipped))
            roots.append(opened.root)
            for conversation in opened.found:
                digest.update(canonical(conversation))
    ratio = recipe.words["ratio"]
    if packed and found:
        raise Usage(f"{packed[0].name}: packed rows beside conversations. Give one or the other.")
    if packed and ratio is not None:
        raise Usage("--ratio: packed rows have been mixed already. Leave it out.")
    held = open_conversations(valid) if valid is not None else None
    if held is not None:
        skipped.append((_named(valid or ""), held.skipped))
        roots.append(held.root)
    most = recipe.budget.max_tokens
    pictures = (min(_PICTURE_TOKENS[0], most), min(_PICTURE_TOKENS[1], most))
    with Media(list(dict.fromkeys(roots)), streams, budget=recipe.budget, image_tokens=pictures) as opened_media:
        digest.update(f"{ratio} {opened_media.digest} {[src for src in media if src not in streams]}".encode())
        digest.update(canonical(held.found if held else []))
        conversations = mixed(found, ratio)
        yield Given(
            opened_media, conversations, packed, held.found if held else [], histories, digest.hexdigest(), skipped
        )  # fmt: skip


def mixed(found: Sequence[list[dict[str, Any]]], ratio: str | None) -> list[dict[str, Any]]:
    """Conversations of all inputs in those shares: each at least once, those of too small inputs repeated in turn.

    Raises Usage for a ratio of another number of parts, or with one that is not above 0.
    """
    if ratio is None:
        return [conversation for part in found for conversation in part]
    try:
        shares = [float(word) for word in ratio.replace(":", ",").split(",")]
    except ValueError:
        shares = []
    if len(shares) != len(found) or not all(0 < share < float("inf") for share in shares):
        raise Usage(f"--ratio {ratio}: {len(found)} numbers above 0 expected, one an input.")
    total = max(len(part) / share for part, share in zip(found, shares, strict=True))
    counts = [round(total * share) if part else 0 for part, share in zip(found, shares, strict=True)]
    return [part[n % len(part)] for part, count in zip(found, counts, strict=True) for n in range(count)]


def begin(recipe: Recipe, init: Sequence[str], tokenizer: str | None, device: str) -> Start:
    """The model that a run starts from, on its device. Raises Corrupt for parts that do not fit one another."""
    parts = [checkpoint.open_weights(src) for src in init]
    speaker = _speaker(parts, is_contrastive=recipe.what.is_contrastive) if tokenizer is None else None
    chat = Chat.open(tokenizer) if speaker is None else Chat.of_model(speaker.name, speaker.files)
    if chat is None:
        assert speaker is not None, "bytes are always there"
        raise Corrupt(f"{speaker.name}: no tokenizer in it. Give the one it was trained with: --tokenizer FILE.")
    arch = recipe.shaped(_base(parts, SIZES[recipe.size], chat))
    if any(part.format.language is not None for part in parts):
        chat.require_fits(arch.language.vocabulary, arch.image_token, arch.video_token)
    torch.manual_seed(recipe.weights_seed)
    model = Siglip(arch.vision, _text_shape(parts, arch, chat)) if recipe.what.is_contrastive else Keye(arch)
    for part in parts:
        try:
            checkpoint.copy_shared_weights(model, part)
        except ValueError as fault:
            why = str(fault).removeprefix(f"{part.name}: ")
            raise Corrupt(f"{part.name}: {why}. Give models of one shape, or another --size or --architecture.") from None
    model.float()
    model.checkpointing = recipe.training["checkpointing"]
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for name, array in sorted(part.tensors.items()):
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(bytes_of(array))
    digest.update(chat.to_bytes())
    spoken = {name: data for name, data in (speaker.files if speaker is not None else {}).items() if name in _SPOKEN}
    like = next((part for part in reversed(parts) if part.format.layout in ("keye", "siglip")), None)
    return Start(model.to(device), arch, chat, like, [part.history for part in parts], digest.hexdigest(), spoken)


def task_of(recipe: Recipe, start: Start, given: Given, world: World, device: str) -> Task:
    """The task of a stage. Raises Corrupt where there is nothing to learn."""
    shown = {"tokens_per_second": start.arch.tokens_per_second, "window": recipe.training["window"]}
    source: feed.Feed | feed.PackedFeed
    if given.packed:
        source = feed.PackedFeed(given.packed, seed=recipe.seed, check=lambda row: _require_fits(row, start))
    else:
        source = feed.Feed(
            given.conversations, start.chat, given.media, length=recipe.length, seed=recipe.seed,
            cuts=recipe.training["cut"], **shown,
        )  # fmt: skip
    held = feed.Feed(given.held, start.chat, given.media, length=recipe.length, **shown) if given.held else None
    for name, rows in (("DATA", source), *((("--valid", held),) if held is not None else ())):
        given.skipped.append((name, rows.skipped))
        given.gone.append((name, rows.gone))
    if next(source.epoch(0), None) is None:
        lines = "; ".join(f"{name}: {line}" for name, skipped in given.skipped for line in skipped.lines())
        raise Corrupt(f"{lines or 'DATA: no conversations'}; nothing is left to learn. Look at --length, --media and the data.")
    named: dict[str, Any] = {
        "batch_tokens": recipe.batch_tokens,
        "world": world,
        "device": device,
        "seed": recipe.seed,
        "augment": Augment(**{each.name: recipe.training[each.name] for each in fields(Augment)}),
        "held": held,
        "is_judged": recipe.is_judged,
    }
    if isinstance(start.model, Siglip):
        return Contrasting(start.model, source, start.arch, recipe.what, **named)
    return Answering(start.model, source, start.arch, recipe.what, **named)


def lengths_of(recipe: Recipe, task: Task) -> EpochLength:
    """How long an epoch is; where nothing is told in epochs, as long as any run, since to know is to look at all the data."""
    n_steps = task.n_steps() if recipe.counts_epochs else 1 << 40
    return EpochLength(n_steps, n_steps * recipe.batch_tokens)


def _is_packed(file: BinaryIO, name: str) -> bool:
    """Whether a file holds packed rows; it is left where it was."""
    begin = file.tell()
    is_packed = is_stream(file) and Reader(file, name).head.kind == "sequence"
    file.seek(begin)
    return is_packed


def _named(src: str) -> str:
    return "stdin" if src == "-" else src


def _speaker(parts: Sequence[Weights], *, is_contrastive: bool) -> Weights | None:
    """The part whose tokenizer is taken: that whose words the model takes over, or any that has one; None for bytes."""
    wanted = [part for part in reversed(parts) if (part.format.text if is_contrastive else part.format.language) is not None]
    having = [part for part in reversed(parts) if TOKENIZER in part.files]
    return next(iter([*wanted, *having]), None)


def _require_fits(row: PackedRow, start: Start) -> None:
    """Raise ValueError for a packed row that the model cannot be shown."""
    model, arch = start.model, start.arch
    n_words = arch.language.vocabulary if isinstance(model, Keye) else model.text_model.config.vocabulary
    if row.tokens.min() < 0 or row.tokens.max() >= n_words:
        raise ValueError(
            f"tokens: {row.tokens.min()} to {row.tokens.max()} found, ids below the model's {n_words} expected; pack rows with "
            "its own tokenizer"
        )
    n_visual = int(np.isin(row.tokens, (arch.image_token, arch.video_token)).sum())
    n_patches = 0 if row.pixels is None else len(row.pixels)
    if n_visual * arch.merge**2 != n_patches or (row.grid[:, 1:] % arch.merge).any():
        raise ValueError(
            f"{n_visual} visual tokens at {arch.image_token} and {arch.video_token} and {n_patches} patches found, "
            f"{arch.merge**2} patches a token expected; pack rows with the model's tokenizer"
        )
    if (row.targets > 1).any() or row.targets[row.segments].any():
        raise ValueError("targets: 0 or 1, and 0 for the first token of a conversation, expected")


def _base(parts: Sequence[Weights], arch: ModelConfig, chat: Chat) -> ModelConfig:
    """The size, with the shapes of those parts that bring any, and the tokens of the tokenizer where none brings a decoder."""
    language = replace(arch.language, vocabulary=-(-chat.size // _ROUND) * _ROUND)
    base = replace(arch, language=language, image_token=chat.image_token, video_token=chat.video_token)
    for part in parts:
        shapes = part.format
        if shapes.config is not None:
            base = shapes.config
        elif shapes.language is not None:
            base = replace(base, language=shapes.language)
        elif shapes.vision is not None:
            # a published SigLIP knows no rotations; Keye-VL adds them to it (spec/keye.md 3). One trained here has a recipe
            is_published = bool(part.huggingface) and not part.recipe
            base = replace(base, vision=replace(shapes.vision, rope=True) if is_published else shapes.vision)
    return base


def _text_shape(parts: Sequence[Weights], arch: ModelConfig, chat: Chat) -> TextConfig:
    given = next((part.format.text for part in reversed(parts) if part.format.text is not None), None)
    if given is not None:
        if chat.size > given.vocabulary:
            raise Corrupt(
                f"{chat.tokenizer.name}: {chat.size} tokens found, at most the text tower's {given.vocabulary} expected."
            )
        return given
    seen = arch.vision
    vocabulary = -(-chat.size // _ROUND) * _ROUND
    return TextConfig(seen.width, seen.hidden, seen.layers, seen.heads, vocabulary=vocabulary, positions=_TEXT_POSITIONS)
