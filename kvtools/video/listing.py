"""Lists of clips: a path a line, paths that end in NUL, or JSON Lines that say more about each clip."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvtools.artifact.files import open_source
from kvtools.artifact.json_text import read_json
from kvtools.errors import Missing, Usage
from kvtools.video.inputs import own

_JSON_SUFFIXES = (".jsonl", ".ndjson")


@dataclass
class Listed:
    """A clip as a list names it."""

    path: str
    key: str | None = None
    span: tuple[float | None, float | None] = (None, None)
    fields: dict[str, Any] = field(default_factory=dict)


def read_list(src: str, *, root: str | None, is_nul: bool, reject: Callable[[str, str], None]) -> list[Listed]:
    """The clips of a list, `-` for stdin. Names may hold any bytes but the end of a line, or NUL where is_nul.

    A list is of JSON Lines where its name says so, or its first line is an object with a path: {"path", "key", "start", "end"},
    of which all but the path may be absent; further fields are for the record. root: the folder that relative paths start from;
    by default the folder of a list of JSON Lines, the current one for others. reject: called with the place and the reason for
    each line that cannot be meant. Raises Missing for an empty list, and Usage for one of lines that holds NUL.
    """
    with open_source(src) as file:
        data = _utf8(file.read())
    name = "stdin" if src == "-" else src
    if not data.strip():
        raise Missing(f"{name}: the list is empty. Give one that names videos or folders.")
    if b"\0" in data and not is_nul:
        raise Usage(f"{name}: the list holds NUL bytes. Give it with --list0.")
    lines = data.split(b"\0") if is_nul else _lines(data)
    if not is_nul and (src.lower().endswith(_JSON_SUFFIXES) or _is_object(lines)):
        root = os.path.dirname(src) if root is None and src != "-" else root
        return _read_objects(lines, root or "", name, reject)
    return [Listed(os.path.join(root or "", os.fsdecode(line))) for line in lines if line.strip()]


def _utf8(data: bytes) -> bytes:
    """Without the byte-order mark; UTF-16, which some shells of Windows write, as UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
    return data.removeprefix(b"\xef\xbb\xbf")


def _lines(data: bytes) -> list[bytes]:
    # not str.splitlines: names may hold U+2028 and its like
    if b"\n" not in data:
        return data.split(b"\r")
    return [line.removesuffix(b"\r") for line in data.split(b"\n")]


def _is_object(lines: list[bytes]) -> bool:
    first = next((line for line in lines if line.strip()), b"")
    try:
        return first.lstrip().startswith(b"{") and "path" in read_json(first)
    except ValueError:
        return False


def _read_objects(lines: list[bytes], root: str, name: str, reject: Callable[[str, str], None]) -> list[Listed]:
    found: list[Listed] = []
    keys: set[str] = set()
    fields: dict[str, dict[str, Any]] = {}  # of what has no key, by its path
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            listed = _object(json.loads(line.decode("utf-8"), parse_constant=_refuse), root)
            if listed.key in keys:
                raise ValueError(f"the key {listed.key} was given before")
            if listed.key is None and fields.setdefault(listed.path, listed.fields) != listed.fields:
                raise ValueError(f"{listed.path} was listed before with other fields, and it has no key")
        except (ValueError, RecursionError) as error:
            what = "it is not JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
            reject(f"{name}: line {number}", what)
            continue
        if listed.key is not None:
            keys.add(listed.key)
        found.append(listed)
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _object(value: Any, root: str) -> Listed:
    """What one line says. Raises ValueError where that cannot be meant."""
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    path, key = value.get("path"), value.get("key")
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError("it has no path")
    if key is not None and not (isinstance(key, str) and key):
        raise ValueError(f"its key is {json.dumps(key)}, and a text is needed")
    span = [value.get(name) for name in ("start", "end")]
    for name, seconds in zip(("start", "end"), span, strict=True):
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"its {name} is {json.dumps(seconds)}, and seconds from 0 are needed")
    start, end = (None if seconds is None else float(seconds) for seconds in span)
    if end is not None and (start or 0) > end:
        raise ValueError(f"its start {start or 0:g} is after its end {end:g}")
    if key is None and (start, end) != (None, None):
        # as in media fragments of the W3C: the same video may be listed with other spans
        limits = ("" if seconds is None else f"{seconds:g}" for seconds in (start, end))
        key = f"{os.path.basename(path)}#t={','.join(limits).rstrip(',')}"
    fields = own({name: each for name, each in value.items() if name not in ("path", "key")})
    return Listed(os.path.join(root, path), key, (start, end), {n: v for n, v in fields.items() if v is not None})
