"""Names that the calls among the cases use."""

import numpy as np
import torch

__all__ = ["index", "np", "torch", "writer"]


def writer(dst):
    """A writer of a `video` stream."""
    from kvtools.artifact.files import Sink
    from kvtools.artifact.stream import Head, Writer

    return Writer(Sink(dst), Head("video"))


def index(src):
    """The index of a stream."""
    from kvtools.artifact.stream_index import Index

    return Index(open(src, "rb"), src)  # noqa: SIM115 open as long as the index is
