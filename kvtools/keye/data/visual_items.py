"""Pictures and videos that a conversation names, as items of the normal form: each resolved, or refused by name.

A picture or video is a part of a message, or an entry of a list beside the messages or beside one message, for which marks
such as `<image>` stand in the texts. What else names one is refused, since a model would learn to answer without seeing it:
marks that stand for nothing, fields that are not read, null, and words about a picture or video that are not understood.
Not here: messages (conversations.py), and what the words mean (media.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from kvtools.video.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES

Part = dict[str, Any]
Sources = dict[str, list[Any]]  # of each kind, in the order of its marks; a kind that lists none is absent

NO_SOUND = "it has sound, and only pictures and videos are read"
_OF_BOTH = ("min_pixels", "max_pixels", "resized_height", "resized_width", "seconds", "shown", "size")
_WORDS = {
    "image": ("second", *_OF_BOTH),
    "video": ("fps", "frames", "min_frames", "max_frames", "video_start", "video_end", "total_pixels", *_OF_BOTH),
}
_SYNONYMS = {"nframes": "frames", "num_frames": "frames", "sample_fps": "fps"}
_SHARED = ("fps", "frames", "seconds", "min_frames", "max_frames", "video_start", "video_end", *_SYNONYMS)
# of the file, not of how it is shown; `index` counts the marks of a list, as trl has it
_DESCRIPTIONS = ("type", "index", "id", "uuid", "name", "mime_type", "format", "raw_fps")
_MARK = re.compile(r"(<(?:image|video|audio)>|<\|vision_start\|><\|(?:image|video)_pad\|><\|vision_end\|>)")
# the marks of known templates: LLaVA, Qwen-VL, InternVL, Llama, Phi, Gemma, DeepSeek-VL, Pixtral, Idefics, GLM, MiniCPM, Kimi
_ANY_MARK = re.compile(
    r"<(?:image|video|audio)>(?:\./</(?:image|video|audio)>)?|<(?:image|img|video)[ _-]?\d+>|<(img|vid)>.*?</\1>|<imagehere>"
    r"|<\|(?:vision_(?:start|end|pad)|(?:image|video|audio|img)(?:_pad|_\d+)?|(?:begin|end)_of_(?:image|video)"
    r"|media_(?:start|begin|pad|end|content))\|>|<img_context>|<(?:start|end)_of_(?:image|video)>|<image_soft_token>"
    r"|<image_placeholder>|<fake_token_around_image>|<im_patch>|<__(?:media|image|video)__>|\[img\]",
    re.IGNORECASE | re.DOTALL,
)
_NAMES_A_PATH = re.compile(r"(?:path|file|name|url|uri|src|bytes|^img|^pictures?|^photos?|^media|^frames)s?$", re.IGNORECASE)
_NAMES_A_MEDIUM = re.compile(r"image|img|pictur|photo|video|frame|media|visual|audio", re.IGNORECASE)
_SUFFIXES = tuple(
    suffix for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".tif", ".tiff") if suffix not in (".ts", ".mts")
)  # .ts is a program in TypeScript too
_MAX_PATH = 1024  # letters; longer values are texts
_NO_MEDIA = ("id", "mode", "source", "clips")  # fields that may hold the name of a file and show nothing


def pop_sources(rest: dict[str, Any]) -> Sources:
    """Take the lists of sources out of a document or a message. Raises ValueError for null and the like."""
    found: Sources = {}
    for kind in ("image", "video", "audio"):
        for name in (f"{kind}s", kind):
            if name not in rest:
                continue
            value = rest.pop(name)
            if not isinstance(value, str | dict | list):
                given = "null" if value is None else repr(value)
                raise ValueError(f"{name} is {given}, and must be a path or a key, or a list of them")
            found.setdefault(kind, []).extend([value] if isinstance(value, str | dict) else value)
    if "video" in found:
        found["video"] = _with_shared_words(found["video"], rest)
    return found


def item(kind: str, described: Mapping[str, Any]) -> Part:
    """An item of the normal form. kind: "image" or "video". described: a part of the content, or an entry of a list.

    Raises ValueError where it has no source, or words that are not understood.
    """
    words = {name: value for name, value in described.items() if value is not None}
    source = _pop_source(kind, words)
    for name in _DESCRIPTIONS:
        words.pop(name, None)
    if words.get("detail") in ("auto", "high"):
        del words["detail"]
    words = {_SYNONYMS.get(name, name): value for name, value in words.items()}
    if unknown := [name for name in words if name not in _WORDS[kind]]:
        raise ValueError(f"the {kind} {str(source)[:80]!r} has {', '.join(unknown)}, which is not understood")
    return {"type": kind, kind: source, **words}


def listed_item(kind: str, source: Any) -> Part:
    """The item of an entry of a list: a source, or an object with one."""
    return item(kind, source if isinstance(source, dict) else {kind: _required(kind, source)})


def split_at_marks(text: str, sources: Sources) -> Iterator[Part]:
    """The text and the items that its marks stand for, in order; a mark of a kind that lists no sources is text.

    Raises ValueError for more marks than sources.
    """
    for piece in _MARK.split(text):
        kind = kind_of_mark(piece)
        if kind is not None and kind in sources:
            if not sources[kind]:
                raise ValueError(f"there are more {piece} marks than {kind}s")
            if kind == "audio":
                raise ValueError(NO_SOUND)
            yield listed_item(kind, sources[kind].pop(0))
        elif piece:
            yield {"type": "text", "text": piece}


def is_mark(part: Mapping[str, Any]) -> bool:
    """Whether a part of the content has no source of its own and stands for the next one of a list, as trl's do."""
    return all(value is None or name in _DESCRIPTIONS for name, value in part.items())


