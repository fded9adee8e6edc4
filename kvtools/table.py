"""The table of commands: all that `kvtools --help` needs, so that no command is imported before it is named."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A row of the table: where the command lives, what it is for, and the kinds it reads and writes."""

    section: str
    summary: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    is_parallel: bool = False  # works on many ranks; the others run on rank 0 alone

    def load(self, name: str) -> Any:
        return importlib.import_module(f"kvtools.commands.{name.replace('-', '_')}")


COMMANDS = {
    "tokenize-video": Entry(
        "Keye-VL", "Turn videos into patches with true timestamps.", ("video files",), ("video",), is_parallel=True
    ),
    "semid-build": Entry(
        "OneRec", "Turn embeddings into semantic IDs.", ("embedding", "video", ".npy"), ("semantic-id",), is_parallel=True
    ),
    "embed": Entry("Plumbing", "Turn what is said of items into vectors.", ("items", "embedding", "video"), ("embedding",)),
    "pairs": Entry("Plumbing", "Find items that go together in interactions.", ("interactions",), ("pair",)),
    "info": Entry("Plumbing", "Tell what artifacts hold and how they were made.", ("any",)),
    "cat": Entry("Plumbing", "Join streams into one, select records, or show them as text.", ("any stream",), ("same",)),
    "check": Entry("Plumbing", "Hold artifacts against their checksums and their kind.", ("any",)),
    "sum": Entry("Plumbing", "Digest records in whatever order they come.", ("any",)),
}
