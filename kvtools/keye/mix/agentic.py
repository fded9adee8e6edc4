"""Code in agentic samples, run again: a sample is kept where its code runs and gives the picture or the text that it states.

A picture is the same where its size is the same and the mean absolute difference is at most 8 of 255: stored pictures may have
been through a lossy format. Text is the same where its words are. Code finds the question's pictures under their names, and
the first as `image_path`.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from kvtools.keye.sandbox.session import Sandbox

_LIKE = 8.0  # of 255


class CodeError(ValueError):
    """Code that does not do what its sample says: a reason of a fixed set, and what happened."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def check_code(sandbox: Sandbox, code: Sequence[str], stated: Sequence[str | bytes], pictures: Mapping[str, bytes]) -> None:
    """Run the steps of a sample in order. Raises CodeError where a step fails or gives something else than is stated.

    stated: of each step the text, or the file of the picture. pictures: name -> file of what the question shows.
    """
    sandbox.open(pictures, image_path=next(iter(pictures), ""))
    for step, result in zip(code, stated, strict=True):
        output = sandbox.run(step)
        if output.reason is not None:
            raise CodeError("the code fails", output.reason)
        if isinstance(result, bytes):
            if not output.pictures:
                raise CodeError("the code saves no picture")
            _require_like(_last_printed(output.pictures, output.text), result)
        elif output.text.split() != result.split():
            raise CodeError("the code prints another text", f"it prints {output.text.strip()[:80]!r}")


def _last_printed(pictures: Mapping[str, np.ndarray], text: str) -> np.ndarray:
    """The picture whose name is printed last, else the last that was saved."""
    printed = [name for name in pictures if name.rpartition("/")[2] in text]
    return pictures[max(printed, key=lambda name: text.rfind(name.rpartition("/")[2])) if printed else list(pictures)[-1]]


def _require_like(made_HWC: np.ndarray, stated: bytes) -> None:
    try:
        with Image.open(io.BytesIO(stated)) as picture:
            stated_HWC = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CodeError("the stated picture cannot be read", str(error)) from None
    if made_HWC.shape != stated_HWC.shape:
        sizes = ["x".join(map(str, array.shape[1::-1])) for array in (made_HWC, stated_HWC)]
        raise CodeError("the code makes a picture of another size", f"{sizes[0]}, and {sizes[1]} is stated")
    difference = float(np.abs(made_HWC.astype(np.int16) - stated_HWC).mean())
    if difference > _LIKE:
        raise CodeError("the code makes another picture", f"its mean difference is {difference:.0f} of 255")
