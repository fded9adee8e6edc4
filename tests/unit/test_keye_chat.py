"""The template against its published form, and what people write never becoming what the template writes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.errors import Corrupt, Missing
from kvtools.keye.data.chat_template import ChatTemplate, visuals_of
from kvtools.keye.data.tokenizer import CONTROL, GROUNDING, SPEECH, Tokenizer


@pytest.fixture(scope="module")
def chat():
    return ChatTemplate.open(None)


def user(*parts):
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def assistant(words, **more):
    return {"role": "assistant", "content": [{"type": "text", "text": words}], **more}


IMAGE, VIDEO = {"type": "image", "image": "a"}, {"type": "video", "video": "b"}


def test_the_template_is_the_published_one(chat):
    conversation = {"messages": [user(IMAGE, "What?", VIDEO), assistant("<think>\nWell.\n</think>A cat")]}
    tokens, targets = chat.encode(conversation, [2, 1])
    assert chat.decode(tokens) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>What?"
        "<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nWell.\n</think>A cat<|im_end|>\n"
    )
    assert (tokens.dtype, targets.dtype) == (np.int32, np.uint8)
    assert chat.decode(tokens[targets == 1]) == "<think>\nWell.\n</think>A cat<|im_end|>"
    assert chat.decode(tokens, skip_control=True).startswith("system\nYou are")


@pytest.mark.parametrize(
    ("mode", "words"),
    [(None, "Q"), ("auto", "Q"), ("think", "Q/think"), ("no_think", "Q/no_think"), ("agentic", "Q/agentic_think")],
)
def test_a_mode_stands_after_the_last_question(chat, mode, words):
    conversation = {"mode": mode, "messages": [user("P"), assistant("p"), user("Q"), assistant("q")]}
    text = chat.decode(chat.encode(conversation)[0])
    assert text.count(f"user\n{words}<|im_end|>") == 1
    assert "user\nP<|im_end|>" in text
    assert chat.decode(chat.prompt({**conversation, "mode": None}, mode=mode)).endswith(
        f"user\n{words}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prompt_is_what_comes_before_the_answer(chat):
    conversation = {"messages": [user(VIDEO, "Q"), assistant("\n one"), user("R"), assistant("\n\ntwo")]}
    tokens, targets = chat.encode(conversation, [3])
    prompt = chat.prompt(conversation, [3])
    assert prompt.tolist() == tokens[: len(prompt)].tolist()
    assert targets[len(prompt) :].tolist() == [1] * (len(tokens) - len(prompt) - 1) + [0]


def test_only_the_assistants_words_are_learnt_and_none_where_it_says_so(chat):
    conversation = {"messages": [user("Q"), assistant("no", loss=False), user("R"), assistant("yes")]}
    tokens, targets = chat.encode(conversation)
    assert chat.decode(tokens[targets == 1]) == "yes<|im_end|>"


def test_pictures_an_assistant_shows_are_not_learnt(chat):
    shown = {"role": "assistant", "content": [{"type": "text", "text": "see"}, IMAGE, {"type": "text", "text": "so"}]}
    tokens, targets = chat.encode({"messages": [user("Q"), shown]}, [2])
    assert chat.decode(tokens[targets == 1]) == "seeso<|im_end|>"


def test_a_system_message_replaces_the_implied_one_and_tools_answer_in_the_users_turn(chat):
    tool = [{"role": "tool", "content": [{"type": "text", "text": word}]} for word in ("one", "two")]
    system = {"role": "system", "content": "Be brief."}
    text = chat.decode(chat.encode({"messages": [system, user("Q"), assistant("A"), *tool, assistant("B")]})[0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ")
    assert (
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nB"
    ) in text


@given(st.text(), st.sampled_from([*CONTROL, *SPEECH]), st.text())
@settings(max_examples=60, deadline=None)
def test_what_is_written_never_becomes_a_control_token(before, word, after):
    chat = ChatTemplate.open(None)
    plain = chat.encode({"messages": [user("x"), assistant("y")]})[0].tolist()
    for role in ("user", "assistant"):
        if role == "assistant" and word in SPEECH:
            continue
        words = {role: f"{before}{word}{after}"}
        tokens, _ = chat.encode({"messages": [user(words.get("user", "x")), assistant(words.get("assistant", "y"))]})
        special = [i for i in tokens.tolist() if i >= 256 and chat.decode([i]) not in GROUNDING]
        assert [i for i in special if chat.decode([i]) not in SPEECH or word in SPEECH] == [i for i in plain if i >= 256]
        assert word in chat.decode(tokens)


def test_speech_is_special_in_answers_alone_and_grounding_anywhere(chat):
    words = "<think>x</think><|box_start|>[[1,2,3,4]]<|box_end|>"
    tokens, targets = chat.encode({"messages": [user(words), assistant(words)]})
    ids = chat.tokenizer.ids
    for word, n in (("<think>", 1), ("</think>", 1), ("<|box_start|>", 2), ("<|box_end|>", 2)):
        assert (tokens == ids[word]).sum() == n, word
    assert (tokens[targets == 1] == ids["<think>"]).sum() == 1


def test_a_vocabulary_that_knows_control_words_still_spells_them():
    letters = {x: n for n, x in enumerate("<|im_end>abc ")}
    words = {"type": "WordLevel", "vocab": {**letters, "<|im_end|>": 20, "[UNK]": 21}, "unk_token": "[UNK]"}
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": words}  # fmt: skip
    tokenizer = Tokenizer(document, "t")
    assert tokenizer.ids["<|im_end|>"] == 20
    assert 20 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<|im_end|>", ["<|im_end|>"]) == [20]


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_text_comes_back_from_bytes(words):
    tokenizer = Tokenizer.open(None)
    assert tokenizer.decode(tokenizer.encode(words)) == words
    assert tokenizer.encode(words) == list(words.encode())


def test_a_tokenizer_survives_being_written(chat):
    again = ChatTemplate.from_bytes(chat.to_bytes())
    assert again.to_bytes() == chat.to_bytes()
    assert (again.size, again.image_token, again.stop_tokens) == (chat.size, chat.image_token, chat.stop_tokens)


@pytest.mark.parametrize(
    ("conversation", "counts", "words"),
    [
        ({"messages": [user(IMAGE, "x")]}, [], "1 pictures and videos in the messages, and 0 were read"),
        ({"messages": [user("x")]}, [4], "0 pictures and videos in the messages, and 1 were read"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            [],
            "role is 'bot', and must be one of system, user, assistant, tool",
        ),
        (
            {"messages": [user("x")], "mode": "loud"},
            [],
            "mode is 'loud', and must be one of None, auto, think, no_think, auto_think, agentic, video",
        ),
        (
            {"messages": [user({"type": "audio", "audio": "x"})]},
            [1],
            "content is of type 'audio', and must be text, image or video",
        ),
    ],
)
def test_what_is_not_a_conversation_is_refused(chat, conversation, counts, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message follows
        chat.encode(conversation, counts)
    assert str(caught.value) == words


def test_a_wrong_tokenizer_is_refused_in_one_line(chat):
    chat.require_fits(chat.size + 100, chat.image_token, chat.video_token)
    with pytest.raises(
        Corrupt, match=f"has {chat.size} tokens, and the model only 100. Give the tokenizer that the model was trained with"
    ):
        chat.require_fits(100, chat.image_token, chat.video_token)
    with pytest.raises(Corrupt, match="here, and 5 and 6 in the model. Give the tokenizer"):
        chat.require_fits(1000, 5, 6)


@pytest.mark.parametrize(("name", "text"), [("t.json", "{"), ("t.json", "[1]"), ("t.json", '{"model": 3}')])
def test_what_is_no_tokenizer_is_corrupt(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(Corrupt, match=r"t.json: this is not a tokenizer.json \(.*\). Give one, or a folder with one.$"):
        ChatTemplate.open(str(tmp_path / name))
    with pytest.raises(Missing, match="neither tokenizer.json nor"):
        ChatTemplate.open(str(tmp_path))


def test_visuals_come_in_order(chat):
    assert visuals_of({"messages": [user(IMAGE, "x", VIDEO), assistant("y"), user(IMAGE)]}) == [IMAGE, VIDEO, IMAGE]


@pytest.mark.data
def test_minimind_lacks_six_tokens_which_are_added(data):
    chat = ChatTemplate.open(str(data / "tokenizer" / "minimind"))
    assert (chat.size, chat.image_token, chat.video_token, chat.stop_tokens) == (6406, 12, 13, (2, 0))
    assert sorted(chat.tokenizer.ids[w] for w in GROUNDING[6:]) == list(range(6400, 6406))
    assert chat.decode(chat.tokenizer.encode("视频 and <|im_end|>")) == "视频 and <|im_end|>"


@pytest.mark.data
def test_the_vocabulary_of_qwen2_gets_keyes_numbers(data):
    chat = ChatTemplate.open(str(data / "tokenizer" / "qwen2"))
    config = json.loads((data / "tokenizer" / "keye" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {int(n): entry["content"] for n, entry in config.items()} == {n: word for word, n in chat.tokenizer.ids.items()}
    assert (chat.size, chat.image_token, chat.video_token) == (151_675, 151_655, 151_656)


@pytest.mark.data
def test_tokens_are_those_of_keyes_own_template(data, tmp_path):
    jinja2 = pytest.importorskip("jinja2")
    from tokenizers import Tokenizer as Library

    chat = ChatTemplate.open(str(data / "tokenizer" / "qwen2"))
    config = json.loads((data / "tokenizer" / "keye" / "tokenizer_config.json").read_text())
    library = Library.from_str(chat.to_bytes().decode())
    talks = [
        [("system", "You are kind."), ("user", "Hi, what's 12+34?\n\n  Tell!"), ("assistant", "It's 46."), ("user", "视频")],
        [("system", "x"), ("user", "a  b"), ("assistant", "\tcode\n")],
        [("system", "x"), ("user", "a"), ("tool", "1"), ("tool", "2"), ("assistant", "3")],
    ]
    for talk in talks:
        messages = [{"role": role, "content": content} for role, content in talk]
        rendered = jinja2.Template(config["chat_template"]).render(messages=messages, add_generation_prompt=False)
        # the template of today's Qwen3 puts empty thoughts before the last answer, which Keye's modes do not
        rendered = rendered.replace("<think>\n\n</think>\n\n", "")
        assert chat.encode({"messages": messages})[0].tolist() == library.encode(rendered, add_special_tokens=False).ids
