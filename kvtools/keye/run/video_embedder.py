"""What a model sees in a clip: its visual tokens, and one vector for the whole of it, put into `video` records.

A Keye-VL gives its projected tokens, and their mean as the vector; a model of stage 0 gives what its pooling head says, which
was learnt against texts, and no tokens, since it has no language model to read them. Vectors have length 1.

One clip at a time, on one core each, several beside one another: the last bits of a product depend on how many rows it has and
on how many cores share it, and a record must not depend on its neighbours or on the machine. A clip alone has patches enough
to keep a GPU busy. Legend: P patches, M visual tokens, D width.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf

from kvtools.artifact import blob
from kvtools.artifact.casts import to_numpy
from kvtools.artifact.digest import Digest
from kvtools.artifact.files import Spool
from kvtools.artifact.frame import MAX_RAW_BYTES
from kvtools.errors import Corrupt
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.train.loop import DTYPES
from kvtools.video import patch
from kvtools.video.pool import Outcome

_PATCHES_A_TOKEN = (patch.FACTOR // patch.PATCH) ** 2
_PIXEL_BYTES = 3 * patch.PIXELS_A_TOKEN  # of a token
_OTHER_BYTES = 1 << 20  # of a record: JSON, times, and the vector


@dataclass(frozen=True)
class Encoded:
    """tokens: bfloat16 (M, D), or None; embedding: float32 (D,), of length 1."""

    tokens: np.ndarray | None
    embedding: np.ndarray


class Encoder:
    """A model's eyes; `digest` is that of their weights, `pooling` says where the vector comes from."""

    def __init__(self, model: Keye | Siglip, history: list[dict[str, Any]], device: str) -> None:
        """Raises ValueError for a model whose patches or tokens are not of the size that videos are cut into."""
        self.history, self._device = history, device
        seen = model.config.vision if isinstance(model, Keye) else model.vision_model.config
        merge = model.config.merge if isinstance(model, Keye) else patch.FACTOR // patch.PATCH
        if seen.patch != patch.PATCH or merge * seen.patch != patch.FACTOR:
            raise ValueError(
                f"patches of {seen.patch} pixels, {merge} a side of a token found, {patch.PATCH} and "
                f"{patch.FACTOR // patch.PATCH} expected"
            )
        self.pooling = "mean" if isinstance(model, Keye) else "head"
        self.token_width = model.config.language.width if isinstance(model, Keye) else 0
        self._patch_bytes = 4 * (seen.hidden + 10 * seen.width)  # a layer's, in float32: rough, and enough
        parts: dict[str, nn.Module] = (
            {"visual": model.visual, "mlp_AR": model.mlp_AR}
            if isinstance(model, Keye)
            else {"vision_model": model.vision_model}
        )
        weights = {f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()}
        self.digest = str(Digest.of_bag({name: to_numpy(x) for name, x in weights.items()}))
        for module in parts.values():
            module.to(device)
        if isinstance(model, Keye):
            del model.model  # the decoder is not asked
        self._model = model

    @classmethod
    def open(cls, src: str, *, device: str, dtype: str) -> Self:
        """The eyes of a `model` bag or a Hugging Face directory. Raises Corrupt for what has none, Missing for nothing."""
        model, weights = checkpoint.load(src, dtype=DTYPES[dtype])
        try:
            return cls(model, weights.history, device)
        except ValueError as fault:
            raise Corrupt(f"{src}: {fault}.") from None

    @property
    def most_tokens(self) -> int:
        """How many tokens a clip may have, so that its record is not longer than records may be."""
        return (MAX_RAW_BYTES - _OTHER_BYTES) // (_PIXEL_BYTES + 2 * self.token_width)

    @torch.inference_mode()
    def encode(self, pixels_P3HW: np.ndarray, grid: np.ndarray) -> Encoded:
        """Of one clip: uint8 patches in raster order, and frames, rows and columns. Raises ValueError where the result is not
        finite."""
        pixels = torch.tensor(pixels_P3HW, device=self._device)
        grids = [(int(grid[0]), int(grid[1]), int(grid[2]))]
        if isinstance(self._model, Siglip):
            tokens, pooled = None, self._model.encode_images(pixels, grids)[0]
        else:
            seen_MD = self._model.encode_images(pixels, grids)
            tokens, pooled = to_numpy(seen_MD.bfloat16()), nf.normalize(seen_MD.float().mean(0), dim=0)
        if not bool(pooled.isfinite().all()):
            raise ValueError("the encoder gives numbers that are not finite; look at its training")
        return Encoded(tokens, to_numpy(pooled))

    def finish(self, most_tokens: int, stop: Callable[[], bool]) -> Callable[[Iterator[Outcome]], Iterator[Outcome]]:
        """What to do with the outcomes of decoding, clips of at most so many tokens: `video` records get `tokens` and
        `embedding`, in their JSON `encoder` {digest, pooling}, and stay in order. Once `stop` says so, none is begun."""
        n_at_once = 1
        if self._device == "cpu":
            clip_bytes = most_tokens * _PATCHES_A_TOKEN * self._patch_bytes
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            n_at_once = max(1, min(len(os.sched_getaffinity(0)), free // clip_bytes))
        return lambda outcomes: _in_order(outcomes, lambda outcome: self._finished(outcome, stop), n_at_once)

    def _finished(self, outcome: Outcome, stop: Callable[[], bool]) -> Outcome:
        if outcome.record is None:
            return outcome
        if stop():
            outcome.record.close()
            return Outcome(outcome.key)
        raw = bytearray()
        with outcome.record as record:
            for piece in record:
                raw += piece
        tensors, fields = blob.decode(raw)
        try:
            made = self.encode(tensors["pixels"], tensors["grid"])
        except ValueError as fault:
            return Outcome(outcome.key, None, str(fault))
        tensors["embedding"] = made.embedding
        if made.tokens is not None:
            tensors["tokens"] = made.tokens
        whole = Spool()
        for piece in blob.encode(tensors, {**fields, "encoder": {"digest": self.digest, "pooling": self.pooling}}):
            whole.append(piece)
        return Outcome(outcome.key, whole)


def _in_order(outcomes: Iterator[Outcome], finish: Callable[[Outcome], Outcome], n_at_once: int) -> Iterator[Outcome]:
    """Each outcome finished, in order, so many beside one another, and one waiting."""
    pool = ThreadPoolExecutor(n_at_once, initializer=lambda: torch.set_num_threads(1))  # what is set is set for a thread
    waiting: deque[Future[Outcome]] = deque()
    try:
        for outcome in outcomes:
            waiting.append(pool.submit(finish, outcome))
            if len(waiting) > n_at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
