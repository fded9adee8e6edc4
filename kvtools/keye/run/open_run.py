"""One run of `answer --open`: open, answer, report."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtools.artifact.blob import canonical
from kvtools.artifact.state import RunState, lock_folder, state_folder
from kvtools.errors import Corrupt, raising
from kvtools.keye.checkpoint.adapters import tensors_digest
from kvtools.keye.data.conversations import Conversations, open_conversations
from kvtools.keye.data.media import Media
from kvtools.keye.data.processor import Processor
from kvtools.keye.run.limits import Limits, tell_long_prompt
from kvtools.keye.run.open_answers import OpenAnswers, run_config
from kvtools.keye.run.session import GenerationConfig, open_checkpoint
from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
from kvtools.world import Stop
from kvtools.world import shard as take_shard

if TYPE_CHECKING:
    from kvtools.invocation import Invocation


@dataclass(frozen=True)
class OpenOptions:
    """The options of a run beside how answers are drawn."""

    sources: Sequence[str]
    model: str
    media: Sequence[str] = ()
    tokenizer: str | None = None
    shard: str | None = None
    state: str | None = None
    device: str = "auto"
    dtype: str = "auto"


def answer_open(run: "Invocation", config: GenerationConfig, options: OpenOptions) -> int:
    """Answer all conversations and write the answers; returns the exit code."""
    world = run.world
    folder = options.state or state_folder(run.output)
    stop = Stop() if folder else False
    run.refuse_own_input(*options.sources, options.model)
    run.refuse_existing()
    compute_on, precision = resolve_device(options.device, options.dtype, rank=world.rank)
    limit_threads(world)
    keep_freed_memory()
    inputs = [open_conversations(src) for src in options.sources]
    conversations = take_shard([conversation for part in inputs for conversation in part.conversations], options.shard)
    name = ", ".join(part.name for part in inputs)
    with ExitStack() as stack:
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        keye, template, weights = open_checkpoint(options.model, options.tokenizer, device=compute_on, dtype=precision)
        limits, roots = Limits.of_model(weights), [part.root for part in inputs]
        media = stack.enter_context(Media(options.media, roots=roots, budget=limits.budget, image_tokens=limits.picture))
        processor = Processor.for_model(keye.config, template, media, max_prompt=limits.row)
        data = hashlib.blake2b(canonical([conversations, media.digest, media.folders]), digest_size=8).hexdigest()
        settings = run_config(config, tensors_digest(weights), data, dtype=precision)
        state = RunState(folder, "answer-state", settings)
        answering = OpenAnswers(keye, processor, config, conversations, world, stop, name=name, quiet=run.is_silent)
        with raising(Corrupt, options.model, "Give another model."):
            answering.run(state, run.sink, start_over=run.force)
        tell_long_prompt(processor.longest, limits, keye.config.language.positions, run.log)
    return _report(run, inputs, name, answering) if world.is_root else 0


def _report(run: "Invocation", inputs: Sequence[Conversations], name: str, answering: OpenAnswers) -> int:
    """Tell what was answered and what was left out; returns 65 where anything was, else 0."""
    skipped = [(part.name, part.skipped) for part in inputs] + [(name, answering.skipped)]
    code = max(rows.report(src, run.warn, strict=run.strict) for src, rows in skipped)
    done = answering.counts
    cut = f" {done.cut:,} were cut at --max-new." if done.cut else ""
    run.info(f"{name}: {done.answers:,} answers of {done.tokens:,} tokens.{cut}")
    return code
