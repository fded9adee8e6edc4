"""Does the client keep a server as busy as it was asked to? A Markdown table on stdout.

A server in a process of its own answers each call after a fixed delay. Busy: the mean number of calls that the server had open,
over the concurrency, from the first call until the last request was taken up; what remains then cannot fill the server. Three
kinds of requests: text, text and a JPEG file of 640 by 360 in base64, and text with a fifth of the calls failing (status 500).

Usage: endpoint.py [CONCURRENCY:DELAY_S:REQUESTS]...
"""

import asyncio
import io
import json
import multiprocessing
import random
import resource
import sys
import time

import numpy as np
from PIL import Image

from kvtools.keye.endpoint.endpoint import Endpoint
from kvtools.keye.endpoint.request import Request

CASES = ["8:0.5:240", "32:0.5:960", "64:1:1280", "128:1:2560"]


def serve(pipe, delay_s, failing):
    """A server that says, when told to stop, when each call began and ended."""
    rng, calls = random.Random(0), []

    async def talk(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            n_bytes = int(next((x.split(b":")[1] for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")), 0))
            begin = time.monotonic()
            await reader.readexactly(n_bytes)
            is_post = head.startswith(b"POST")
            await asyncio.sleep(delay_s if is_post else 0)
            reply = (
                {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]} if is_post else {"data": [{"id": "m"}]}
            )
            status = b"500 No" if is_post and rng.random() < failing else b"200 OK"
            body = json.dumps(reply).encode()
            head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            writer.write(head + body)
            await writer.drain()
            if is_post:
                calls.append((begin, time.monotonic()))

    async def main():
        async def quiet(reader, writer):
            try:
                await talk(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(quiet, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        pipe.send(calls)

    asyncio.run(main())


def requests(n, kind, taken):
    """n requests. taken: a list into which the time goes when the last one has been taken up."""
    buffer = io.BytesIO()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 64, 3), dtype=np.uint8))
    noise.resize((640, 360)).save(buffer, "jpeg", quality=90)
    for i in range(n):
        parts = [{"type": "text", "text": f"question {i}"}]
        if kind == "picture":
            parts.insert(0, {"type": "image", "image": buffer.getvalue()})
        yield Request([{"role": "user", "content": parts}])
    taken.append(time.monotonic())


def measured(concurrency, delay_s, n, kind):
    here, there = multiprocessing.Pipe()
    failing = 0.2 if kind == "failing" else 0.0
    process = multiprocessing.Process(target=serve, args=(there, delay_s, failing), daemon=True)
    process.start()
    used_s, taken = resource.getrusage(resource.RUSAGE_SELF).ru_utime, []
    with Endpoint([f"http://127.0.0.1:{here.recv()}/v1"], "m", concurrency=concurrency) as endpoint:
        n_answers = sum(reply.fault is None for reply in endpoint.ask_all(requests(n, kind, taken)))
    assert n_answers == n, "no sample is lost"
    here.send("stop")
    calls = here.recv()
    cpu_ms = 1000 * (resource.getrusage(resource.RUSAGE_SELF).ru_utime - used_s) / len(calls)
    first, last = min(begin for begin, _ in calls), taken[0]
    open_s = sum(max(0.0, min(end, last) - begin) for begin, end in calls)
    return open_s / (concurrency * (last - first)), len(calls) / (max(end for _, end in calls) - first), cpu_ms


def main():
    import openai  # noqa: F401 loading it is not what is measured

    print("| calls at once | delay | requests | kind | busy | calls/s | processor ms a call |\n|---|---|---|---|---|---|---|")
    for case in sys.argv[1:] or CASES:
        concurrency, delay_s, n = (float(word) for word in case.split(":"))
        for kind in ("text", "picture", "failing"):
            busy, rate, cpu_ms = measured(int(concurrency), delay_s, int(n), kind)
            row = f"| {concurrency:.0f} | {delay_s:g} s | {n:.0f} | {kind} | {busy:.1%} | {rate:.0f} | {cpu_ms:.1f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