def kind_of_mark(text: str) -> str | None:
    """What a text that is no more than a mark stands for; None for other texts."""
    return next(kind for kind in ("image", "video", "audio") if kind in text) if _MARK.fullmatch(text) else None


def marked_kinds(texts: Sequence[str]) -> set[str]:
    """The kinds for which there are marks in these texts."""
    return {kind for text in texts for piece in _MARK.split(text) if (kind := kind_of_mark(piece)) is not None}


def place_unmarked(content: list[Part], messages: Sequence[Mapping[str, Any]], sources: Sources) -> None:
    """Put sources for which there is no mark at the begin of a content, if no message shows anything yet."""
    if sources.get("audio"):
        raise ValueError(NO_SOUND)
    items = [listed_item(kind, source) for kind in ("image", "video") for source in sources.get(kind, ())]
    if items and any(part["type"] != "text" for message in messages for part in message["content"]):
        raise ValueError(f"there are {len(items)} pictures or videos more than marks for them")
    content[:0] = items


def refuse_unresolved(messages: Sequence[Mapping[str, Any]], rest: Mapping[str, Any]) -> None:
    """Raise ValueError for a mark in a question or system text that is left, and for a field that names an unread medium.

    rest: the fields of the conversation, and of its messages, that were not read.
    """
    for message in messages:
        for part in message["content"] if message["role"] in ("user", "system") else ():
            if part["type"] == "text" and (mark := _ANY_MARK.search(part["text"])) is not None:
                raise ValueError(f"{mark[0][:80]} stands for no picture or video; list those under images and videos")
    shown = {_file_name(part[part["type"]]) for message in messages for part in message["content"] if part["type"] != "text"}
    for name, value in rest.items():
        if name not in _NO_MEDIA and any(_file_name(each) not in shown for each in _media_of(name, value, is_alone=not shown)):
            raise ValueError(f"{name} names a picture, video or sound and is not read; name it image, images, video or videos")


def _pop_source(kind: str, words: dict[str, Any]) -> Any:
    """Take the source out of the words; objects that hold it, as OpenAI's have `url` and data sets `path`, give theirs."""
    found: list[Any] = []
    for name in (kind, f"{kind}_url", f"input_{kind}", "value", "url", "path", "file"):
        value = words.pop(name, None)
        if isinstance(value, dict):
            nested = {inner: each for inner, each in value.items() if each is not None}
            value = _pop_source(kind, nested)
            words.update(nested)
        if value is not None and (source := _required(kind, value)) not in found:
            found.append(source)
    if not found and kind == "video" and isinstance(words.get("frames"), list):
        found.append(_required(kind, words.pop("frames")))
    if not found:
        raise ValueError(f"the {kind} has no source")
    if len(found) > 1:
        raise ValueError(f"the {kind} has {len(found)} sources, {found[0]!r} and {found[1]!r}, and needs one")
    return found[0]


def _required(kind: str, source: Any) -> Any:
    """A path or key, or the frames or cuts of a video. Raises ValueError for anything else."""
    if isinstance(source, str) and source:
        return unquote(source.removeprefix("file://")) if source.startswith("file://") else source
    if kind == "video" and isinstance(source, list):
        if not source:
            raise ValueError("the video has no source")
        return [_frame_or_cut(each) for each in source]
    raise ValueError(f"{kind} is {'null' if source is None else repr(source)}, and must be a path or a key")


def _frame_or_cut(source: Any) -> Any:
    """A frame as its path, or a cut of a video as {"video", …}, as in questions that kvtools generates."""
    if isinstance(source, dict) and "video" in source:
        cut = item("video", source)
        return {name: value for name, value in cut.items() if name != "type"}
    return item("image", source)["image"] if isinstance(source, dict) else _required("image", source)


def _with_shared_words(videos: list[Any], rest: dict[str, Any]) -> list[Any]:
    """The videos of a list with the words about all of them that stand beside it, such as fps: one value, or one for each."""
    for name in _SHARED:
        if not videos or name not in rest:
            continue
        value = rest.pop(name)
        is_one = not isinstance(value, list) or (name == "seconds" and not any(isinstance(x, list) for x in value))
        values = [value] * len(videos) if is_one else value
        if len(values) != len(videos):
            raise ValueError(f"{name} has {len(values)} values for {len(videos)} videos")
        videos = [
            {name: each, **(video if isinstance(video, dict) else {"video": video})}
            for video, each in zip(videos, values, strict=True)
        ]
    return videos


def _media_of(name: str, value: Any, *, is_alone: bool) -> Iterator[str]:
    """What a field seems to name. is_alone: whether nothing else is shown, so that the name of a file says enough."""
    if isinstance(value, list):
        for each in value:
            yield from _media_of(name, each, is_alone=is_alone)
    elif isinstance(value, dict):
        for inner, each in value.items():
            named = f"{name}_{inner}" if _NAMES_A_MEDIUM.search(name) else inner
            yield from _media_of(named, each, is_alone=is_alone)
    elif isinstance(value, str) and value and len(value.partition("\n")[0]) == len(value):
        is_written_out = value.startswith(("data:image", "data:video"))
        is_file = len(value) < _MAX_PATH and value.lower().endswith(_SUFFIXES)
        is_named = _NAMES_A_MEDIUM.search(name) is not None
        if is_written_out or (is_file and (is_alone or is_named)) or (is_named and _NAMES_A_PATH.search(name)):
            yield value


def _file_name(source: Any) -> str:
    return source.rsplit("/", 1)[-1] if isinstance(source, str) else ""
