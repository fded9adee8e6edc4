"""Artifacts: the only code that knows bytes. Streams of records, bags of tensors, their kinds and their history."""

from kvtools.artifact.bag import Bag
from kvtools.artifact.open import (
    check_bag,
    checked_records,
    is_bag,
    is_stream,
    open_artifact,
    open_bag,
    open_stream,
    raising_at,
    source_name,
)
from kvtools.artifact.stream import Reader

__all__ = [
    "Bag",
    "Reader",
    "check_bag",
    "checked_records",
    "is_bag",
    "is_stream",
    "open_artifact",
    "open_bag",
    "open_stream",
    "raising_at",
    "source_name",
]
