"""chat: answers of very small models, what is refused, and what a program gets."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import make_clip
from PIL import Image
from shop import inside, say

from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.model.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.session import ChatSession, StreamDecoder

SMALL = "--frames 2 --frame-tokens 1:8"
EYES = VisionConfig(width=16, hidden=32, layers=1, heads=2, table_side=4)
CHAT = ChatTemplate.open(None)


def arch(**language):
    shape = LanguageConfig(width=32, hidden=48, layers=2, heads=4, kv_heads=2, head_dim=16, vocabulary=CHAT.size + 9)
    return ModelConfig(EYES, LanguageConfig(**{**vars(shape), **language}), image_token=CHAT.image_token,
                        video_token=CHAT.video_token)  # fmt: skip


def save(path, model, tokenizer=CHAT):
    words = None if tokenizer is None else tokenizer.to_bytes()
    checkpoint.save(Sink(str(path), force=True), model, tokenizer_json=words, fields={"stage": "sft", "step": 1}, history=[])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Models of random weights, pictures and clips; parrot.safetensors says `Hé!` to everything and ends its turn."""
    top = tmp_path_factory.mktemp("shelf")
    torch.manual_seed(3)
    save(top / "keye.safetensors", Keye(arch()))
    save(top / "mute.safetensors", Keye(arch()), None)
    save(top / "matching.safetensors", Siglip(EYES, TextConfig(16, 32, 1, 2)))
    broken = Keye(arch())
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    save(top / "nan.safetensors", broken)
    save(top / "parrot.safetensors", parrot())
    write_bag(Sink(str(top / "shop.safetensors")), "model", {"a": np.zeros(1)}, config={}, history=[], system="onerec")
    whole = (top / "keye.safetensors").read_bytes()
    (top / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("bad.mp4", "bad.png"):
        (top / name).write_text("nothing to see")
    document = json.loads(CHAT.to_bytes())
    document["added_tokens"] = [t | {"id": t["id"] + 1} for t in document["added_tokens"]]
    (top / "other.json").write_text(json.dumps(document))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8)).save(top / "cat.png")
    (top / "shots").mkdir()
    for n in range(3):
        Image.new("RGB", (56, 28), (n * 20, 0, 0)).save(top / "shots" / f"{n}.png")
    for name in ("clip", "other"):
        make_clip(top / f"{name}.mp4", n_frames=12, width=64, height=48)
    with inside(top):
        assert say(f"kvtools tokenize-video {SMALL} clip.mp4 other.mp4 -o two.kvs").code == 0
    (top / "cut.kvs").write_bytes((top / "two.kvs").read_bytes()[:5000])
    return top


def parrot():
    model = Keye(arch(layers=1))
    said = [*"Hé!".encode(), CHAT.stop_tokens[0]]
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        table, head = model.model.embed_tokens.weight.zero_(), model.lm_head.weight.zero_()
        table[:, 0] = 1
        before = [*CHAT.tokenizer.encode("\n"), *said]
        for number, (one, other) in enumerate(zip(before, said, strict=False), start=1):
            table[one, 0] = 0
            table[one, number] = head[other, number] = 99
    return model


@pytest.fixture
def ask(shelf, monkeypatch, capfd):
    """`kvtools chat` with these words, in the folder of models."""
    monkeypatch.chdir(shelf)
    return lambda words: say(f"kvtools chat {words}", capfd)


class Stdin(io.TextIOWrapper):
    def __init__(self, words, *, is_terminal=False):
        super().__init__(io.BytesIO(words))
        self.isatty = lambda: is_terminal


def test_the_answer_is_on_stdout_and_nothing_else_anywhere(sh, shelf):
    done = sh(f"cd {shelf}; kvtools chat --model parrot.safetensors {SMALL} clip.mp4 'What happens?'")
    assert (done.code, done.out.decode(), done.err) == (0, "Hé!\n", "")


def test_a_question_needs_no_picture(ask):
    assert ask("--model parrot.safetensors --system 'Be brief.' Well?").out.decode() == "Hé!\n"


