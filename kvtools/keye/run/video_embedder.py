"""Embeds clips: adds a model's visual tokens, and one vector for the whole clip, to `video` records.

A Keye-VL gives its projected tokens, and their mean as the vector; a model of stage 0 gives the vector of its pooling head,
which was trained against texts, and no tokens, since it has no language model to read them. Vectors have length 1.

Each clip is encoded alone, on one core, several at the same time: the last bits of a matrix product depend on its number of
rows and on the number of cores, and a record must not depend on its neighbours or on the machine. A clip alone has patches
enough to keep a GPU busy. Legend: P patches, M visual tokens, D width.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf

from kvtools.artifact import blob
from kvtools.artifact.casts import to_numpy
from kvtools.artifact.digest import Digest
from kvtools.artifact.files import Spool
from kvtools.artifact.zstd_frame import MAX_RAW_BYTES
from kvtools.errors import Corrupt, raising
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.data.processor import require_patch_size
from kvtools.keye.model.config import MERGE
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.train.loop import DTYPES
from kvtools.video.patch import PIXELS_A_TOKEN
from kvtools.video.pool import Outcome

_OTHER_BYTES = 1 << 20  # of a record: JSON, times, and the vector


class VideoEmbedder:
    """The visual part of a model. `digest` is of its weights; `pooling`, mean or head, says where the vector comes from."""

    def __init__(self, model: Keye | Siglip, history: list[dict[str, Any]], device: str) -> None:
        """Raises ValueError for a model whose patches are not of the size that videos are cut into."""
        self.history, self._device, self._model = history, device, model
        parts: dict[str, nn.Module]
        if isinstance(model, Keye):
            vision, self.pooling, self._token_width = model.config.vision, "mean", model.config.language.width
            parts = {"visual": model.visual, "mlp_AR": model.mlp_AR}
            del model.model  # the decoder is not used
        else:
            vision, self.pooling, self._token_width = model.vision_model.config, "head", 0
            parts = {"vision_model": model.vision_model}
        require_patch_size(vision)
        self._patch_bytes = 4 * (vision.hidden + 10 * vision.width)  # of a layer, in float32: a rough upper bound
        weights = {f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()}
        self.digest = str(Digest.of_bag({name: to_numpy(x) for name, x in weights.items()}))
        for module in parts.values():
            module.to(device)

    @classmethod
    def open(cls, src: str, *, device: str, dtype: str) -> Self:
        """The embedder of a `model` bag or a Hugging Face directory. Raises Missing and Corrupt as checkpoint.load."""
        model, weights = checkpoint.load(src, dtype=DTYPES[dtype])
        with raising(Corrupt, src, "Give another model."):
            return cls(model, weights.history, device)

    @property
    def max_tokens(self) -> int:
        """How many tokens a clip may have, so that its record is not larger than records may be."""
        return (MAX_RAW_BYTES - _OTHER_BYTES) // (3 * PIXELS_A_TOKEN + 2 * self._token_width)

    @torch.inference_mode()
    def embed(self, pixels_P3HW: np.ndarray, grid: np.ndarray) -> dict[str, np.ndarray]:
        """`embedding` float32 (D,) of length 1 and, of a Keye-VL, `tokens` bfloat16 (M, D), of one clip.

        pixels_P3HW: uint8 patches in raster order; grid: frames, rows, columns. Raises ValueError where it is not finite.
        """
        pixels, grids = torch.tensor(pixels_P3HW, device=self._device), [tuple(grid.tolist())]
        encoded = self._model.encode_images(pixels, grids)
        tensors = {}
        if isinstance(self._model, Keye):
            tensors["tokens"] = to_numpy(encoded.bfloat16())
            pooled_D = nf.normalize(encoded.float().mean(0), dim=0)
        else:
            pooled_D = encoded[0]
        if not bool(pooled_D.isfinite().all()):
            raise ValueError("the encoder gives numbers that are not finite")
        return {**tensors, "embedding": to_numpy(pooled_D)}

    def finish(self, max_tokens: int, stop: Callable[[], bool]) -> Callable[[Iterator[Outcome]], Iterator[Outcome]]:
        """Embeds the outcomes of decoding, clips of at most max_tokens tokens, in order: `video` records get the tensors of
        `embed`, and in their JSON `encoder` {digest, pooling}. Once `stop` is true, no further clip is embedded."""
        n_parallel = 1
        if self._device == "cpu":
            clip_bytes = max_tokens * MERGE**2 * self._patch_bytes
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            n_parallel = max(1, min(len(os.sched_getaffinity(0)), free // clip_bytes))
        return lambda outcomes: _in_order(outcomes, lambda outcome: self._finished(outcome, stop), n_parallel)

    def _finished(self, outcome: Outcome, stop: Callable[[], bool]) -> Outcome:
        if outcome.record is None:
            return outcome
        if stop():
            outcome.record.close()
            return Outcome(outcome.key)
        tensors, fields = outcome.decoded()
        try:
            tensors |= self.embed(tensors["pixels"], tensors["grid"])
        except ValueError as fault:
            return Outcome(outcome.key, None, str(fault), "model")
        record = Spool()
        for piece in blob.encode(tensors, {**fields, "encoder": {"digest": self.digest, "pooling": self.pooling}}):
            record.append(piece)
        return Outcome(outcome.key, record)


def _in_order(outcomes: Iterator[Outcome], finish: Callable[[Outcome], Outcome], n_parallel: int) -> Iterator[Outcome]:
    """Each outcome finished, in order, n_parallel at the same time, and one more waiting."""
    pool = ThreadPoolExecutor(n_parallel, initializer=lambda: torch.set_num_threads(1))  # it is set for each thread
    waiting: deque[Future[Outcome]] = deque()
    try:
        for outcome in outcomes:
            waiting.append(pool.submit(finish, outcome))
            if len(waiting) > n_parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
