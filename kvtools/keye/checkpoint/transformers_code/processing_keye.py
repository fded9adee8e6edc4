"""Conversations with pictures and videos as Keye-VL's inputs, for transformers; written by kvtools beside a model.

Files are read by kvtools where it is installed, so that pictures, frames and their times are those that `kvtools chat` shows
the model. Without it pictures (files, PIL, arrays, base64) and lists of frames are read by pillow, and video files are refused.
Tested with transformers 5.23.

Legend: T frames, H and W pixels, P patches in raster order.
"""

import base64
import io
import math
import re
from functools import partial

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
    video; max_prompt_tokens: of a whole prompt, in which pictures and videos give way; fps: how video files are sampled.
    """

    model_input_names = ["pixel_values", "image_grid_thw"]

    def __init__(
        self, min_pixels=4 * _TOKEN, max_pixels=16_384 * _TOKEN, patch_size=14, merge_size=2, temporal_patch_size=1,
        image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), frame_tokens=(128, 768), max_video_tokens=24_576,
        max_prompt_tokens=None, fps=2.0, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.patch_size, self.merge_size, self.temporal_patch_size = patch_size, merge_size, temporal_patch_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.frame_tokens, self.max_video_tokens = list(frame_tokens), max_video_tokens
        self.max_prompt_tokens, self.fps = max_prompt_tokens, fps

    def __call__(self, images, return_tensors=None, **kwargs):
        """The patches of some pictures, one after another, and the grid of each."""
        return self.preprocess(images, return_tensors=return_tensors, **kwargs)

    def preprocess(self, images, return_tensors=None, min_pixels=None, max_pixels=None, **_):
        """As __call__; min_pixels and max_pixels in place of its own."""
        sources = images if isinstance(images, list | tuple) else [images]
        read = [self.picture(source, min_pixels=min_pixels, max_pixels=max_pixels) for source in sources]
        data = {
            "pixel_values": np.concatenate([x for x, _, _ in read]),
            "image_grid_thw": np.array([grid for _, grid, _ in read]),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def picture(self, source, *, most=None, min_pixels=None, max_pixels=None):
        """A picture's patches (P, 3, patch, patch), its grid, and its second, 0. most: visual tokens, below its usual limit."""
        low, high = min_pixels or self.min_pixels, max_pixels or self.max_pixels
        high = high if most is None else min(high, most * _TOKEN)
        is_web = isinstance(source, str) and source.startswith(("http://", "https://"))
        if isinstance(source, str) and not is_web and (visual := self.file({"type": "image", "image": source}, low, high)):
            return visual
        picture = as_picture(source)
        height, width = smart_resize(picture.height, picture.width, min(low, high), high)
        return self.cut([picture], height, width), self.grid(1, height, width), np.zeros(1)

    def video(self, clip, fps, *, most=None):
        """A video's patches, its grid, and the second of each frame. clip: a path, a dictionary with `video` and fps, frames or
        seconds, or a list or array of frames."""
        if isinstance(clip, str | dict):
            item = {"video": clip} if isinstance(clip, str) else clip
            visual = self.file({**item, "type": "video"}, self.min_pixels, self.max_pixels, fps=fps, most=most)
            if visual is None:
                raise ImportError("video files are decoded by kvtools. Install it, or give a list of frames with fps.")
            return visual
        pictures = [as_picture(frame) for frame in clip]
        n_most = min(self.max_video_tokens, most or self.max_video_tokens)
        kept, height, width = self.fit(len(pictures), pictures[0].height, pictures[0].width, n_most)
        chosen = np.linspace(0, len(pictures) - 1, kept).round().astype(int)
        frames = self.cut([pictures[i] for i in chosen], height, width)
        return frames, self.grid(kept, height, width), chosen / (fps or self.fps)

    def file(self, item, low, high, *, fps=None, most=None):
        """What kvtools reads of a file, or of a picture in base64; None where kvtools is not installed. low, high: pixels of a
        picture."""
        try:
            from kvtools.keye.data.media import Media
            from kvtools.video.patch import Budget
        except ImportError:
            return None
        budget = Budget(self.max_video_tokens, *self.frame_tokens)
        tokens = max(1, min(low, high) // _TOKEN), max(1, high // _TOKEN)
        source = item[item["type"]]
        source = source.removeprefix("file://") if isinstance(source, str) else source
        with Media(budget=budget, image_tokens=tokens, fps=fps or self.fps) as media:
            visual = media.fetch({**item, item["type"]: source}, max_tokens=most)
        return self.scaled(visual.pixels_P3HW), visual.grid.tolist(), visual.seconds

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

    def grid(self, n_frames, height, width):
        """Frames, and rows and columns in patches."""
        return [n_frames, height // self.patch_size, width // self.patch_size]

    def fit(self, n_frames, height, width, n_most):
        """(frames, height, width) of a video within n_most tokens: resolution gives way first, then the number of frames."""
        low, high = self.frame_tokens
        n_frames = min(n_frames, max(1, n_most // low))
        most = min(high, n_most // n_frames)
        for lowest in (low, 1):
            h, w = smart_resize(height, width, min(lowest, most) * _TOKEN, most * _TOKEN)
            if h * w <= most * _TOKEN:
                break
        else:
            scale = math.sqrt(most * _TOKEN / (height * width))
            h, w = (max(28, math.floor(side * scale / 28) * 28) for side in (height, width))
        return min(n_frames, n_most // (h * w // _TOKEN)), h, w


class KeyeProcessor(ProcessorMixin):
    """A tokenizer with its chat template, and the image processor."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = map(tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token))
        self._mark = re.compile("|".join(map(re.escape, (self.image_token, self.video_token))))

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
        pictures, clips = _flat(images), _flat(videos, is_video=True)
        for token, items in ((self.image_token, pictures), (self.video_token, clips)):
            n_marks = sum(each.count(token) for each in texts)
            if n_marks != len(items):
                raise ValueError(f"text has {n_marks} times {token}, and {len(items)} are given")
        rates = list(fps) if isinstance(fps, list | tuple) else [fps] * len(clips)
        more = {} if num_frames is None else {"frames": num_frames}
        clips = [{**more, **({"video": clip} if isinstance(clip, str) else clip)} if isinstance(clip, str | dict) else clip
                 for clip in clips]  # fmt: skip
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        readers = {
            self.image_token: iter([partial(self.image_processor.picture, each, **limits) for each in pictures]),
            self.video_token: iter([partial(self.image_processor.video, *each) for each in zip(clips, rates, strict=True)]),
        }
        shown = {self.image_token: [], self.video_token: []}
        for number, each in enumerate(texts):
            marks = self._mark.findall(each)
            items = self._within_prompt(each, [next(readers[mark]) for mark in marks])
            for mark, item in zip(marks, items, strict=True):
                shown[mark].append(item)
            n_tokens = iter([self._n_tokens(item) for item in items])
            texts[number] = self._mark.sub(lambda mark, n_tokens=n_tokens: mark[0] * next(n_tokens), each)
        kwargs.setdefault("padding", len(texts) > 1)
        visual = self._tensors(shown[self.image_token], shown[self.video_token])
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

    def _n_tokens(self, item):
        return int(np.prod(item[1])) // self.image_processor.merge_size**2

    def _within_prompt(self, text, readers):
        """What a text shows. Where the prompt would be too long, each item gives way in proportion to what it has alone."""
        items, most = [read() for read in readers], self.image_processor.max_prompt_tokens
        counts = [self._n_tokens(item) for item in items]
        if not items or most is None:
            return items
        n_text = len(self.tokenizer(text)["input_ids"]) - len(items)
        if n_text + sum(counts) <= most:
            return items
        room = max(most - n_text, most // 4)
        shares = [max(1, min(n, room * n // sum(counts))) for n in counts]
        return [read(most=share) for read, share in zip(readers, shares, strict=True)]

    def _tensors(self, pictures, clips):
        names = ("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")
        data = {}
        for (patches, grids), items in zip(names, (pictures, clips), strict=True):
            if items:
                data |= {patches: np.concatenate([x for x, _, _ in items]), grids: np.array([grid for _, grid, _ in items])}
        if clips:
            seconds = [s for _, _, s in clips]
            steps = [float(s[-1] - s[0]) / (len(s) - 1) if len(s) > 1 else 1.0 for s in seconds]
            data |= {"second_per_grid_ts": np.array(steps), "video_seconds": np.concatenate(seconds)}
        return data


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
