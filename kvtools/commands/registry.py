"""The registry of commands: all that `kvtools --help` needs, so that no command is imported before it is called."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A command: what it is for, and the kinds it reads and writes.

    A name is one word or two: `pretrain onerec` is defined in `commands/pretrain_onerec.py`, its page is
    `kvtools-pretrain-onerec(1)`, and `kvtools pretrain` alone lists the second words.
    """

    section: str
    summary: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    is_parallel: bool = False  # works on many ranks; other commands run on rank 0 alone

    def load(self, name: str) -> Any:
        """The module of the command of that name: its `main`, EXAMPLES, EXIT_CODES, SEE_ALSO, and GROUPS of its options."""
        return importlib.import_module(f"kvtools.commands.{name.replace('-', '_').replace(' ', '_')}")


COMMANDS = {
    "tokenize-video": Entry(
        "Keye-VL", "Decode videos into patches with true timestamps.", ("video files",), ("video",), is_parallel=True
    ),
    "pretrain keye": Entry(
        "Keye-VL",
        "Train a vision-language model on conversations about pictures and videos.",
        ("conversation", "sequence", "video"),
        ("model",),
        is_parallel=True,
    ),
    "coldstart-mix": Entry(
        "Keye-VL",
        "Mix conversations of five modes by ratio, checked and cleaned.",
        ("conversation", "conversations", "video"),
        ("conversation", "sequence"),
        is_parallel=True,
    ),
    "rl sample": Entry(
        "Keye-VL",
        "Draw several answers to each prompt, and reward them.",
        ("conversation", "model", "video"),
        ("rollout",),
        is_parallel=True,
    ),
    "rl pairs": Entry("Keye-VL", "Choose a better and a worse answer from rollouts.", ("rollout",), ("conversation",)),
    "rl grpo": Entry(
        "Keye-VL",
        "Train a model by rewards of its own answers, by GRPO or GSPO.",
        ("conversation", "model", "video", "interactions"),
        ("model", "rollout"),
        is_parallel=True,
    ),
    "rl mpo": Entry(
        "Keye-VL",
        "Train a model on pairs of a better and a worse answer.",
        ("conversation", "model", "video"),
        ("model",),
        is_parallel=True,
    ),
    "chat": Entry("Keye-VL", "Chat with a model about pictures and videos.", ("model", "video files", "video")),
    "eval-kcmm": Entry(
        "Keye-VL", "Score a model or predictions on KC-MMBench and benchmarks like it.", ("model", "predictions")
    ),
    "semid-build": Entry(
        "OneRec", "Turn embeddings into semantic IDs.", ("embedding", "video", ".npy"), ("semantic-id",), is_parallel=True
    ),
    "pretrain onerec": Entry(
        "OneRec", "Train a generative recommender.", ("interactions", "semantic-id"), ("model",), is_parallel=True
    ),
    "rl ecpo": Entry(
        "OneRec",
        "Move a recommender towards a reward by ECPO.",
        ("model", "interactions"),
        ("model", "rollout"),
        is_parallel=True,
    ),
    "rl gbpo": Entry(
        "OneRec",
        "Move a recommender towards a reward by GBPO.",
        ("model", "interactions"),
        ("model", "rollout"),
        is_parallel=True,
    ),
    "rl pscore": Entry(
        "OneRec", "Train a ranker whose score is a reward.", ("model", "interactions"), ("model",), is_parallel=True
    ),
    "recgen": Entry("OneRec", "Recommend items to users.", ("model", "interactions"), ("recommendation",), is_parallel=True),
    "kma-cluster": Entry("E-Tree", "Group devices into a tree of aggregators.", ("device",), ("tree",), is_parallel=True),
    "etree-train": Entry(
        "E-Tree",
        "Train a model over a tree of devices, or by a baseline.",
        ("tree", "device"),
        ("model",),
        is_parallel=True,
    ),
    "embed": Entry("Plumbing", "Embed item text as vectors (TF-IDF and SVD).", ("items", "embedding", "video"), ("embedding",)),
    "pairs": Entry("Plumbing", "Find pairs of related items in interactions.", ("interactions",), ("pair",)),
    "quiz": Entry("Plumbing", "Generate self-supervised questions from clips.", ("video", "video files"), ("conversation",)),
    "answer": Entry(
        "Plumbing",
        "Score models on questions, or answer a file of them.",
        ("conversation", "model", "video"),
        is_parallel=True,
    ),
    "convert": Entry(
        "Plumbing",
        "Convert foreign files into artifacts, and models back.",
        ("interactions", "conversations", "Hugging Face directory", "model"),
        ("interaction", "conversation", "model", "Hugging Face directory"),
    ),
    "merge": Entry("Plumbing", "Average models of one architecture, or add adapters to one.", ("model",), ("model",)),
    "devices": Entry(
        "Plumbing", "Partition labelled data over devices of a network.", ("labelled data", "delays"), ("device",)
    ),
    "info": Entry("Plumbing", "Show what artifacts hold and how they were made.", ("any",)),
    "cat": Entry("Plumbing", "Concatenate streams, select records, or print them as text.", ("any stream",), ("same",)),
    "check": Entry("Plumbing", "Check artifacts against their checksums and their kind.", ("any",)),
    "sum": Entry("Plumbing", "Digest records in any order.", ("any",)),
    "plot": Entry("Plumbing", "Plot training logs and semantic-ID statistics.", ("semantic-id", "logs")),
}


def commands_below(word: str) -> dict[str, Entry]:
    """The commands whose names begin with the word, each under the rest of its name; all of them if the word is empty."""
    start = f"{word} " if word else ""
    return {name.removeprefix(start): entry for name, entry in COMMANDS.items() if name.startswith(start)}


def find(words: list[str]) -> tuple[str, list[str]]:
    """The command that the words call, and the words after its name; if none, the first word that is no option, and []."""
    positions = [i for i, word in enumerate(words) if not word.startswith("-")][:2]
    for n_words in range(1, len(positions) + 1):
        name = " ".join(words[i] for i in positions[:n_words])
        if name in COMMANDS:
            return name, words[positions[n_words - 1] + 1 :]
    return words[positions[0]] if positions else "", []
