"""Code in agentic samples, run again: a sample is kept where its code runs and gives the picture or the text that it states.

A picture is the same where its size is the same and the mean absolute difference is at most 8 of 255: stored pictures may have
been through a lossy format. Text is the same where its words are. Code finds the question's pictures under their names, and the
first as `image_path`; it also finds them under the paths that the question's text names, one for each picture, in order.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from kvtools.keye.sandbox.session import Failure, Sandbox

_LIKE = 8.0  # of 255
_PATH = re.compile(r"""[^\s"'`()<>]+\.(?:png|jpe?g|webp|bmp|gif|tiff?)\b""", re.IGNORECASE)

REASONS: dict[Failure, str] = {
    "refused": "the code reaches for what the sandbox forbids",
    "not_python": "the code is not Python",
    "library": "the code needs a library that the sandbox lacks",
    "error": "the code raises an error",
    "time": "the code takes too long",
    "memory": "the code needs too much memory",
    "output": "the code gives too much output",
    "ended": "the code ends its process",
}


class CodeError(ValueError):
    """Code that does not do what its sample says: a reason of a fixed set, and what happened."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def with_paths_of(question: str, pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The pictures under their names and, where the question's text names as many paths of pictures, under those too."""
    paths = list(dict.fromkeys(_PATH.findall(question)))
    aliases = zip(paths, pictures.values(), strict=True) if len(paths) == len(pictures) else ()
    return {**pictures, **dict(aliases)}


def check_code(sandbox: Sandbox, code: Sequence[str], stated: Sequence[str | bytes], pictures: Mapping[str, bytes]) -> None:
    """Run the steps of a sample in order. Raises CodeError where a step fails or gives something else than is stated.

    stated: of each step the text, or the file of the picture. pictures: name -> file of what the question shows.
    """
    sandbox.open(pictures, image_path=next(iter(pictures), ""))
    for step, result in zip(code, stated, strict=True):
        output = sandbox.run(step)
        if output.failure is not None:
            raise CodeError(REASONS[output.failure], output.reason or "")
        if isinstance(result, bytes):
            made = [part for part in output.parts if isinstance(part, np.ndarray)]
            if not made:
                raise CodeError("the code saves no picture")
            _require_like(made[-1], result)
        elif output.text.split() != result.split():
            raise CodeError("the code prints another text", f"it prints {output.text.strip()[:80]!r}")


def _require_like(made_HWC: np.ndarray, stated: bytes) -> None:
    try:
        with Image.open(io.BytesIO(stated)) as picture:
            stated_HWC = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CodeError("the stated picture cannot be read", str(error)) from None
    if made_HWC.shape != stated_HWC.shape:
        sizes = ["x".join(map(str, array.shape[1::-1])) for array in (made_HWC, stated_HWC)]
        raise CodeError("the code makes a picture of another size", f"{sizes[0]}, and {sizes[1]} is stated")
    difference = float(np.abs(made_HWC.astype(np.int16) - stated_HWC).mean())
    if difference > _LIKE:
        raise CodeError("the code makes another picture", f"its mean difference is {difference:.0f} of 255")
