"""Other people's conversations into a stream, as a user types it."""

import json

import pytest
from shop import inside, say

from kvtools.keye.data.conversations import open_conversations

GOOD = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    {
        "id": "two",
        "conversations": [{"from": "human", "value": "<image>who"}, {"from": "gpt", "value": "me"}],
        "image": "a.jpg",
    },
    {"instruction": "add", "input": "1 2", "output": "3", "mode": "no_think"},
]


@pytest.fixture
def top(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(GOOD))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    return tmp_path


def test_lists_lines_pipes_and_streams_become_the_same_records(sh, top):
    done = sh("kvtools convert list.json | tee c.kvs | kvtools check -")
    assert (done.code, done.out, done.err) == (0, b"", "")
    expected = sh("kvtools sum - < c.kvs").out
    for line in ("convert lines.jsonl", "convert - < list.json", "convert c.kvs", "convert < c.kvs"):
        assert sh(f"kvtools {line} | kvtools sum -").out == expected, line
    assert sh("cat lines.jsonl | kvtools convert | kvtools sum -").out == expected
    assert sh("cat c.kvs | kvtools convert | kvtools sum -").out == expected
    lines = [json.loads(line) for line in sh("kvtools cat --json c.kvs").out.splitlines()]
    assert [line["key"] for line in lines] == ["00000000", "two", "00000002"]
    assert lines[1]["json"]["messages"][0]["content"][0] == {"type": "image", "image": "a.jpg"}
    assert lines[2]["json"]["mode"] == "no_think"
    assert [each["id"] for each in open_conversations(str(top / "c.kvs")).conversations] == ["00000000", "two", "00000002"]


def test_interactions_still_come_through_a_pipe(sh, tmp_path):
    (tmp_path / "clicks.csv").write_text("user_id,item_id\n" + "".join(f"u{n},i{n % 7}\n" for n in range(5000)))
    whole = sh("kvtools convert clicks.csv | kvtools sum -")
    piped = sh("cat clicks.csv | kvtools convert | kvtools sum -")
    assert (whole.code, whole.out) == (piped.code, piped.out) == (0, whole.out)


def test_one_bad_line_does_not_lose_the_others(top, capfd):
    (top / "bad.jsonl").write_text("\n".join([json.dumps(GOOD[0]), "{", '{"text": 1}', json.dumps(GOOD[2])]))
    with inside(top):
        done = say("kvtools convert bad.jsonl -o c.kvs", capfd)
        assert done.code == 65
        assert done.err.startswith(
            "kvtools convert: bad.jsonl: conversations that cannot be understood were left out, 2 in all (line 2: not JSON ("
        )
        assert "line 3: fields are text; messages, conversations, instruction, prompt or question is needed" in done.err
        assert done.err.count("\n") == 1
        assert json.loads(say("kvtools info --json c.kvs", capfd).out)["records"] == 2
        strict = say("kvtools convert --strict bad.jsonl -o d.kvs", capfd)
        assert (strict.code, strict.err.count("\n"), (top / "d.kvs").exists()) == (65, 1, False)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("kvtools convert none.json", 66, "no such file"),
        ("kvtools convert broken.json", 65, "broken.json: not JSON"),
        ("kvtools convert empty.json", 65, "empty.json: there is no conversation in it. Give a file with conversations."),
        ("kvtools convert sound.json", 65, "sound.json: conversations that cannot be understood were left out, 1 in all"),
        ("kvtools convert list.json --column user=x", 2, "--column"),
        (
            "kvtools convert list.json -o list.json --force",
            2,
            "list.json: this is both an input and the output. Name another output.",
        ),
        ("kvtools convert list.json -o lines.jsonl", 73, "--force"),
    ],
)
def test_errors_are_one_line_with_their_code(top, capfd, line, code, words):
    (top / "broken.json").write_text("[1, 2")
    (top / "empty.json").write_text("[]")
    (top / "sound.json").write_text(json.dumps([{"messages": [{"role": "user", "content": "<audio>"}], "audios": ["a"]}]))
    with inside(top):
        done = say(line, capfd)
    assert (done.code, done.out) == (code, b""), done.err
    assert words in done.err
    assert done.err.count("\n") == 1


def test_a_stream_cut_short_is_refused(sh, top):
    sh("kvtools convert list.json -o c.kvs")
    done = sh("head -c 400 c.kvs | kvtools convert -o d.kvs")
    assert (done.code, (top / "d.kvs").exists(), done.err.count("\n")) == (65, False, 1)


@pytest.mark.data
def test_the_demos_of_llamafactory_are_converted(data, tmp_path, capfd):
    folder = data / "reasoning" / "llamafactory"
    with inside(tmp_path):
        for name, n in (("alpaca_en_demo.json", 999), ("reason_tool_use_demo_50.jsonl", 50), ("mllm_video_demo.json", 3)):
            assert say(f"kvtools convert {folder / name} -o c.kvs --force", capfd).code == 0
            assert json.loads(say("kvtools info --json c.kvs", capfd).out)["records"] == n
            assert len(open_conversations("c.kvs").conversations) == n
