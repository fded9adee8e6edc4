"""Everything that determines a `video` record: stored in the head of the stream, and sent to the workers."""

from dataclasses import dataclass, field
from typing import Any

from kvtools.video.patch import Budget
from kvtools.video.sample import FrameSampling


@dataclass(frozen=True)
class VideoRecipe:
    """Which frames, their size, and the decoder; see the options of `tokenize-video` with the same names."""

    sampling: FrameSampling = field(default_factory=FrameSampling)
    budget: Budget = field(default_factory=Budget)
    pick: str = "any"
    decoder: str = "auto"
    mixed: str = "refuse"
    salvage: bool = False

    def to_json(self) -> dict[str, Any]:
        """The options that are set, by name, as `--config` reads them and `info --config` prints them."""
        fields = {
            "fps": self.sampling.fps,
            "frames": self.sampling.n_frames,
            "min_frames": self.sampling.min_frames,
            "max_frames": self.sampling.max_frames,
            "start": self.sampling.start_s,
            "end": self.sampling.end_s,
            "max_tokens": self.budget.max_tokens,
            "frame_tokens": f"{self.budget.min_frame_tokens}:{self.budget.max_frame_tokens}",
            "pick": self.pick,
            "decoder": self.decoder,
            "mixed": None if self.mixed == "refuse" else self.mixed,
            "salvage": self.salvage or None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "VideoRecipe":
        """The recipe that `to_json` wrote."""
        low, high = (int(n) for n in fields["frame_tokens"].split(":"))
        sampling = FrameSampling(
            fields["fps"],
            fields.get("frames"),
            fields["min_frames"],
            fields["max_frames"],
            fields.get("start"),
            fields.get("end"),
        )
        return VideoRecipe(
            sampling,
            Budget(fields["max_tokens"], low, high),
            fields["pick"],
            fields["decoder"],
            fields.get("mixed", "refuse"),
            fields.get("salvage", False),
        )