def test_json_tells_what_a_program_wants(ask):
    line = json.loads(ask("--model parrot.safetensors --json cat.png 'What is it?'").out)
    expected = {"question": "What is it?", "answer": "Hé!", "ended": "stop", "tokens": 5, "visual_tokens": 6}
    assert {name: line[name] for name in expected} == expected
    assert line["prompt_tokens"] > 6
    assert line["tokens_per_s"] == pytest.approx(5 / line["seconds"], rel=0.2)


def test_questions_of_a_pipe_are_answered_one_by_one(ask, monkeypatch):
    flags = "--model keye.safetensors --greedy --max-new 6 --json cat.png"
    monkeypatch.setattr("sys.stdin", Stdin(b"Who?\n\nWhat?\nWho?\n"))
    who, what, again = map(json.loads, ask(f"{flags} -").out.splitlines())
    assert [who["question"], what["question"]] == ["Who?", "What?"]
    assert who["answer"] == again["answer"]
    assert json.loads(ask(f"{flags} 'What?'").out)["answer"] == what["answer"]


def test_the_seed_decides_and_greedy_needs_none(ask):
    def answer(flags):
        return json.loads(ask(f"--model keye.safetensors --max-new 12 --json {flags} Well?").out)["answer"]

    assert answer("--temperature 1 --top-k 0") == answer("--temperature 1 --top-k 0")
    assert answer("--temperature 1 --top-k 0") != answer("--temperature 1 --top-k 0 --seed 5")
    assert answer("--greedy") == answer("--temperature 0 --seed 5") == answer("--top-k 1") == answer("--greedy --mode auto")
    assert answer("--mode think --greedy") != answer("--greedy") != answer("--system Sir --greedy")


def test_pictures_folders_and_streams_can_be_shown(ask):
    def answer(*shown):
        done = ask(f"--model keye.safetensors --frame-tokens 1:8 --max-new 3 --greedy --json {' '.join(shown)} 'What?'")
        assert done.err == ""
        return {**json.loads(done.out), "seconds": 0, "tokens_per_s": 0}

    assert answer("shots")["visual_tokens"] == 6
    stream = answer("two.kvs")
    assert stream == answer("--frames 2", "clip.mp4", "other.mp4")
    assert answer("cat.png", "two.kvs")["visual_tokens"] == 6 + stream["visual_tokens"]


def test_a_hugging_face_directory_answers_as_the_bag_does(ask, shelf):
    from kvtools.artifact.directory import new_directory

    weights = checkpoint.open_weights(str(shelf / "keye.safetensors"))
    with new_directory(str(shelf / "folder"), force=True) as folder:
        checkpoint.write(weights, folder, history=[])
    answers = [ask(f"-q --model {m} --greedy --max-new 8 cat.png 'What?'").out for m in ("keye.safetensors", "folder")]
    assert answers[0] == answers[1] != b""


