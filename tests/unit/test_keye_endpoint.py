import base64
import io
import json
import random
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest
from chat_server import ChatServer, text_of
from conftest import make_clip
from PIL import Image

from kvtools.keye.data.media import Media
from kvtools.keye.endpoint import endpoint as pool
from kvtools.keye.endpoint.cache import AnswerCache
from kvtools.keye.endpoint.conversation import request_of
from kvtools.keye.endpoint.endpoint import Endpoint
from kvtools.keye.endpoint.request import Request
from kvtools.keye.endpoint.wire import api_root

CLOSED = "http://127.0.0.1:9/v1"  # nobody listens there


def question(text, **options):
    return Request([{"role": "user", "content": text}], **options)


def questions(n):
    return [question(f"q{i}") for i in range(n)]


def echo(body):
    return f"re {text_of(body)}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pool, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(pool, "_NEVER_UP_S", 0.1)


def asked(server, n=60, **options):
    options = {"concurrency": 8, "timeout_s": 0.3} | options
    with Endpoint([server.url], **options) as endpoint:
        replies = sorted(endpoint.ask_all(questions(n)), key=lambda reply: reply.index)
    assert [reply.index for reply in replies] == list(range(n))
    return replies


def test_every_request_has_its_own_answer():
    with ChatServer(echo) as server:
        replies = asked(server)
    assert [reply.text for reply in replies] == [f"re q{i}" for i in range(60)]
    assert {(r.fault, r.finish, r.prompt_tokens, r.answer_tokens, r.n_calls) for r in replies} == {(None, "stop", 3, 2, 1)}
    assert server.n_calls == 60


@pytest.mark.parametrize("kind", [500, 503, 429, 408, "cut", "cut body", "hang", "rubbish", "no choices"])
def test_a_server_that_fails_a_fifth_of_its_calls_loses_no_sample(kind):
    rng = random.Random(4)
    with ChatServer(echo, fault=lambda n: kind if rng.random() < 0.2 else None) as server:
        replies = asked(server)
    assert [reply.text for reply in replies] == [f"re q{i}" for i in range(60)]
    assert server.n_calls > 60


def test_all_kinds_of_faults_at_once_over_three_servers_one_of_them_down():
    rng = random.Random(5)
    kinds = [500, 429, "cut", "cut body", "rubbish", "no choices"]
    fault = lambda n: rng.choice(kinds) if rng.random() < 0.4 else None  # noqa: E731
    with ChatServer(echo, fault=fault) as one, ChatServer(echo) as two:
        with Endpoint([one.url, CLOSED, two.url], concurrency=8, timeout_s=1) as endpoint:
            replies = {reply.index: reply.text for reply in endpoint.ask_all(questions(100))}
        assert replies == {i: f"re q{i}" for i in range(100)}
        assert min(one.n_calls, two.n_calls) > 20


def test_a_server_that_says_when_to_come_back_is_left_alone_until_then():
    with ChatServer(echo, fault=lambda n: 429 if n == 0 else None, retry_after=0.5) as server:
        assert asked(server, 1)[0].text == "re q0"
    assert server.arrivals[1] - server.arrivals[0] >= 0.5


def test_while_one_server_pauses_another_is_asked():
    with ChatServer(echo, fault=lambda n: 429, retry_after=60) as one, ChatServer(echo) as two:
        with Endpoint([one.url, two.url], concurrency=2) as endpoint:
            assert {reply.text for reply in endpoint.ask_all(questions(20))} == {f"re q{i}" for i in range(20)}
        assert one.n_calls <= 2


def test_servers_that_are_down_give_named_failures_soon():
    begin = time.monotonic()
    with Endpoint([CLOSED], concurrency=4) as endpoint:
        replies = list(endpoint.ask_all(questions(30)))
    assert time.monotonic() - begin < 5
    assert len(replies) == 30
    assert all(reply.text == "" and reply.fault.startswith(f"{CLOSED}: the connection failed") for reply in replies)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_call_that_would_fail_again_is_made_once(status):
    with ChatServer(fault=lambda n: status) as server:
        (reply,) = asked(server, 1)
    assert server.n_calls == 1
    assert reply.fault.startswith(f"{server.url}: status {status} (")


