"""Files of other programs: what they hold, and the interactions of several of them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from kvtools.artifact import is_stream, source_name
from kvtools.artifact.delimited import first_letter
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.tables import ColumnReader
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.log import TEST, VALID, Interactions, Source, read_all
from kvtools.onerec.interactions.names import find_column
from kvtools.onerec.interactions.stream import in_order, open_interactions
from kvtools.onerec.semantic_ids.published import holds_ids
from kvtools.skipped import SkippedRows

Holds = Literal["conversation", "interaction", "semantic-id"]

# columns that conversations have in parquet
_CHATS = {"messages", "conversations", "conversation", "instruction", "prompt", "question", "problem", "query", "chosen"}


@dataclass(frozen=True)
class Layout:
    """What the files do not say themselves. columns: role → column. header: the columns of tables without one."""

    columns: Mapping[str, str | None]
    encoding: str = "utf-8"
    header: Sequence[str] | None = None


def holds(file: BinaryIO, name: str) -> Holds:
    """What a seekable file holds, which is not a stream; nothing is consumed. What is no table is a conversation."""
    begin = file.tell()
    try:
        text = ColumnReader(file, name)
        file.seek(begin)
        if holds_ids(text):
            return "semantic-id"
        if _CHATS & set(text.lists or ()):
            return "conversation"
        if text.form not in ("json", "parquet"):
            return "interaction"
        is_log = all(find_column(role, text.types, name=name) for role in ("user", "item"))
        if is_log or (text.form == "parquet" and not _CHATS & set(text.types)):
            return "interaction"
    except Corrupt as fault:
        # it is refused again by the reader of what it rather is
        file.seek(begin)
        is_json = first_letter(file) in ("[", "{") and "may both be" not in str(fault)
        return "conversation" if is_json else "interaction"
    finally:
        file.seek(begin)
    return "conversation"


def open_all(
    sources: Sequence[str], layout: Layout, *, valid: str | None = None, test: str | None = None, file: BinaryIO | None = None
) -> tuple[Interactions, SkippedRows, list[list[Step]]]:
    """The interactions of all sources, what was skipped, and the histories that they bring.

    valid, test: sources whose interactions are of that part, those of the others being for training. file: the first of the
    sources, open. Raises Usage for several sources of which one is a stream.
    """
    parts = [*((src, None) for src in sources), *((src, part) for src, part in ((valid, VALID), (test, TEST)) if src)]
    opened = [
        Source(file if n == 0 and file else open_source(src), source_name(src), part) for n, (src, part) in enumerate(parts)
    ]
    streams = [source.name for source in opened if is_stream(source.file)]
    if streams and len(opened) > 1:
        raise Usage(f"{streams[0]}: this is a stream, and several inputs are read as text. Join streams with kvtools cat.")
    if streams:
        interactions, skipped, history = open_interactions(parts[0][0], columns=layout.columns, file=opened[0].file)
        return interactions, skipped, [history]
    read, skipped = read_all(opened, columns=layout.columns, encoding=layout.encoding, header=layout.header)
    return in_order(read), skipped, []
