"""`eval-kcmm` with models and judges behind real local servers, which fail as servers do."""

import json
import os
import random
import signal
import subprocess
import threading
import time

import pytest
from chat_server import ChatServer, text_of
from conftest import BIN, make_clip
from standin import make_clips, make_standin

from kvtools import cli, world
from kvtools.keye.endpoint import endpoint as pool

N = 8  # questions a task
KINDS = [500, 429, "cut", "cut body", "rubbish"]


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 2)
    return make_standin(folder, "standin", "-n", str(N))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pool, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(pool, "_NEVER_UP_S", 0.1)


def answer(body):
    """是 or 否 by the question and its first picture, in the form of a thinking model."""
    url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
    is_yes = (sum(url.encode()) + len(text_of(body))) % 2
    return f"<think>…</think><answer>\\boxed{{{'是' if is_yes else '否'}}}</answer>"


def verdict(body):
    return "回答正确" if len(text_of(body)) % 2 else "[是]"


def rows_of(capfd, *words):
    """(exit code, rows of the report without seconds, stderr)."""
    capfd.readouterr()
    code = cli.run(["eval-kcmm", *map(str, words), "--json"])
    out, err = capfd.readouterr()
    return code, [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in out.splitlines()], err


def n_distinct(server):
    """How many different questions a server has seen; equal ones are asked once."""
    return len({json.dumps(body["messages"]) for body in server.bodies})


def n_answers(server):
    return sum(fault is None for fault in server.faults)


def test_a_server_that_fails_a_fifth_of_its_calls_gives_the_report_of_one_that_does_not(standin, tmp_path, capfd):
    rng = random.Random(3)
    with (
        ChatServer(answer) as sound,
        ChatServer(answer, fault=lambda n: rng.choice(KINDS) if rng.random() < 0.2 else None) as weak,
    ):
        code, rows, _ = rows_of(capfd, standin, "--endpoint", sound.url)
        assert (code, sound.n_calls) == (0, n_distinct(sound))
        assert rows_of(capfd, standin, "--endpoint", weak.url)[:2] == (0, rows)
        assert n_answers(weak) == n_distinct(sound) < weak.n_calls
    assert {row["n"] for row in rows[:-1]} == {N}
    assert rows[-1]["task"] == "macro"


