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
    Path("choice-cut.json").write_text("[1")
    Path("choice-ragged.tsv").write_text("index\tquestion\tA\tB\tanswer\n1\tWhy\n")
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
faulty("choice-no-answer.jsonl")
faulty("choice-no-question.jsonl")
faulty("choice-one-option.jsonl")
faulty("choice-other-answer.jsonl")
faulty("choice-eleven.jsonl")
faulty("choice-damaged.jsonl")
faulty("choice-twice.jsonl")
faulty("choice-list.jsonl")
faulty("choice-ragged.tsv")
kvtools.keye.bench.choice.ChoiceBench().read(["choice-none.jsonl"], needs_media=False)
kvtools.keye.bench.choice.ChoiceBench().read(["choice-cut.json"], needs_media=False)
kvtools.keye.bench.choice.ChoiceBench().read(["empty-bench"], needs_media=False)
kvtools.keye.bench.tempcompass.TempCompassBench().read(["empty-bench"], needs_media=False)
kvtools.keye.bench.tempcompass.TempCompassBench().read(["temp"], needs_media=False)
kvtools.keye.bench.tempcompass.TempCompassBench().read(["temp-bare"], needs_media=False)
"""
