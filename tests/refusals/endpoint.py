"""Servers that answer questions, and caches of their answers."""

from pathlib import Path


def furnish():
    Path("predictions.jsonl").write_text('{"task": "CPV", "index": 3}\n')


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
"""
