"""Servers that answer questions, caches of their answers, and benchmarks other than KC-MMBench."""

import json
from pathlib import Path

GOOD = {"index": 1, "question": "Which?", "A": "x", "B": "y", "answer": "A"}
ROWS = {
    "no-answer": {"answer": None},
    "no-question": {"question": ""},
    "one-option": {"B": None},
    "other-answer": {"answer": "C"},
    "eleven": {"A": None, "B": None, "options": [*map(str, range(11))]},
    "damaged": {"image": "x" * 101 + "!"},
}


def furnish():
    Path("predictions.jsonl").write_text('{"task": "CPV", "index": 3}\n')
    for name, change in ROWS.items():
        Path(f"choice-{name}.jsonl").write_text(json.dumps(GOOD | change))
    Path("choice-twice.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    Path("choice-none.jsonl").touch()
    Path("choice-list.jsonl").write_text("[1]")
    for folder in ("empty-bench", "temp", "temp-bare"):
        Path(folder).mkdir()
    Path("temp/yes_no.json").write_text("[1]")
    Path("temp-bare/yes_no.json").write_text('{"v": {"action": [{"question": "Why?"}]}}')


CASES = """
kvtools.keye.endpoint.wire.api_root("localhost:8000")
kvtools.keye.endpoint.wire.api_root("http://me:word@host/v1")
kvtools.keye.endpoint.cache.AnswerCache("predictions.jsonl")
kvtools.keye.endpoint.request.Request([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]).wire_messages()
kvtools.keye.endpoint.request.Request([{"role": "user", "content": [{"type": "image", "image": "a.jpg"}]}]).wire_messages()
kvtools.keye.endpoint.wire._answer_of({"choices": [{"message": {"content": [1]}}]})
chat("hang")
chat("cut")
chat("rubbish")
chat(404)
kvtools.keye.bench.choice.read_questions("choice-no-answer.jsonl")
kvtools.keye.bench.choice.read_questions("choice-no-question.jsonl")
kvtools.keye.bench.choice.read_questions("choice-one-option.jsonl")
kvtools.keye.bench.choice.read_questions("choice-other-answer.jsonl")
kvtools.keye.bench.choice.read_questions("choice-eleven.jsonl")
kvtools.keye.bench.choice.read_questions("choice-damaged.jsonl")
kvtools.keye.bench.choice.read_questions("choice-twice.jsonl")
kvtools.keye.bench.choice.read_questions("choice-none.jsonl")
kvtools.keye.bench.choice.read_questions("choice-list.jsonl")
kvtools.keye.bench.choice.find_sources("empty-bench")
kvtools.keye.bench.tempcompass.read_questions("empty-bench")
kvtools.keye.bench.tempcompass.read_questions("temp")
kvtools.keye.bench.tempcompass.read_questions("temp-bare")
[*kvtools.keye.bench.tempcompass.read_predictions("temp-bare/yes_no.json", "yes_no")]
"""
