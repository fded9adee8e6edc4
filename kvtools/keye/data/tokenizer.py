"""The tokenizer: a tokenizer.json, or the files of Qwen2's vocabulary, with the special tokens that Keye-VL needs.

Special tokens are found by their text, whatever their ids; those that a tokenizer lacks are added after its last id. Special
tokens in a text become tokens only where the caller names them: `<|im_end|>` in a question is ordinary characters. Other words
that were added to a tokenizer are tokens wherever they stand, as the `tokenizers` library has it, which splits and merges; it
never sees special tokens. Not here: the chat template (chat_template.py).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt, Missing
from kvtools.keye.data.word_cache import QWEN2_SPLIT, WordCache, split_of

FILE = "tokenizer.json"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
SPEECH = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
GROUNDING = tuple(f"<|{what}_{end}|>" for what in ("object_ref", "box", "quad", "point", "ocr_text", "clip_time")
                  for end in ("start", "end"))  # fmt: skip
_CODE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
# in the order of Keye's ids, 151643 to 151674: added to the bare vocabulary of Qwen2 they get exactly these ids
_IN_ORDER = (*CONTROL[:3], *GROUNDING[:6], *CONTROL[3:], *SPEECH[:2], *_CODE, *SPEECH[2:], *GROUNDING[6:])
_N_QWEN2 = 151_643
# what a tokenizer calls special and is not a word of somebody's own: <|...|>, and the usual names of begin, end, padding
_RESERVED = re.compile(r"<\|.*\|>|</?s>|<(pad|unk|bos|eos|mask|cls|sep)>|\[(PAD|UNK|BOS|EOS|MASK|CLS|SEP)\]", re.DOTALL)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_COMPANIONS = ("tokenizer_config.json", "added_tokens.json")


class Tokenizer:
    """Encodes text as token ids and decodes them. `name` is its name in messages; `ids` are those of the special tokens."""

    def __init__(self, document: dict[str, Any], name: str) -> None:
        from tokenizers import Tokenizer as Library

        self.name = name
        try:
            added = list(document.get("added_tokens") or [])
            self.ids = {token["content"]: int(token["id"]) for token in added}
            bare = {**document, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            self._plain = Library.from_str(json.dumps(bare))
        except Exception as error:  # noqa: BLE001 the library raises no narrower one
            raise Corrupt(_not_a_tokenizer(name, error)) from None
        n_plain = self._plain.get_vocab_size(with_added_tokens=False)
        self.size = max([n_plain, *(n + 1 for n in self.ids.values())])
        for token in _IN_ORDER:
            if token not in self.ids and (token not in _CODE or n_plain == _N_QWEN2):
                known = self._plain.token_to_id(token)
                self.ids[token] = self.size if known is None else known
                self.size = max(self.size, self.ids[token] + 1)
                added.append(_entry(token, self.ids[token]))
        words = [token for token in sorted(added, key=lambda token: int(token["id"])) if _is_word(token)]
        self._moved = self._add_words(words)
        split = split_of(document)
        self._cache = WordCache(split, self._merged, [word["content"] for word in words]) if split is not None else None
        self._document = {**document, "added_tokens": sorted(added, key=lambda token: token["id"])}
        self._special = {number: token for token, number in self.ids.items()}
        self._control = {self.ids[token] for token in CONTROL}
        self._patterns: dict[tuple[str, ...], re.Pattern[str]] = {}

    def _add_words(self, words: Sequence[Mapping[str, Any]]) -> dict[int, int]:
        """Tell the library the added words that are tokens everywhere; returns {its id: ours} where the two differ."""
        from tokenizers import AddedToken

        self._plain.add_tokens(
            [AddedToken(token["content"], special=False, **{flag: bool(token.get(flag)) for flag in _FLAGS}) for token in words]
        )
        theirs = {token["content"]: self._plain.token_to_id(token["content"]) for token in words}
        return {number: self.ids[word] for word, number in theirs.items() if number is not None and number != self.ids[word]}

    @staticmethod
    def open(src: str | None) -> "Tokenizer":
        """The tokenizer of a tokenizer.json, or of a folder with one or with vocab.json and merges.txt; None: tokens are bytes.

        Raises Missing where there is none, Corrupt where it is not a tokenizer.
        """
        if src is None:
            return Tokenizer(_bytewise(), "the tokenizer of bytes")
        if not os.path.isdir(src):
            return Tokenizer(_read_json(src), src)
        path = os.path.join(src, FILE)
        if os.path.exists(path):
            return Tokenizer(_with_words(_read_json(path), _companions(src)), path)
        if os.path.exists(os.path.join(src, "vocab.json")):
            return Tokenizer(_from_vocabulary(src), src)
        raise Missing(f"{src}: this folder has neither tokenizer.json nor vocab.json with merges.txt. Give another folder.")

    @staticmethod
    def from_bytes(data: bytes, name: str = FILE, files: Mapping[str, bytes] | None = None) -> "Tokenizer":
        """The tokenizer of a tokenizer.json's bytes, such as a model carries. Raises Corrupt for other bytes.

        files: small files beside it, of which two may add words: tokenizer_config.json and added_tokens.json.
        """
        beside = {file: _parse(files[file], file) for file in _COMPANIONS if files and file in files}
        return Tokenizer(_with_words(_parse(data, name), beside), name)

    def to_bytes(self) -> bytes:
        """A tokenizer.json that holds all the tokens; the same bytes every time."""
        return json.dumps(self._document, ensure_ascii=False, separators=(",", ":")).encode()

    def encode(self, text: str, marks: Sequence[str] = ()) -> list[int]:
        """The token ids of a text, in which the special tokens named by `marks` are tokens and others ordinary characters."""
        tokens: list[int] = []
        for part in self._pattern(tuple(marks)).split(text) if marks else [text]:
            if part in marks:
                tokens.append(self.ids[part])
            elif part:
                ids = self._encode(part)
                if not self._control.isdisjoint(ids):
                    # a vocabulary with <|im_end|> as a word: a single character is never that
                    ids = [i for x in part for i in self._encode(x)]
                tokens += ids
        return tokens

    def _encode(self, text: str) -> list[int]:
        known = self._cache.encode(text) if self._cache is not None else None
        return self._merged(text) if known is None else known

    def _merged(self, text: str) -> list[int]:
        """The ids of a text by the library."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return [self._moved.get(i, i) for i in ids] if self._moved else ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_control: bool = False) -> str:
        """The text of token ids (S,), special tokens by name; unknown ids give nothing. skip_control leaves out CONTROL."""
        texts: list[str] = []
        for is_special, run in groupby(map(int, ids), self._special.__contains__):
            if is_special:
                texts += [self._special[i] for i in run if not (skip_control and i in self._control)]
            else:
                texts.append(self._plain.decode([i for i in run if i >= 0], skip_special_tokens=False))
        return "".join(texts)

    def _pattern(self, marks: tuple[str, ...]) -> re.Pattern[str]:
        if marks not in self._patterns:
            longest_first = sorted(marks, key=len, reverse=True)
            self._patterns[marks] = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        return self._patterns[marks]


