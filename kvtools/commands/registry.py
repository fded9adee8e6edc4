"""The table of commands: all that `kvtools --help` needs, so that no command is imported before it is named."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A row of the table: where the command lives, what it is for, and the kinds it reads and writes.

    A name is one word or two: `pretrain onerec` lives in `commands/pretrain_onerec.py`, its page is
    `kvtools-pretrain-onerec(1)`, and `kvtools pretrain` alone tells which second words there are.
    """

    section: str
    summary: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    is_parallel: bool = False  # works on many ranks; the others run on rank 0 alone

    def load(self, name: str) -> Any:
        return importlib.import_module(f"kvtools.commands.{name.replace('-', '_').replace(' ', '_')}")


COMMANDS = {
    "tokenize-video": Entry(
        "Keye-VL", "Turn videos into patches with true timestamps.", ("video files",), ("video",), is_parallel=True
    ),
    "pretrain keye": Entry(
        "Keye-VL",
        "Train a model that talks about pictures and videos.",
        ("conversation", "sequence", "video"),
        ("model",),
        is_parallel=True,
    ),
    "chat": Entry("Keye-VL", "Ask a model about pictures and videos.", ("model", "video files", "video")),
    "semid-build": Entry(
        "OneRec", "Turn embeddings into semantic IDs.", ("embedding", "video", ".npy"), ("semantic-id",), is_parallel=True
    ),
    "pretrain onerec": Entry(
        "OneRec", "Train a generator of recommendations.", ("interactions", "semantic-id"), ("model",), is_parallel=True
    ),
    "recgen": Entry("OneRec", "Recommend items to users.", ("model", "interactions"), ("recommendation",), is_parallel=True),
    "kma-cluster": Entry("E-Tree", "Group devices into a tree of aggregators.", ("device",), ("tree",), is_parallel=True),
    "etree-train": Entry(
        "E-Tree", "Train a model over a tree of devices, or by its rivals.", ("tree", "device"), ("model",), is_parallel=True
    ),
    "embed": Entry("Plumbing", "Turn what is said of items into vectors.", ("items", "embedding", "video"), ("embedding",)),
    "pairs": Entry("Plumbing", "Find items that go together in interactions.", ("interactions",), ("pair",)),
    "quiz": Entry("Plumbing", "Make questions that clips answer by themselves.", ("video", "video files"), ("conversation",)),
    "answer": Entry("Plumbing", "Let models answer questions, and count.", ("conversation", "model", "video")),
    "convert": Entry(
        "Plumbing",
        "Turn files of other people's making into artifacts, and models back.",
        ("interactions", "conversations", "Hugging Face directory", "model"),
        ("interaction", "conversation", "model", "Hugging Face directory"),
    ),
    "merge": Entry("Plumbing", "Average models of one shape.", ("model",), ("model",)),
    "devices": Entry("Plumbing", "Spread labelled data over devices of a network.", ("labelled data", "delays"), ("device",)),
    "info": Entry("Plumbing", "Tell what artifacts hold and how they were made.", ("any",)),
    "cat": Entry("Plumbing", "Join streams into one, select records, or show them as text.", ("any stream",), ("same",)),
    "check": Entry("Plumbing", "Hold artifacts against their checksums and their kind.", ("any",)),
    "sum": Entry("Plumbing", "Digest records in whatever order they come.", ("any",)),
    "plot": Entry("Plumbing", "Draw what people would rather look at than read.", ("semantic-id", "logs")),
}


def below(word: str) -> dict[str, Entry]:
    """The rows whose names begin with the word, each under the rest of its name; every row where the word is empty."""
    start = f"{word} " if word else ""
    return {name.removeprefix(start): entry for name, entry in COMMANDS.items() if name.startswith(start)}


def find(words: list[str]) -> tuple[str, list[str]]:
    """The command that the words call and the words after its name, or where there is none the first word and nothing."""
    places = [place for place, word in enumerate(words) if not word.startswith("-")][:2]
    for n_words in range(1, len(places) + 1):
        name = " ".join(words[place] for place in places[:n_words])
        if name in COMMANDS:
            return name, words[places[n_words - 1] + 1 :]
    return words[places[0]] if places else "", []
