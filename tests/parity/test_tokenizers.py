"""Our tokenizer against transformers' on the same files: texts of twelve scripts, runs of blanks, and words that were added."""

import json
import random
import shutil
import unicodedata

import pytest

from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.data
N_TEXTS = 2000
SCRIPTS = {
    "ascii": (0x20, 0x7E), "latin": (0xA0, 0x17F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x590, 0x5FF), "arabic": (0x600, 0x6FF), "devanagari": (0x900, 0x97F), "thai": (0xE00, 0xE5F),
    "kana": (0x3040, 0x30FF), "han": (0x4E00, 0x9FFF), "hangul": (0xAC00, 0xD7A3), "emoji": (0x1F300, 0x1F6FF),
    "punctuation": (0x2000, 0x206F), "mathematics": (0x2190, 0x22FF),
}  # fmt: skip
PIECES = (
    "it's",
    "WE'LL",
    "12345",
    "a.b",
    "\n\n",
    " \n ",
    "\t",
    "e\u0301",
    "\u00b2\u00bd\u2167",
    "don\u2019t",
    "i\u017fn't",
    "\r\n",
)
ADDED = ("<item_1>", "zebraword", " of her", "\u8bcd\u8bed", "Caf\u00e9")
SPECIAL = ("[SEG]", "<region>")


def texts():
    rng = random.Random(0)
    for _ in range(N_TEXTS):
        parts = []
        for _ in range(rng.randint(1, 10)):
            low, high = rng.choice(list(SCRIPTS.values()))
            drawn = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
            parts.append(rng.choice((drawn, drawn, rng.choice(PIECES), rng.choice(ADDED + SPECIAL), " " * rng.randint(1, 30))))
        yield rng.choice(("", " ", " ")).join(parts)


def entries(first):
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    words = [(word, False) for word in ADDED] + [(word, True) for word in SPECIAL]
    return {
        str(first + n): {"content": word, **flags, "normalized": not is_special, "special": is_special}
        for n, (word, is_special) in enumerate(words)
    }


def write_config(folder, source, first):
    """The source's tokenizer_config.json with words added after its last one."""
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {**config.get("added_tokens_decoder", {}), **entries(first)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(params=["gptneox", "minimind", "qwen2", "keye"])
def folder(request, data, tmp_path):
    """A tokenizer with added words: in tokenizer.json itself, or in the file of settings beside it or beside a vocabulary."""
    source = data / "tokenizer" / request.param
    if request.param == "gptneox":
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        tokenizer.add_tokens(list(ADDED))
        tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
        tokenizer.save_pretrained(tmp_path)
    elif request.param == "minimind":
        shutil.copy(source / "tokenizer.json", tmp_path)
        write_config(tmp_path, source, 6400)
    else:
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(data / "tokenizer" / "qwen2" / file, tmp_path)
        write_config(tmp_path, source, {"qwen2": 151_646, "keye": 151_675}[request.param])
    return tmp_path


def test_ids_are_those_of_transformers(folder):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.open(str(folder))
    again = Tokenizer.from_bytes(ours.to_bytes()) if ours.size < 100_000 else ours  # to parse a large one takes seconds
    said = list(texts())
    for text, ids in zip(said, theirs(said, add_special_tokens=False).input_ids, strict=True):
        assert ours.encode(text) == ids, text
        assert again.encode(text) == ids, text
        assert ours.decode(ids) in (text, unicodedata.normalize("NFC", text))
    assert {theirs.convert_tokens_to_ids(word) for word in ADDED + SPECIAL} == {ours.ids[word] for word in ADDED + SPECIAL}


def test_control_words_are_letters_that_an_answer_learns(data):
    chat = ChatTemplate.open(str(data / "tokenizer" / "gptneox"))
    reply = "It ends with <|im_end|>, <|endoftext|>  or <|padding|>."
    talk = {"messages": [{"role": "user", "content": "How does it end?"}, {"role": "assistant", "content": reply}]}
    tokens, targets = chat.encode(talk)
    assert chat.decode(tokens[targets == 1]) == reply + "<|im_end|>"
    learnt = tokens[targets == 1].tolist()
    assert [i for i in learnt if i in chat.tokenizer.ids.values()] == [
        chat.tokenizer.ids["  "],
        chat.tokenizer.ids["<|im_end|>"],
    ]
