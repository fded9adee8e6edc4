"""Other people's layouts of conversations, each brought to the one form; what cannot be understood named by its line."""

import json

import pytest
from conftest import n_skipped

from kvtools.errors import Corrupt
from kvtools.keye.data.conversation_files import holds_conversations
from kvtools.keye.data.conversations import BAD, normalise, open_conversations


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
        [("user", {"video": "a.mp4", "fps": 1.0, "frames": 8, "max_pixels": 5}, "x")],
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
    "marks that the assistant writes": (
        {"messages": [{"role": "user", "content": "tags?"}, {"role": "assistant", "content": "<video>"}]},
        [("user", "tags?"), ("assistant", "<video>")],
    ),
    "marks of Qwen": (
        {"messages": [{"role": "user", "content": "<|vision_start|><|image_pad|><|vision_end|>who"}], "images": ["a.jpg"]},
        [("user", {"image": "a.jpg"}, "who")],
    ),
    "marks for the parts of a message": (
        {"messages": [{"role": "user", "content": [
            {"type": "image", "image": "a.jpg"}, {"type": "image", "image": "b.jpg"},
            {"type": "text", "text": "<image>or<image>"}]}]},
        [("user", {"image": "a.jpg"}, "or", {"image": "b.jpg"})],
    ),
    "pictures of a message, as Ollama has them": (
        {"messages": [{"role": "user", "content": "who", "images": ["a.jpg"]}, {"role": "assistant", "content": "me"}]},
        [("user", {"image": "a.jpg"}, "who"), ("assistant", "me")],
    ),
    "parts that stand for a list, as trl has them": (
        {"messages": [{"role": "user", "content": [{"type": "image", "index": 0, "text": None}, "x"]}],
         "images": ["a.jpg"]},
        [("user", {"image": "a.jpg"}, "x")],
    ),
    "frames": (
        {"messages": [{"role": "user", "content": "<video>x<video>"}],
         "videos": [["1.jpg", {"path": "2.jpg"}], {"frames": ["3.jpg"]}], "fps": 4},
        [("user", {"video": ["1.jpg", "2.jpg"], "fps": 4}, "x", {"video": ["3.jpg"], "fps": 4})],
    ),
    "words about videos in a list": (
        {"messages": [{"role": "user", "content": "<video><video>"}], "seconds": [[0, 1], [2]],
         "videos": ["a.mp4", {"video": "b.mp4", "video_start": 1, "resized_height": 56, "resized_width": 56}]},
        [("user", {"video": "a.mp4", "seconds": [0, 1]},
          {"video": "b.mp4", "seconds": [2], "video_start": 1, "resized_height": 56, "resized_width": 56})],
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


def ask(text="who", **more):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "me"}], **more}