def test_the_key_is_sent_and_is_in_no_message_and_no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("THE_KEY", "sk-secret")
    cache = str(tmp_path / "c")
    with (
        ChatServer(fault=lambda n: 401 if n else None) as server,
        Endpoint([server.url], key_variable="THE_KEY", cache=cache) as endpoint,
    ):
        endpoint.ask(question("a"))
        reply = endpoint.ask(question("b"))
    assert [headers["authorization"] for headers in server.headers] == ["Bearer sk-secret"] * 2
    assert "told to fail; your key is Bearer …" in reply.fault
    assert "sk-secret" not in (tmp_path / "c").read_text()


@pytest.mark.parametrize("key", ["sk-secret", "sk-\"s\\e'cret&1", "sk-secret/+=="])
def test_a_server_that_says_the_key_is_not_quoted_with_it(monkeypatch, tmp_path, key):
    monkeypatch.setenv("THE_KEY", key)
    forms = (key, repr(key)[1:-1], json.dumps(key)[1:-1], quote(key, safe=""))
    cache = tmp_path / "c"
    told = ["; ".join(forms), {"message": f"{forms}", "echo": list(forms)}, {"message": "x" * 190 + key}]
    faults = [None, *told[1:]]
    with (
        ChatServer(lambda body: told[0], fault=lambda n: faults[n], models=(f"model-{key}",)) as server,
        Endpoint([server.url], key_variable="THE_KEY", cache=str(cache)) as endpoint,
    ):
        replies = [endpoint.ask(question(text)) for text in "abc"]
        names = endpoint.name_of_model()
    assert server.headers[0]["authorization"] == f"Bearer {key}"
    said = [*(f"{reply.text} {reply.fault}" for reply in replies), names, cache.read_text()]
    assert [(form, text) for form in forms for text in said if form in text] == []
    assert "…" in said[0]
    assert said[2].endswith("…)")


def test_a_word_that_is_no_key_may_be_in_an_answer(monkeypatch):
    monkeypatch.setenv("THE_KEY", "EMPTY")
    with ChatServer(lambda body: "EMPTY") as server, Endpoint([server.url], key_variable="THE_KEY") as endpoint:
        assert endpoint.ask(question("a")).text == "EMPTY"


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk one", "sk-schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_quoting_it(monkeypatch, key):
    monkeypatch.setenv("THE_KEY", key)
    with pytest.raises(ValueError, match="^the key in THE_KEY holds a blank, the end of a line or a letter that is not ASCII$"):
        Endpoint(["http://localhost:1"], key_variable="THE_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host/v1", "https://host/v1?key=hunter2", "http://host/v1#hunter2", "htps://user:hunter2@host",
        "user:hunter2@host:8000/v1", "http:/user:hunter2@host", "http://user:hunter2@[host", "http://:hunter2@host",
    ],
)  # fmt: skip
def test_an_address_that_holds_a_password_is_refused_without_quoting_it(url):
    with pytest.raises(ValueError, match="the address holds a password or a query, and would be recorded") as caught:
        Endpoint([url])
    assert "hunter2" not in str(caught.value)


def test_the_published_temperatures_follow_one_another_until_an_answer_is_of_the_form():
    answers = iter(["what?", "", "yes"])
    with ChatServer(lambda body: next(answers)) as server, Endpoint([server.url]) as endpoint:
        reply = endpoint.ask(question("q", accept="yes".__eq__, temperature_step=0.5, sampling={"temperature": 0}))
    assert [body["temperature"] for body in server.bodies] == [0, 0.5, 1.0]
    assert (reply.text, reply.temperature, reply.n_calls, reply.fault) == ("yes", 1.0, 3, None)


def test_rubbish_until_the_last_try_is_a_named_failure_and_is_not_asked_again(tmp_path):
    with ChatServer(lambda body: "hm") as server:
        for _ in range(2):
            with Endpoint([server.url], cache=str(tmp_path / "c")) as endpoint:
                reply = endpoint.ask(question("q", accept="yes".__eq__, temperature_step=0.5))
                assert reply.fault == "none of 5 tries gave an answer of the form that is needed"
        assert [body.get("temperature") for body in server.bodies] == [None, 0.5, 1.0, 1.5, 2.0]


def test_equal_questions_are_asked_once_unless_their_tags_differ():
    with ChatServer(echo, delay_s=0.05) as server, Endpoint([server.url]) as endpoint:
        assert len(list(endpoint.ask_all([question("same")] * 20))) == 20
        list(endpoint.ask_all([question("same", tag=str(i)) for i in range(3)]))
    assert server.n_calls == 4


