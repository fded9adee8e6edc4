"""The records of a mixture: conversations as they are, or packed into rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from kvtools.artifact.blob import canonical
from kvtools.artifact.stream import Writer
from kvtools.errors import Stopped
from kvtools.keye.data.chat_template import visuals_of
from kvtools.keye.data.packing import by_reference, collate, to_record
from kvtools.keye.data.processor import Processor
from kvtools.keye.data.references import References
from kvtools.keye.mix.mixture import records
from kvtools.keye.mix.pool import Chosen, Pool
from kvtools.keye.model.inputs import Example
from kvtools.train.packing import pack_stream


@dataclass(frozen=True)
class Packing:
    """How records become rows of at most `length` tokens.

    names_media: rows name their pictures and videos in place of holding patches.
    """

    processor: Processor
    length: int
    names_media: bool = False


def write(pool: Pool, writer: Writer, packing: Packing | None, stop: object) -> float | None:
    """The records of a mixture, after those that a stopped run left in the writer: conversations as they are, or rows.

    Returns the share of the rows that is filled, if any. Raises Stopped once a record is written where stop is true.
    """
    if packing is not None:
        return _write_rows(pool, writer, packing, stop)
    for chosen, conversation in islice(records(pool), writer.n_records, None):
        fields = {name: conversation[name] for name in ("mode", "source", "id")}
        writer.write(chosen.key, {"json": np.frombuffer(canonical(conversation), np.uint8)}, **fields)
        _stop_if(stop, writer)
    return None


def _write_rows(pool: Pool, writer: Writer, packing: Packing, stop: object) -> float:
    media = packing.processor.media
    references = References(media) if packing.names_media and media is not None else None
    n_tokens = n_rows = 0
    for chosen in pack_stream(records(pool), lambda record: record[0].tokens, packing.length):
        n_tokens, n_rows = n_tokens + sum(record.tokens for record, _ in chosen), n_rows + 1
        if n_rows <= writer.n_records:
            continue
        row = collate([_example(*record, packing.processor) for record in chosen])
        if references is not None:
            row = by_reference(row, [references.to(item) for _, talk in chosen for item in visuals_of(talk)])
        tensors, fields = to_record(row)
        writer.write(f"row-{n_rows - 1:08d}", tensors, **fields)
        _stop_if(stop, writer)
    return n_tokens / (packing.length * n_rows)


def _stop_if(stop: object, writer: Writer) -> None:
    if stop:
        raise Stopped(f"stopped after {writer.n_records:,} records. Run again to continue.")


def _example(chosen: Chosen, conversation: Mapping[str, Any], processor: Processor) -> Example:
    if not chosen.encoded:
        return processor.example(conversation, key=chosen.key)
    n = len(chosen.encoded) // 5  # of tokens: four bytes a token and one a target
    tokens = np.frombuffer(chosen.encoded, np.int32, n)
    targets = np.frombuffer(chosen.encoded, np.uint8, n, 4 * n)
    return Example(chosen.key, tokens, targets, processor.positions(tokens), (), conversation.get("as_is") is True)