def _entry(token: str, number: int) -> dict[str, Any]:
    return {"id": number, "content": token, **dict.fromkeys(_FLAGS, False), "special": token in CONTROL}


def _is_word(token: Mapping[str, Any]) -> bool:
    """Whether an added token is a word like others, which stands for itself wherever a text has it."""
    word = token["content"]
    if word in _IN_ORDER:
        return False
    return bool(word) and not (token.get("special") and _RESERVED.fullmatch(word))


def _companions(folder: str) -> dict[str, dict[str, Any]]:
    paths = {file: os.path.join(folder, file) for file in _COMPANIONS}
    return {file: _read_json(path) for file, path in paths.items() if os.path.exists(path)}


def _with_words(document: dict[str, Any], companions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tokenizer.json with the words that only files beside it add. companions: {file: its JSON}."""
    config, numbers = (companions.get(file, {}) for file in _COMPANIONS)
    added = document.get("added_tokens") or []
    try:
        words = [{**entry, "id": int(number)} for number, entry in (config.get("added_tokens_decoder") or {}).items()]
        words += [_entry(word, int(number)) | {"normalized": True} for word, number in numbers.items()]
        known = {token["content"] for token in added}
        new = {word["content"]: word for word in reversed(words) if word["content"] not in known}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Corrupt(_not_a_tokenizer(" and ".join(companions), error)) from None
    return {**document, "added_tokens": [*added, *sorted(new.values(), key=lambda word: word["id"])]}


def _document(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], pattern: str | None) -> dict[str, Any]:
    """A tokenizer.json of byte pairs. pattern: how text is split first; None: not at all."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocabulary, "merges": merges}  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "NFC"} if pattern else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]} if pattern else level,
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                                            "use_regex": False}, "model": model,
    }  # fmt: skip


def _bytewise() -> dict[str, Any]:
    # GPT-2's characters for bytes: a byte that prints stands for itself, the others are characters from 256 on, in order
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = (byte for byte in range(256) if byte not in prints)
    letters = {byte: chr(byte) for byte in prints} | {byte: chr(256 + n) for n, byte in enumerate(moved)}
    return _document({letters[byte]: byte for byte in range(256)}, [], None)


def _from_vocabulary(folder: str) -> dict[str, Any]:
    vocabulary = _read_json(os.path.join(folder, "vocab.json"))
    with open_source(os.path.join(folder, "merges.txt")) as file:
        lines = file.read().decode("utf-8", "replace").split("\n")
    pairs = (line.rstrip("\r").split(" ") for line in lines if not line.startswith("#version"))
    return _with_words(_document(vocabulary, [pair for pair in pairs if len(pair) == 2], QWEN2_SPLIT), _companions(folder))


def _read_json(path: str) -> dict[str, Any]:
    with open_source(path) as file:
        return _parse(file.read(), path)


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Corrupt(_not_a_tokenizer(name, error)) from None
    if not isinstance(document, dict):
        raise Corrupt(_not_a_tokenizer(name, f"a JSON {type(document).__name__}"))
    return document


def _not_a_tokenizer(name: str, why: object) -> str:
    return f"{name}: this is not a tokenizer.json ({' '.join(str(why).split())[:200]}). Give one, or a folder with one."
