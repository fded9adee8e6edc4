"""Conversations with pictures and videos as Keye-VL's inputs, for transformers; written by kvtools beside a model.

Pictures (files, PIL, arrays, base64) and lists of frames need pillow and numpy alone; video files are decoded by kvtools, where
it is installed, so that frames and their times are those that the model was trained with. Tested with transformers 5.23.

Legend: T frames, H and W pixels, P patches in raster order.
"""

import base64
import io
import math

import numpy as np
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import load_image

_TOKEN = 28 * 28  # pixels
_OF_VIDEO = ("fps", "frames", "seconds")  # which frames of a video file are shown


def smart_resize(height, width, min_pixels, max_pixels, factor=28):
    """(height, width) in multiples of factor, near the given shape, within the limits: keye-vl-utils' rule."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"the picture is {width}x{height}, and one side may be at most 200 times the other")
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return h, w


def as_picture(source):
    """A picture of any form as an upright PIL image in RGB, transparency on white. Arrays: (H, W, 3) or (3, H, W), uint8."""
    if isinstance(source, str):
        if source.startswith(("http://", "https://")):
            source = load_image(source)
        elif source.startswith("data:"):
            source = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        else:
            source = Image.open(source.removeprefix("file://"))
    if not isinstance(source, Image.Image):
        array = np.asarray(source)
        if array.ndim == 3 and array.shape[0] == 3 != array.shape[2]:
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8:
            raise ValueError(f"the picture is {array.dtype}, and uint8 is needed")
        source = Image.fromarray(array)
    image = ImageOps.exif_transpose(source)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image.convert("RGB")


class KeyeImageProcessor(ImageProcessingMixin):
    """Pictures and frames as patches from -1 to 1.

    min_pixels, max_pixels: of a picture. frame_tokens: fewest and most visual tokens of a frame; max_video_tokens: most of a
    video; fps, max_frames: how video files are sampled.
    """

    model_input_names = ["pixel_values", "image_grid_thw"]

    def __init__(
        self, min_pixels=4 * _TOKEN, max_pixels=16_384 * _TOKEN, patch_size=14, merge_size=2, temporal_patch_size=1,
        image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), frame_tokens=(128, 768), max_video_tokens=24_576, fps=2.0,
        max_frames=768, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.patch_size, self.merge_size, self.temporal_patch_size = patch_size, merge_size, temporal_patch_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.frame_tokens, self.max_video_tokens = list(frame_tokens), max_video_tokens
        self.fps, self.max_frames = fps, max_frames

    def __call__(self, images, return_tensors=None, **kwargs):
        """The patches of some pictures, one after another, and the grid of each."""
        return self.preprocess(images, return_tensors=return_tensors, **kwargs)

    def preprocess(self, images, return_tensors=None, min_pixels=None, max_pixels=None, **_):
        """As __call__; min_pixels and max_pixels in place of its own."""
        patches, grids = [], []
        for source in images if isinstance(images, list | tuple) else [images]:
            picture = as_picture(source)
            limits = min_pixels or self.min_pixels, max_pixels or self.max_pixels
            height, width = smart_resize(picture.height, picture.width, *limits)
            patches.append(self.cut([picture], height, width))
            grids.append([1, height // self.patch_size, width // self.patch_size])
        data = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids)}
        return BatchFeature(data, tensor_type=return_tensors)

    def cut(self, pictures, height, width):
        """Patches of pictures resized to height and width: float32 (P, 3, patch, patch)."""
        side = self.patch_size
        sized = [p if p.size == (width, height) else p.resize((width, height), Image.Resampling.BICUBIC) for p in pictures]
        frames = np.stack([np.asarray(picture) for picture in sized])
        grid = frames.reshape(len(frames), height // side, side, width // side, side, 3).transpose(0, 1, 3, 5, 2, 4)
        return self.scaled(grid.reshape(-1, 3, side, side))

    def scaled(self, pixels):
        """uint8 to float32, from -1 to 1. pixels: (P, 3, patch, patch)."""
        mean, std = (np.array(x, np.float32)[:, None, None] for x in (self.image_mean, self.image_std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def frames(self, sources, fps):
        """The patches of a list of frames, its grid, and the second of each frame, for so many frames a second."""
        pictures = [as_picture(source) for source in sources]
        kept, height, width = self.fit(len(pictures), pictures[0].height, pictures[0].width)
        chosen = np.linspace(0, len(pictures) - 1, kept).round().astype(int)
        grid = [kept, height // self.patch_size, width // self.patch_size]
        return self.cut([pictures[i] for i in chosen], height, width), grid, chosen / fps

    def fit(self, n_frames, height, width):
        """(frames, height, width) of a video within its tokens: the resolution is reduced first, then the number of frames."""
        low, high = self.frame_tokens
        n_frames = min(n_frames, max(1, self.max_video_tokens // low))
        most = min(high, self.max_video_tokens // n_frames)
        for lowest in (low, 1):
            h, w = smart_resize(height, width, min(lowest, most) * _TOKEN, most * _TOKEN)
            if h * w <= most * _TOKEN:
                break
        else:
            scale = math.sqrt(most * _TOKEN / (height * width))
            h, w = (max(28, math.floor(side * scale / 28) * 28) for side in (height, width))
        return min(n_frames, self.max_video_tokens // (h * w // _TOKEN)), h, w

    def file(self, item, fps):
        """The same of a video file or a folder of frames. item: its path, or a dictionary with `video`, and fps, frames or
        seconds."""
        try:
            from kvtools.keye.data.media import Media
            from kvtools.video.patch import Budget
        except ImportError:
            raise ImportError("video files are decoded by kvtools. Install it, or give a list of frames with fps.") from None
        budget = Budget(self.max_video_tokens, *self.frame_tokens)
        item = item if isinstance(item, dict) else {"video": item}
        with Media(budget=budget, fps=fps or self.fps) as media:
            visual = media.fetch({**item, "type": "video", "video": item["video"].removeprefix("file://")})
        return self.scaled(visual.pixels_P3HW), visual.grid.tolist(), visual.seconds


class KeyeProcessor(ProcessorMixin):
    """A tokenizer with its chat template, and the image processor."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = map(tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token))

    def __call__(
        self, images=None, text=None, videos=None, fps=None, num_frames=None, return_tensors=None, min_pixels=None,
        max_pixels=None, **kwargs,
    ):  # fmt: skip
        """Token ids with a pad for each visual token, and the patches of pictures and videos.

        text: with one `<|image_pad|>` or `<|video_pad|>` for each picture or video. videos: paths, or lists or arrays of
        frames. fps: of lists of frames, one number or one a video, by default 2; of files, how many frames are taken a second.
        """
        kwargs.pop("do_sample_frames", None)  # lists of frames are taken as they are
        texts = [text] if isinstance(text, str) else list(text)
        visual, counts = {}, {self.image_token: [], self.video_token: []}
        if (pictures := _flat(images)) != []:
            visual = dict(self.image_processor(pictures, min_pixels=min_pixels, max_pixels=max_pixels))
            counts[self.image_token] = [int(np.prod(grid)) for grid in visual["image_grid_thw"]]
        if (clips := _flat(videos, is_video=True)) != []:
            visual |= self._videos(clips, fps, num_frames)
            counts[self.video_token] = [int(np.prod(grid)) for grid in visual["video_grid_thw"]]
        for token, patches in counts.items():
            n_marks = sum(each.count(token) for each in texts)
            if n_marks != len(patches):
                raise ValueError(f"text has {n_marks} times {token}, and {len(patches)} are given")
            n_tokens = iter([n // self.image_processor.merge_size**2 for n in patches])
            texts = [_expanded(each, token, n_tokens) for each in texts]
        kwargs.setdefault("padding", len(texts) > 1)
        return BatchFeature({**self.tokenizer(texts, **kwargs), **visual}, tensor_type=return_tensors)

    @property
    def model_input_names(self):
        """What the model takes."""
        names = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "video_seconds")
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, *names]

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As transformers', and with the parts of OpenAI's messages, such as image_url."""
        is_batched = bool(conversation) and not isinstance(conversation[0], dict)
        chats = [_normal(chat) for chat in (conversation if is_batched else [conversation])]
        return super().apply_chat_template(chats if is_batched else chats[0], *args, **kwargs)

    def _videos(self, clips, fps, num_frames):
        rates = list(fps) if isinstance(fps, list | tuple) else [fps] * len(clips)
        read = []
        for clip, rate in zip(clips, rates, strict=True):
            if isinstance(clip, str | dict):
                item = {"video": clip} if isinstance(clip, str) else clip
                more = {} if num_frames is None else {"frames": num_frames}
                read.append(self.image_processor.file({**more, **item}, rate))
            else:
                read.append(self.image_processor.frames(list(clip), rate or self.image_processor.fps))
        patches, grids, seconds = zip(*read, strict=True)
        steps = [float(s[-1] - s[0]) / max(1, len(s) - 1) if len(s) > 1 else 1.0 for s in seconds]
        return {
            "pixel_values_videos": np.concatenate(patches), "video_grid_thw": np.array(grids),
            "second_per_grid_ts": np.array(steps), "video_seconds": np.concatenate(seconds),
        }  # fmt: skip


def _flat(items, *, is_video=False):
    """Nested lists of items, a list a conversation, as one list. A video may itself be a list of frames."""
    if items is None:
        return []
    if not isinstance(items, list | tuple):
        return [items]
    if is_video:
        is_nested = all(isinstance(item, list | tuple) for item in items)
        is_one = bool(items) and all(isinstance(item, Image.Image) or getattr(item, "ndim", 0) == 3 for item in items)
        if is_one:
            return [items]
        deep = is_nested and any(not isinstance(x, Image.Image) and getattr(x, "ndim", 0) != 3 for item in items for x in item)
        return [clip for item in items for clip in item] if deep else list(items)
    return [picture for item in items for picture in (item if isinstance(item, list | tuple) else [item])]


def _expanded(text, token, counts):
    first, *rest = text.split(token)
    return first + "".join(token * next(counts) + part for part in rest)


def _normal(chat):
    return [
        {**message, "content": [_part(part) for part in message["content"]]}
        if isinstance(message.get("content"), list | tuple)
        else dict(message)
        for message in chat
    ]


def _part(part):
    """A part of a message with its type as transformers has it: image_url, input_image and the like become image."""
    kind = str(part.get("type", "")).removesuffix("_url").removeprefix("input_")
    if kind not in ("image", "video"):
        return part
    source = next((part[name] for name in (kind, f"{kind}_url", "url", "path") if part.get(name) is not None), None)
    source = source.get("url") if isinstance(source, dict) and "url" in source else source
    chosen = {name: part[name] for name in _OF_VIDEO if part.get(name) is not None}
    if kind == "video" and chosen and isinstance(source, str):
        source = {"video": source, **chosen}
    return {"type": kind, kind: source} if source is not None else {"type": kind}
