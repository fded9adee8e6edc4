"""Everything that shapes a `video` record, and nothing else: what a stream's head keeps, and a worker is told."""

from dataclasses import dataclass, field
from typing import Any

from kvtools.video.patch import Budget
from kvtools.video.sample import Want


@dataclass(frozen=True)
class Recipe:
    """Which frames, how large, and how decoded; see the options of `tokenize-video` with the same names."""

    want: Want = field(default_factory=Want)
    budget: Budget = field(default_factory=Budget)
    pick: str = "any"
    decoder: str = "auto"

    def to_json(self) -> dict[str, Any]:
        """Option names to values, options not given left out: what `--config` reads and `info --config` prints."""
        words = {
            "fps": self.want.fps,
            "frames": self.want.n_frames,
            "min_frames": self.want.min_frames,
            "max_frames": self.want.max_frames,
            "start": self.want.start_s,
            "end": self.want.end_s,
            "max_tokens": self.budget.max_tokens,
            "frame_tokens": f"{self.budget.min_frame_tokens}:{self.budget.max_frame_tokens}",
            "pick": self.pick,
            "decoder": self.decoder,
        }
        return {name: value for name, value in words.items() if value is not None}

    @staticmethod
    def from_json(words: dict[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote."""
        low, high = (int(n) for n in words["frame_tokens"].split(":"))
        want = Want(
            words["fps"], words.get("frames"), words["min_frames"], words["max_frames"], words.get("start"), words.get("end")
        )
        return Recipe(want, Budget(words["max_tokens"], low, high), words["pick"], words["decoder"])