def test_an_answer_that_is_cut_is_noted(ask):
    flags = "--model keye.safetensors --greedy --max-new 4 Well?"
    assert ask(flags).err == "kvtools chat: cut after 4 tokens; --max-new allows more.\n"
    assert ask(f"-q {flags}").err == ""


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("Well?", 2, "--model is missing. Give a model that kvtools pretrain keye has written."),
        (
            "--model keye.safetensors clip.mp4",
            2,
            ("QUESTION is missing. Give it in quotes after the files, or - to read questions from stdin, one a line."),
        ),
        (
            "--model keye.safetensors",
            2,
            ("QUESTION is missing. Give it in quotes after the files, or - to read questions from stdin, one a line."),
        ),
        ("--model keye.safetensors --top-p 0 Well?", 2, "--top-p 0 is out of range. Give a number above 0 and at most 1."),
        (
            "--model keye.safetensors --frame-tokens 3 Well?",
            2,
            "--frame-tokens 3 is not a range. Give LOW:HIGH with 1 <= LOW <= HIGH, as 128:768.",
        ),
        (
            "--model absent.safetensors Well?",
            66,
            "absent.safetensors: no such file or directory. Look at its name and its permissions.",
        ),
        ("--model keye.safetensors absent.mp4", 66, "absent.mp4: no such file. Give the question last, in quotes."),
        (
            "--model keye.safetensors absent.mp4 Well?",
            66,
            "absent.mp4: no such file. Put the question in quotes, after the files.",
        ),
        (
            "--model clip.mp4 Well?",
            65,
            "clip.mp4: this is neither a stream nor a bag of kvtools. Give one, or see kvtools convert.",
        ),
        (
            "--model shop.safetensors Well?",
            65,
            (
                "shop.safetensors: this is a model of onerec, and a model of keye is needed. Make one with kvtools "
                "pretrain keye, or from a Hugging Face directory with kvtools convert."
            ),
        ),
        (
            "--model matching.safetensors Well?",
            65,
            "matching.safetensors: this is a siglip, which cannot answer. Give a whole Keye-VL.",
        ),
        (
            "--model cut.safetensors Well?",
            65,
            ("cut.safetensors: "),
        ),
        (
            "--model keye.safetensors bad.mp4 Well?",
            65,
            "bad.mp4: this is not a video: text that begins with 'nothing to see'. Give another file.",
        ),
        (
            "--model keye.safetensors bad.png Well?",
            65,
            "bad.png: it is not a picture: text that begins with 'nothing to see'. Give another file.",
        ),
        (
            "--model keye.safetensors cut.kvs Well?",
            65,
            "cut.kvs: ",
        ),
        (
            "--model keye.safetensors --tokenizer other.json Well?",
            65,
            (
                "other.json: <|image_pad|> and <|video_pad|> are tokens 269 and 270 here, and 268 and 269 in the "
                "model. Give the tokenizer that the model was trained with."
            ),
        ),
        (
            "--model keye.safetensors --tokenizer bad.mp4 Well?",
            65,
            (
                "bad.mp4: this is not a tokenizer.json (Expecting value: line 1 column 1 (char 0)). Give one, or a "
                "folder with one."
            ),
        ),
        (
            "--model keye.safetensors --tokenizer absent.json Well?",
            66,
            "absent.json: no such file or directory. Look at its name and its permissions.",
        ),
        (
            "--model mute.safetensors Well?",
            65,
            "mute.safetensors: this model has no tokenizer. Give the one it was trained with: --tokenizer FILE.",
        ),
        (
            "--model nan.safetensors Well?",
            65,
            "nan.safetensors: the model gives logits that are not finite. Give another model.",
        ),
    ],
)
def test_what_is_refused(ask, line, code, sentence):
    done = ask(line)
    assert (done.code, done.out, done.err.count("\n")) == (code, b"", 1)
    message = done.err.removeprefix("kvtools chat: ")
    assert message == f"{sentence}\n" if sentence.endswith(".") else message.startswith(sentence)


def test_a_letter_of_several_tokens_comes_whole():
    text = StreamDecoder(CHAT)
    said = "aé漢🙂b"
    heard = [text.add(token) for token in CHAT.tokenizer.encode(said)]
    assert [part for part in heard if part] == list(said)
    assert text.rest() == ""


def test_half_a_letter_is_printed_at_the_end_and_does_not_hold_up_the_rest():
    text = StreamDecoder(CHAT)
    half = CHAT.tokenizer.encode("漢")[:2]
    assert [text.add(token) for token in half] == ["", ""]
    assert text.rest() == "\ufffd"
    late = StreamDecoder(CHAT)
    heard = "".join(late.add(token) for token in CHAT.tokenizer.encode("漢")[:1] * 20)
    assert set(heard) == {"\ufffd"}


def test_a_terminal_is_a_conversation_in_which_each_question_knows_those_before(ask, monkeypatch):
    asked = []
    whole = ChatSession.ask
    monkeypatch.setattr(
        ChatSession, "ask", lambda self, messages, *rest: asked.append(messages[:]) or whole(self, messages, *rest)
    )
    monkeypatch.setattr("sys.stdin", Stdin(b"What?\nWhy?\n", is_terminal=True))
    done = ask("--model parrot.safetensors cat.png")
    assert (done.code, done.out.decode(), done.err) == (0, "Hé!\nHé!\n", "> > > ")
    cat, what, why = {"type": "image", "image": "cat.png"}, {"type": "text", "text": "What?"}, {"type": "text", "text": "Why?"}
    first = {"role": "user", "content": [cat, what]}
    assert asked[0] == [first]
    assert asked[1] == [first, {"role": "assistant", "content": "Hé!"}, {"role": "user", "content": [why]}]