def test_a_killed_run_is_continued_without_asking_again(standin, tmp_path, capfd):
    with ChatServer(answer, delay_s=0.05) as server:
        words = [standin, "--endpoint", server.url, "--details", str(tmp_path / "d.jsonl"), "--concurrency", "4", "--json"]
        environment = os.environ | {"PYTHONPATH": ""}
        process = subprocess.Popen(
            [BIN / "kvtools", "eval-kcmm", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while server.n_calls < 3 * N:
            time.sleep(0.01)
        process.kill()
        process.wait()
        code, rows, err = rows_of(capfd, *words[:-1])
        assert (code, "answers of the stopped run are kept" in err) == (0, True)
        assert server.n_calls <= n_distinct(server) + 4  # what was in flight
        assert rows_of(capfd, *words[:-1])[1] == rows  # from the details alone
        assert server.n_calls <= n_distinct(server) + 4
        assert rows_of(capfd, standin, "--endpoint", server.url)[1] == rows


def test_questions_without_an_answer_are_named_and_asked_again_by_the_next_run(standin, tmp_path, capfd):
    with ChatServer(answer, fault=lambda n: 400 if n % 4 == 3 else None) as server:
        words = [standin, "--endpoint", server.url, "--details", tmp_path / "d.jsonl"]
        code, lost_rows, err = rows_of(capfd, *words)
        assert (code, "status 400 (" in err) == (74, True)
        assert sum(row["lost"] for row in lost_rows[:-1]) == 6 * N - sum(row["n"] for row in lost_rows[:-1]) > 0
        server.fault = lambda n: None
        n_before, n_lost = server.n_calls, n_distinct(server) - n_answers(server)
        code, rows, _ = rows_of(capfd, *words)
        assert (code, server.n_calls - n_before) == (0, n_lost)
        assert rows_of(capfd, standin, "--endpoint", server.url)[1] == rows


def test_a_server_that_is_down_is_said_in_a_few_lines_and_gives_no_figure(standin, capfd):
    code, rows, err = rows_of(capfd, standin, "--endpoint", "http://127.0.0.1:9/v1", "-q")
    assert (code, rows) == (74, [])
    assert len(err.splitlines()) == 5
    assert "the connection failed" in err
    assert err.endswith("no question has an answer, and there is nothing to report.\n")


def test_a_signal_ends_a_run_whose_server_hangs_and_the_answers_so_far_are_kept(standin, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(world, "_stop_signals", [])
    with ChatServer(answer, fault=lambda n: "hang" if n >= 10 else None) as server:

        def interrupt():
            while server.n_calls < 18:  # ten answers, and eight calls that hang
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=interrupt, daemon=True).start()
        begin = time.monotonic()
        code, _, err = rows_of(capfd, standin, "--endpoint", server.url, "--details", tmp_path / "d.jsonl")
        assert (code, time.monotonic() - begin < 30) == (75, True)
    assert "Run again to continue" in err
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) >= 10


def test_a_judge_that_is_down_is_said_in_a_few_lines_and_asked_again(standin, tmp_path, capfd):
    rows = [{"task": "SPU", "index": 9_000_000 + 5 * N + i, "prediction": "是。"} for i in range(N)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [standin, "--predictions", tmp_path / "p.jsonl", "--score", "reference", "--cache", tmp_path / "c"]
    code, report, err = rows_of(capfd, *words, "--judge", "http://127.0.0.1:9/v1", "-q")
    assert (code, len(err.splitlines())) == (74, 4)
    assert [report[0][name] for name in ("accuracy", "ci95", "n", "failures", "lost")] == [None, None, 0, 0, N]
    assert report[-1]["accuracy"] is None
    with ChatServer(lambda body: "是") as judge:
        code, report, _ = rows_of(capfd, *words, "--judge", judge.url)
    assert (code, report[0]["failures"], report[0]["accuracy"], judge.n_calls) == (0, 0, 0.5, 1)  # all ask the same


def test_judges_share_the_questions_and_are_never_asked_twice(standin, tmp_path, capfd):
    rng = random.Random(6)
    with ChatServer(answer) as model:
        rows_of(capfd, standin, "--endpoint", model.url, "--details", tmp_path / "d.jsonl")
    with ChatServer(verdict, fault=lambda n: "hang" if rng.random() < 0.2 else None) as one, ChatServer(verdict) as two:
        words = [standin, "--predictions", tmp_path / "d.jsonl", "--score", "reference", "--call-timeout", "0.3"]
        words += ["--judge", one.url, "--judge", two.url, "--cache", tmp_path / "c"]
        code, rows, _ = rows_of(capfd, *words)
        assert code == 0
        n_calls = one.n_calls + two.n_calls
        assert min(one.n_calls, two.n_calls) > 0
        assert rows_of(capfd, *words)[:2] == (0, rows)
        assert one.n_calls + two.n_calls == n_calls
    assert all(row["mode"] == "reference" for row in rows)


def test_the_key_is_sent_and_stored_nowhere(standin, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    monkeypatch.chdir(tmp_path)
    with ChatServer(answer, fault=lambda n: 401 if n == 7 else None) as server:
        words = [standin, "--endpoint", server.url, "--key-variable", "MY_KEY", "--details", "d.jsonl", "--cache", "c", "-v"]
        _, _, err = rows_of(capfd, *words)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
    assert "very-secret" not in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file() and b"very-secret" in path.read_bytes()] == []


def test_multiple_choice_questions_on_videos_of_which_one_is_missing_and_one_damaged(tmp_path, capfd):
    whole = make_clip(tmp_path / "a.mp4", n_frames=20).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    names = ["a.mp4", "cut.mp4", "a", "none.mp4"]
    rows = [
        {"question_id": str(n), "video": name, "question": f"Q{n}", "options": ["A. x", "B. y"], "answer": "AB"[n % 2]}
        for n, name in enumerate(names)
    ]
    (tmp_path / "quick.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with ChatServer(lambda body: "The answer is (A).") as server:
        words = [tmp_path / "quick.jsonl", "--bench", "choice", "--endpoint", server.url, "--frames", "3"]
        code, report, err = rows_of(capfd, *words)
    assert (code, report[0]["task"], report[0]["n"], report[0]["accuracy"], report[0]["excluded"]) == (65, "quick", 2, 1, 2)
    assert [name in err for name in names[1:4:2]] == [True, True]
    kinds = [[part["type"] for part in body["messages"][0]["content"]] for body in server.bodies]
    assert kinds == [["image_url"] * 3 + ["text"]] * 2


@pytest.mark.data
def test_tempcompass_from_its_published_predictions(data, capfd):
    folder = data / "video_qa_text" / "tempcompass"
    words = [folder, "--bench", "tempcompass"]
    for form in ("multi-choice", "yes_no"):
        words += ["--predictions", folder / f"predictions_video-llava_{form}.json"]
    for score in ("rules", "reference"):
        code, rows, _ = rows_of(capfd, *words, "--score", score)
        figures = {row["task"]: (row["n"], round(100 * row["accuracy"], 1), row["failures"]) for row in rows[:-1]}
        # 720 of 1,580 and 1,383 of 2,453 in the published verdicts
        assert (code, figures) == (0, {"multi-choice": (1580, 45.6, 0), "yes_no": (2453, 56.4, 0)})