def test_a_second_run_asks_nothing_and_answers_the_same(tmp_path):
    cache = str(tmp_path / "answers.jsonl")
    with ChatServer(echo) as server:
        first, again = asked(server, cache=cache), asked(server, cache=cache)
    assert server.n_calls == 60
    assert [reply.text for reply in again] == [reply.text for reply in first]
    assert {reply.n_calls for reply in again} == {0}
    with Endpoint([CLOSED], cache=cache) as endpoint:
        assert sorted(r.text for r in endpoint.ask_all(questions(60))) == sorted(r.text for r in first)


KILLED = """
import os, sys
from kvtools.keye.endpoint.conversation import request_of
from kvtools.keye.endpoint.endpoint import Endpoint
from kvtools.keye.endpoint.request import Request
with Endpoint([sys.argv[1]], concurrency=4, cache=sys.argv[2]) as endpoint:
    for n, reply in enumerate(endpoint.ask_all(Request([{"role": "user", "content": f"q{i}"}]) for i in range(60))):
        if n == 20:
            os.kill(os.getpid(), 9)
"""


def test_a_killed_run_loses_at_most_what_was_in_flight(tmp_path):
    cache = str(tmp_path / "answers.jsonl")
    with ChatServer(echo, delay_s=0.03) as server:
        done = subprocess.run([sys.executable, "-c", KILLED, server.url, cache], check=False)
        assert done.returncode == -9
        n_before = server.n_calls
        replies = asked(server, cache=cache)
        assert [reply.text for reply in replies] == [f"re q{i}" for i in range(60)]
        assert 60 <= server.n_calls <= 60 + 4
        assert n_before < 60


def test_a_cut_line_of_the_cache_is_passed_over_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(b'{"key": "a", "text": "1"}\n{"key": "b", "te')
    cache = AnswerCache(str(path))
    assert (cache.get("a"), cache.get("b")) == ({"text": "1"}, None)
    cache.put("c", {"text": "3"})
    assert AnswerCache(str(path)).get("c") == {"text": "3"}


def test_two_writers_of_one_cache_read_each_other(tmp_path):
    path = str(tmp_path / "c")
    caches = [AnswerCache(path), AnswerCache(path)]
    write = lambda n: [caches[n].put(f"{n}-{i}", {"text": "x" * 5000}) for i in range(100)]  # noqa: E731
    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(cache.get(f"{n}-{i}") for cache in caches for n in range(2) for i in range(100))
    assert len((tmp_path / "c").read_text().splitlines()) == 200


def test_what_is_no_cache_is_refused(tmp_path):
    (tmp_path / "c").write_text('{"task": "CPV", "index": 3}\n')
    with pytest.raises(ValueError, match="is not a cache of answers"):
        AnswerCache(str(tmp_path / "c"))


def test_pictures_and_frames_go_out_in_base64_in_their_order(tmp_path):
    frame = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(frame).save(tmp_path / "a.bmp")
    Image.fromarray(frame).save(tmp_path / "a.jpg")
    content = [
        {"type": "image", "image": frame},
        {"type": "image", "image": str(tmp_path / "a.bmp")},
        {"type": "text", "text": "now"},
        {"type": "image", "image": (tmp_path / "a.jpg").read_bytes()},
        {"type": "video", "video": [frame, frame]},
    ]
    with ChatServer() as server, Endpoint([server.url], "m") as endpoint:
        endpoint.ask(question(content))
    parts = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text", "image_url", "image_url", "image_url"]
    urls = [part["image_url"]["url"] for part in parts if "image_url" in part]
    assert [url.split(";")[0] for url in urls] == [f"data:image/{kind}" for kind in ("png", "png", "jpeg", "jpeg", "jpeg")]
    files = [base64.b64decode(url.split(",")[1]) for url in urls]
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(file))), frame) for file in files[:2])
    assert files[2] == (tmp_path / "a.jpg").read_bytes()
    assert server.bodies[0]["model"] == "m"


def test_a_conversation_is_sent_with_its_pictures_and_the_frames_of_its_video(tmp_path):
    make_clip(tmp_path / "a.mp4", n_frames=20)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    content = [
        {"type": "image", "image": "a.png"},
        {"type": "video", "video": "a.mp4", "frames": 3},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "?"},
    ]
    talks = [{"messages": [{"role": "user", "content": parts}]} for parts in (content[:2] + content[3:], content)]
    with ChatServer() as server, Endpoint([server.url]) as endpoint, Media([str(tmp_path)]) as media:
        replies = {reply.index: reply for reply in endpoint.ask_all(request_of(talk, media) for talk in talks)}
    (body,) = server.bodies
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"][:-1]]
    assert [url.split(";")[0][11:] for url in urls] == ["png", "jpeg", "jpeg", "jpeg"]
    assert base64.b64decode(urls[0].split(",")[1]) == (tmp_path / "a.png").read_bytes()
    assert replies[0].text == "ok"
    assert replies[1].fault.startswith("b.png: no record of that key, and no such file in")