@pytest.mark.parametrize(
    "mark",
    [
        "<image>", "<video>", "<audio>", "<img>a.jpg</img>", "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>",
        "<|video_pad|>", "<image_1>", "<|image_1|>", "<|image|>", "<ImageHere>", "<start_of_image>", "<IMG_CONTEXT>", "[IMG]",
        "<image_placeholder>", "<|begin_of_image|>", "<__media__>",
    ],
)  # fmt: skip
def test_a_mark_that_stands_for_nothing_is_named(mark):
    for document in (ask(f"look: {mark}\nwho?"), ask([{"type": "text", "text": f"{mark}who"}])):
        with pytest.raises(ValueError, match="stands for no picture or video") as caught:
            normalise(document)
        assert str(caught.value).startswith(mark.partition("<|image_pad|>")[0])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (ask(image_path="a.jpg"), "image_path names a picture, video or sound and is not read"),
        (ask(video_path="a"), "video_path names a picture"),
        (ask(img="a.jpg"), "img names a picture"),
        (ask(picture={"path": "a.jpg"}), "picture names a picture"),
        (ask(file="x/a.mp4"), "file names a picture"),
        (ask(extra={"inner": [{"clip_name": "x/a.webm"}]}), "extra names a picture"),
        (ask(photo={"file_name": "a"}), "photo names a picture"),
        (ask(pixels="data:image/png;base64,AA"), "pixels names a picture"),
        (ask(image="a.jpg", image2="b.jpg"), "image2 names a picture"),
        ({"messages": [{"role": "user", "content": "who", "image_url": "x/a.png"}]}, "image_url names a picture"),
        (ask([{"type": "text", "text": "who", "image": "a.jpg"}]), "image names a picture"),
        (ask(audio_path="a"), "audio_path names a picture, video or sound"),
        (ask(image=5), "image is 5"),
        (ask(loss_weight=0.5), "loss_weight is 0.5, and a conversation is learnt as a whole"),
        (ask(image=None), "image is null"),
        (ask("<image>who", images=None), "images is null"),
        (ask("<image>who", images=[None]), "image is null, and must be a path or a key"),
        (ask("<video>who", videos=[[]]), "the video has no source"),
        (ask("<video>who", videos=[["a.jpg", 3]]), "image is 3"),
        (ask([{"type": "image", "image": None}]), "the image has no source"),
        (ask([{"type": "image", "image": "a.jpg", "zoom": 2, "tilt": 1}]), "the image 'a.jpg' has zoom, tilt, which is not"),
        (ask([{"type": "image", "image": "a.jpg", "fps": 2}]), "the image 'a.jpg' has fps, which is not understood"),
        (ask([{"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}}]), "has detail, which is not understood"),
        (ask([{"type": "image", "image": "a.jpg", "path": "b.jpg"}]), "the image has 2 sources, 'a.jpg' and 'b.jpg'"),
        (ask("<video><video>", videos=["a", "b"], fps=[1, 2, 3]), "fps has 3 values for 2 videos"),
        ({"messages": [{"role": "assistant", "content": "x"}], "images": ["a"]}, "no question that they belong to"),
        ({"messages": [{"role": "assistant", "content": "x", "loss_weight": 0.5}]}, "loss_weight is 0.5, and only 0 and 1"),
    ],
)
def test_what_names_a_medium_and_is_not_shown_is_named(document, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the message follows
        normalise(document)
    assert words in str(caught.value)


def test_fields_that_show_nothing_stay():
    kept = {
        "image_id": 7,
        "image_size": [4, 5],
        "source": "a.mp4",
        "video_duration": 3.5,
        "note": "see photo",
        "image_name": "b.jpg",
    }
    assert kept.items() <= normalise(ask("<image>who", images=["x/b.jpg"], **kept)).items()
    with pytest.raises(ValueError, match="image_name"):
        normalise(ask(**kept))


def compressed(data, name):
    import gzip

    import zstandard

    return {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)(data)


@pytest.mark.parametrize(
    "name", ["lines.json", "list.json", "pretty.json", "table.json", "lines.gz", "list.zst", "pretty16.json"]
)
def test_one_reader_reads_all_shapes_of_json(tmp_path, name):
    documents = [LAYOUTS[layout][0] for layout in ("openai", "sharegpt", "alpaca")]
    text = {
        "list": json.dumps(documents),
        "lines": "\n".join(map(json.dumps, documents)),
        "prett": "\n".join(json.dumps(document, indent=2) for document in documents),
        "table": json.dumps(dict(zip("abc", documents, strict=True)), indent=1),
    }[name[:5].rstrip(".")]
    path = tmp_path / name
    path.write_bytes(compressed(text.encode("utf-16" if "16" in name else "utf-8"), name))
    with open(path, "rb") as file:
        assert holds_conversations(file)
    assert [said(each) for each in open_conversations(str(path)).conversations] == [said(normalise(each)) for each in documents]


def test_parquet_is_read_with_its_pictures(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = ask("<image>who")["messages"]
    rows = [{"messages": messages, "images": [{"bytes": b"\x89PNG", "path": None}], "id": 5}, {"messages": messages, "id": 6}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    pq.write_table(pa.table({"user": [1], "item": [2]}), tmp_path / "clicks.parquet")
    with open(tmp_path / "x.parquet", "rb") as file, open(tmp_path / "clicks.parquet", "rb") as other:
        assert (holds_conversations(file), holds_conversations(other)) == (True, False)
    source = open_conversations(str(tmp_path / "x.parquet"))
    assert said(source.conversations[0])[0] == ("user", {"image": "data:image;base64,iVBORw=="}, "who")
    assert source.skipped.names[BAD] == ["row 1: <image> stands for no picture or video; list those under images and videos"]


def test_what_ends_early_does_not_lose_what_stands_before(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([ask(), ask()])[:-9])
    source = open_conversations(str(tmp_path / "x.json"))
    assert len(source.conversations) == 1
    assert source.skipped.names[BAD][0].startswith("its end: not JSON after entry 0 (")


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "who", "completion": "me"}, {"query": "who", "response": "me"}, {"question": "who", "answer": "me"},
        {"problem": "who", "solution": "me"}, {"prompt": [{"role": "user", "content": "who"}],
         "completion": [{"role": "assistant", "content": "me"}]}, {"question": "who", "output": ["me"]},
    ],
)  # fmt: skip
def test_a_question_with_its_answer_is_a_conversation(document):
    assert said(normalise(document)) == [("user", "who"), ("assistant", "me")]


def test_what_is_right_stays_beside_an_answer_that_explains_it():
    found = normalise({"problem": "1+1", "solution": "One and one is two.", "answer": 2})
    assert (said(found)[1], found["answer"]) == (("assistant", "One and one is two."), 2)
    assert normalise({"question": "which", "answer": ["a", "b"]})["answer"] == ["a", "b"]
    pair = normalise({"query": "who", "response": "me", "rejected_response": "you", "history": [["q", "a"]], "system": "s"})
    assert said(pair) == [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "who"), ("assistant", "me")]
    assert pair["rejected"]["content"] == [{"type": "text", "text": "you"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_byte_order_mark_is_understood(tmp_path, encoding):
    document = json.dumps({"messages": [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Là."}]})
    for layout in (document, f"[{document}]", f"{document}\n{document}\n"):
        (tmp_path / "x.json").write_bytes(layout.replace("\\u00f9", "ù").encode(encoding))
        with open(tmp_path / "x.json", "rb") as file:
            assert holds_conversations(file)
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
        (b"", "no conversation in it"), (b"[", "as JSON or parquet"), (b"[]", "no conversation"),
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
        ("v1_dpo_demo.jsonl", 10, 0), ("v1_multimodal_demo.jsonl", 24, 0), ("dataset_info.json", 0, 104),
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
