"""Other people's layouts of conversations, each brought to the one form; what cannot be understood named by its line."""

import json

import pytest
from conftest import n_skipped

from kvtools.errors import Corrupt
from kvtools.keye.data.conversations import BAD, looks_like_json, normalise, open_conversations


def said(document):
    """The conversation in short: role, then texts as they are and items by their source."""
    return [
        (m["role"], *(p["text"] if p["type"] == "text" else {k: v for k, v in p.items() if k != "type"} for p in m["content"]))
        for m in document["messages"]
    ]


LAYOUTS = {
    "openai": (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        [("user", "hi"), ("assistant", "ho")],
    ),
    "openai parts": (
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": "file:///a.png"}},
            {"type": "image_url", "image_url": "b.png"}, {"type": "input_text", "text": "!"}]}]},
        [("user", "what", {"image": "/a.png"}, {"image": "b.png"}, "!")],
    ),
    "qwen parts": (
        {"messages": [{"role": "user", "content": [
            {"type": "video", "video": "a.mp4", "fps": 1.0, "nframes": 8, "max_pixels": 5}, {"type": "text", "text": "x"}]}]},
        [("user", {"video": "a.mp4", "fps": 1.0, "frames": 8}, "x")],
    ),
    "a list of frames": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": [{"video": "a", "seconds": [1]}]}]}]},
        [("user", {"video": [{"video": "a", "seconds": [1]}]})],
    ),
    "sharegpt": (
        {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "tools": (
        {"tools": '[{"name": "f"}]', "conversations": [
            {"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "f"}'},
            {"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}]},
        [("user", "a"), ("assistant", '<tool_call>\n{"name": "f"}\n</tool_call>'), ("tool", "1"), ("assistant", "b")],
    ),
    "marks": (
        {"messages": [{"role": "user", "content": "<image>one<video> two"}, {"role": "assistant", "content": "x<image>"}],
         "images": ["1.jpg", "2.jpg"], "videos": ["v.mp4"]},
        [("user", {"image": "1.jpg"}, "one", {"video": "v.mp4"}, " two"), ("assistant", "x", {"image": "2.jpg"})],
    ),
    "no marks": (
        {"messages": [{"role": "user", "content": "what"}], "images": ["1.jpg"]}, [("user", {"image": "1.jpg"}, "what")],
    ),
    "marks that stand for nothing": (
        {"messages": [{"role": "user", "content": "what is <image> in HTML?"}]},
        [("user", "what is ", "<image>", " in HTML?")],
    ),
    "llava": (
        {"id": 7, "image": "c.jpg", "conversations": [{"from": "human", "value": "<image>\nwho"},
                                                      {"from": "gpt", "value": "me"}]},
        [("user", {"image": "c.jpg"}, "\nwho"), ("assistant", "me")],
    ),
    "alpaca": (
        {"instruction": "add", "input": "1 2", "output": "3", "history": [["q", "a"]], "system": "s"},
        [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "add\n1 2"), ("assistant", "3")],
    ),
    "alpaca without input": ({"instruction": "add", "output": "3"}, [("user", "add"), ("assistant", "3")]),
    "values": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "x"}],
                       "loss_weight": 0.0},
                      {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "y"},
                                                        {"type": "tool_call", "value": '{"name": "f"}'}]}]},
        [("user", {"image": "a.jpg"}, "x"),
         ("assistant", "<think>\nhm\n</think>\n\n", "y", '<tool_call>\n{"name": "f"}\n</tool_call>')],
    ),
    "calls of functions": (
        {"messages": [{"role": "user", "content": "x"},
                      {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
        [("user", "x"), ("assistant", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')],
    ),
    "calls as OpenAI's, JSON within JSON": (
        {"messages": [{"role": "user", "content": "x"},
                      {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Rome"}'}}]}]},
        [("user", "x"), ("assistant", '<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call>')],
    ),
    "pictures as data sets and browsers name them": (
        {"messages": [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "two"}],
         "images": [{"path": "a.jpg", "bytes": None}, "file:///tmp/a%20b.jpg"]},
        [("user", {"image": "a.jpg"}, {"image": "/tmp/a b.jpg"}), ("assistant", "two")],
    ),
    "pairs": (
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        [("user", "a"), ("assistant", "good")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_brought_to_the_one_form(name):
    document, expected = LAYOUTS[name]
    before = json.dumps(document)
    source = normalise(document)
    assert json.dumps(document) == before
    found = said(source)
    if name == "tools":
        assert found[0][0] == "system"
        assert '<tools>\n{"name": "f"}\n</tools>' in found.pop(0)[1]
    assert found == expected
    assert source["mode"] is None
    # the one form is a layout too
    again = normalise(source)
    assert again == source


def test_what_else_is_said_stays():
    source = normalise({"messages": [{"role": "user", "content": "x"}], "mode": "think", "answer": 4, "id": 3})
    assert (source["mode"], source["answer"], source["id"]) == ("think", 4, "3")
    pair = normalise(LAYOUTS["pairs"][0])
    assert pair["rejected"] == {"role": "assistant", "content": [{"type": "text", "text": "bad"}]}
    for word in ({"loss_weight": 0.0}, {"weight": 0}, {"loss": False}):
        assert normalise({"messages": [{"role": "assistant", "content": "x", **word}]})["messages"][0]["loss"] is False
    assert "loss" not in normalise({"messages": [{"role": "assistant", "content": "x", "weight": 1}]})["messages"][0]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (3, "it is a number, and an object is needed"),
        ({"text": "x"}, "fields are text; messages, conversations, instruction, prompt or question is needed"),
        ({"messages": []}, "it has no messages"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            (
                "role is 'bot', and must be one of system, user, human, assistant, gpt, "
                "tool, observation, function, function_call, developer"
            ),
        ),
        ({"messages": [{"role": "user", "content": []}]}, "a message of user has no content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": "x"}]}]},
            "content is of type 'file', and must be text, image or video",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]},
            "image is 3, and must be a path or a key",
        ),
        (
            {"messages": [{"role": "user", "content": "<audio>x"}], "audios": ["a"]},
            "it has sound, and only pictures and videos are read",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "audios": ["a"]},
            "it has sound, and only pictures and videos are read",
        ),
        (
            {"messages": [{"role": "user", "content": "<image>"}], "images": ["a", "b"]},
            "there are 1 pictures or videos more than marks for them",
        ),
        (
            {"messages": [{"role": "user", "content": "<image><image>"}], "images": ["a"]},
            "there are more <image> marks than images",
        ),
        ({"messages": "hello"}, "messages are 'hello', and must be a list of objects"),
        ({"messages": [{"role": "user", "content": [3]}]}, "content has 3, and must be text or an object"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "not JSON (Expecting property name enclosed in double quotes at column 2)",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "mode": "loud"},
            "mode is 'loud', and must be one of None, auto, think, no_think, auto_think, agentic, video",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(document, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message follows
        normalise(document)
    assert str(caught.value) == words


def test_lists_lines_and_objects_over_many_lines_are_read_alike(tmp_path):
    documents = [LAYOUTS[name][0] for name in ("openai", "sharegpt", "alpaca")]
    (tmp_path / "list.json").write_text(json.dumps(documents, indent=1))
    (tmp_path / "lines.jsonl").write_text("\ufeff" + "\r\n\r\n".join(map(json.dumps, documents)), encoding="utf-8")
    found = [open_conversations(str(tmp_path / name)).conversations for name in ("list.json", "lines.jsonl")]
    assert found[0] == found[1]
    assert [each["id"] for each in found[0]] == ["00000000", "00000001", "00000002"]
    (tmp_path / "one.json").write_text(json.dumps(documents[0], indent=1))
    assert open_conversations(str(tmp_path / "one.json")).conversations == found[0][:1]


def test_bad_lines_are_named_and_the_others_read(tmp_path):
    good = json.dumps(LAYOUTS["openai"][0])
    lines = [good, "{", '{"a": 1}', '{"messages": NaN}', '{"messages": [{"role": "user", "content": "\\ud800"}]}', "7", good]
    data = "\n".join(lines).encode() + b'\n{"messages": "\xff"}\n'
    (tmp_path / "x.jsonl").write_bytes(data)
    source = open_conversations(str(tmp_path / "x.jsonl"))
    assert [each["id"] for each in source.conversations] == ["00000000", "00000006"]
    assert source.skipped.counts == {BAD: 6}
    assert source.skipped.names[BAD][0].startswith("line 2: not JSON")
    assert source.root == str(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_byte_order_mark_is_understood(tmp_path, encoding):
    document = json.dumps({"messages": [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Là."}]})
    for layout in (document, f"[{document}]", f"{document}\n{document}\n"):
        (tmp_path / "x.json").write_bytes(layout.replace("\\u00f9", "ù").encode(encoding))
        with open(tmp_path / "x.json", "rb") as file:
            assert looks_like_json(file)
        source = open_conversations(str(tmp_path / "x.json"))
        assert source.skipped.counts == {}
        assert source.conversations[0]["messages"][0]["content"] == [{"type": "text", "text": "Où?"}]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"messages": [{"content": "x"}]}, "a message has no role"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "a part of the content has no type"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": []}]}]}, "the video has no source"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "one of its values is of another type than is needed ('int' object is not iterable)",
        ),
    ],
)
def test_what_python_says_is_not_printed_alone(tmp_path, document, reason):
    (tmp_path / "x.jsonl").write_text(json.dumps(document))
    assert open_conversations(str(tmp_path / "x.jsonl")).skipped.names[BAD] == [f"line 1: {reason}"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no conversation in it"), (b"[", "a JSON list"), (b"[]", "no conversation"),
        (b"\x89PNG\r\n\0\0", "neither a stream nor JSON"),
    ],
)  # fmt: skip
def test_a_source_with_nothing_in_it_is_corrupt(tmp_path, data, words):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(Corrupt, match=words):
        open_conversations(str(tmp_path / "x.json"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "n_found", "n_lost"),
    [
        ("alpaca_en_demo.json", 999, 0), ("alpaca_zh_demo.json", 1000, 0), ("dpo_en_demo.json", 300, 0),
        ("glaive_toolcall_en_demo.json", 300, 0), ("mllm_demo.json", 6, 0), ("mllm_video_demo.json", 3, 0),
        ("mllm_audio_demo.json", 0, 3), ("reason_tool_use_demo_50.jsonl", 50, 0), ("v1_sft_demo.jsonl", 500, 0),
        ("v1_dpo_demo.jsonl", 10, 0), ("v1_multimodal_demo.jsonl", 24, 0), ("dataset_info.json", 0, 1),
    ],
)  # fmt: skip
def test_llamafactorys_demos_are_understood(data, name, n_found, n_lost):
    from kvtools.keye.data.chat_template import ChatTemplate, visuals_of

    source = open_conversations(str(data / "reasoning" / "llamafactory" / name))
    assert (len(source.conversations), n_skipped(source.skipped)) == (n_found, n_lost)
    chat = ChatTemplate.open(None)
    for conversation in source.conversations:
        _, targets = chat.encode(conversation, [1] * len(visuals_of(conversation)))
        assert targets.any()


@pytest.mark.data
def test_reasoning_of_the_demo_is_that_of_its_mechanical_copy(data):
    ours = open_conversations(str(data / "reasoning" / "llamafactory" / "reason_tool_use_demo_50.jsonl")).conversations
    theirs = open_conversations(str(data / "reasoning" / "derived_think_tool_50.jsonl")).conversations

    def words(conversation, what):
        text = "".join(p["text"] for m in conversation["messages"] if m["role"] == "assistant" for p in m["content"])
        return text.count(what)

    for what in ("<think>", "</think>", "<tool_call>"):
        assert [words(c, what) for c in ours] == [words(c, what) for c in theirs]
    assert sum(words(c, "<think>") for c in ours) == 112