def test_a_missing_picture_is_a_named_failure_of_its_request_alone():
    missing = question([{"type": "image", "image": "none.jpg"}, {"type": "text", "text": "?"}])
    with ChatServer(echo) as server, Endpoint([server.url]) as endpoint:
        faults = {reply.index: reply.fault for reply in endpoint.ask_all([question("a"), missing, question("b")])}
    assert faults == {0: None, 1: "none.jpg: no such file or directory", 2: None}


def test_the_model_is_the_first_that_the_server_lists_unless_it_is_named():
    with ChatServer(models=("big", "small")) as server:
        asked(server, 1)
        asked(server, 1, model="other")
    assert [body["model"] for body in server.bodies] == ["big", "other"]


def test_what_a_model_does_not_take_is_not_sent_to_it_again():
    refused = [{"code": f"unsupported_{w}", "param": p} for w, p in (("parameter", "max_tokens"), ("value", "temperature"))]
    with ChatServer(fault=lambda n: refused[n] if n < 2 else None) as server, Endpoint([server.url]) as endpoint:
        replies = [endpoint.ask(question(q, sampling={"max_tokens": 7, "temperature": 0})) for q in "ab"]
    assert [reply.fault for reply in replies] == [None, None]
    fields = [{name for name in body if name not in ("model", "messages")} for body in server.bodies]
    assert fields == [{"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"}] + [{"max_completion_tokens"}] * 2


def test_sampling_reaches_the_server_and_is_part_of_the_question():
    with ChatServer() as server, Endpoint([server.url]) as endpoint:
        for sampling in ({"max_tokens": 7, "top_k": 1}, {"max_tokens": 8, "top_k": 1}, {"max_tokens": 7, "top_k": 1}):
            endpoint.ask(question("q", sampling=sampling))
    assert [(body["max_tokens"], body["top_k"]) for body in server.bodies] == [(7, 1), (8, 1)]


def test_the_servers_are_as_busy_as_was_asked_and_never_busier():
    with ChatServer(delay_s=0.1) as server, Endpoint([server.url], concurrency=8) as endpoint:
        endpoint.ask(question("the client is loaded"))
        begin, before_s = time.monotonic(), endpoint.call_s
        list(endpoint.ask_all(questions(80)))
        share = (endpoint.call_s - before_s) / (8 * (time.monotonic() - begin))
    assert server.busy == 8
    assert share > 0.85  # bench/endpoint.py measures it; this machine may be busy with other tests


def test_asking_goes_on_while_the_caller_works_and_ends_when_it_stops():
    with ChatServer(echo) as server, Endpoint([server.url], concurrency=2) as endpoint:
        replies = endpoint.ask_all(questions(10))
        wait_until(lambda: server.n_calls == 10)
        assert len(list(replies)) == 10
        endless = endpoint.ask_all(question(f"e{i}") for i in range(10**9))
        next(endless)
        endless.close()
        wait_until(lambda: server.n_open == 0 and threading.active_count() < 20)


def wait_until(is_so):
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_list_of_requests_raises_is_raised_to_the_caller():
    def requests():
        yield question("a")
        raise RuntimeError("broken list")

    with ChatServer() as server, Endpoint([server.url]) as endpoint, pytest.raises(RuntimeError, match="broken list"):
        list(endpoint.ask_all(requests()))


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/openai/v2", "https://h/openai/v2"),
    ],
)
def test_addresses_as_users_write_them(url, root):
    assert api_root(url) == root


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://user:word@h", "http://h/v1?key=s", ""])
def test_addresses_that_are_none_or_would_be_recorded_with_a_key_are_refused(url):
    with pytest.raises(ValueError) as caught:
        api_root(url)
    assert "word@" not in str(caught.value)


def test_the_cache_is_json_lines(tmp_path):
    with ChatServer(lambda body: "是") as server, Endpoint([server.url], cache=str(tmp_path / "c")) as endpoint:
        endpoint.ask(question("q"))
    (line,) = (tmp_path / "c").read_text().splitlines()
    row = json.loads(line)
    assert len(row.pop("key")) == 32
    assert row == {"text": "是", "finish": "stop", "prompt_tokens": 3, "answer_tokens": 2}
