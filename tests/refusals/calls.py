"""Names that the calls among the cases use."""

import os

import numpy as np
import torch

__all__ = [
    "cache", "chat", "cut", "delays", "faulty", "frames", "hot", "index", "keye", "model", "np", "processor", "row", "segments",
    "template", "texts", "torch", "vision", "world", "writer",
]  # fmt: skip


def chat(fault):
    """One call of a server with that fault."""
    from chat_server import ChatServer

    from kvtools.keye.endpoint.wire import Failed, Server

    with ChatServer(fault=lambda n: fault) as server:
        try:
            return Server(server.url, timeout_s=0.05, key_variable="NO_KEY").ask([{"role": "user", "content": "?"}], "m", {})
        except Failed as failure:
            raise Failed(str(failure).replace(server.url, "URL")) from None


def faulty(src):
    """What the first row is named for that cannot be read of a file of multiple-choice questions."""
    from kvtools.errors import Corrupt
    from kvtools.keye.bench.choice import ChoiceBench

    raise Corrupt(ChoiceBench().read([src], needs_media=False).faults[0])


def writer(dst):
    """A writer of a `video` stream."""
    from kvtools.artifact.files import Sink
    from kvtools.artifact.stream import Head, Writer

    return Writer(Sink(dst), Head("video"))


def index(src):
    """The index of a stream."""
    from kvtools.artifact.stream_index import Index

    return Index(open(src, "rb"), src)  # noqa: SIM115 open as long as the index is


def cut(index, src):
    """The index of a stream, which is cut afterwards."""
    os.truncate(src, 200)
    return index


def model(**config):
    """The configuration of a very small Keye-VL of 50 tokens, of which 48 stands for pictures and 49 for videos."""
    from kvtools.keye.model.config import LanguageConfig, ModelConfig

    language = LanguageConfig(width=32, hidden=48, layers=1, heads=4, kv_heads=2, head_dim=16, vocabulary=50)
    return ModelConfig(vision(), language, image_token=48, video_token=49, **config)


def keye():
    """That model."""
    from kvtools.keye.model.keye import Keye

    return Keye(model())


def vision(**config):
    """The configuration of a very small vision tower."""
    from kvtools.keye.model.config import VisionConfig

    return VisionConfig(width=24, hidden=40, layers=1, heads=2, table_side=5, **config)


def template():
    """A chat template by bytes."""
    from kvtools.keye.data.chat_template import ChatTemplate

    return ChatTemplate.open(None)


def processor():
    """A processor without media."""
    from kvtools.keye.data.processor import Processor

    return Processor(template())


def texts(**config):
    """The configuration of a very small text tower."""
    from kvtools.keye.model.config import TextConfig

    return TextConfig(**{"width": 24, "hidden": 40, "layers": 1, "heads": 2, "vocabulary": 50, "positions": 4, **config})


def segments(*starts):
    """Segments of a row of four tokens."""
    from kvtools.keye.model.attention import Segments

    return Segments.of(starts, 4)


def cache():
    """A cache that holds one conversation."""
    from kvtools.keye.model.language import KVCache

    kept = KVCache()
    kept.begin(segments(0), torch.device("cpu"))
    return kept


def delays(n):
    """Delays between n devices on a line."""
    from kvtools.etree.network.delay import Delays

    return Delays("euclidean", np.arange(n), np.zeros(n), points=np.arange(n, dtype=float)[:, None])


def world():
    """The world of one rank."""
    from kvtools.world import World

    return World()


def frames(src, **options):
    """The index of the frames of a video."""
    from kvtools.video.frame_index import open_index

    return open_index(src, **options)


def hot():
    """Settings of an alignment that diverges."""
    from kvtools.onerec.semantic_ids.align import AlignConfig

    return AlignConfig(learning_rate=1e30, n_steps=5)


def row(tokens, targets):
    """A packed row of one conversation without pictures."""
    from kvtools.keye.model.inputs import PackedRow

    n = len(tokens)
    return PackedRow(
        np.array(tokens, np.int32), np.array(targets, np.uint8), np.zeros(1, np.int32), np.zeros((3, n), np.int32), None,
        np.empty((0, 3), np.int32), np.empty(0), ("k",),
    )  # fmt: skip
