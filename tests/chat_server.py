"""A small OpenAI-compatible server in a thread, with faults on request, for tests of everything that asks judges and models.

with ChatServer(lambda body: "yes") as server:
    Endpoint([server.url])
"""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def text_of(body):
    """The text of the last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class ChatServer:
    """answer: the text for a request's body. fault: what goes wrong at the n-th call, from 0: a status, "cut" (the connection
    ends), "cut body", "hang" (no answer until the end), "rubbish" (no JSON), "no choices"; a dictionary is the error of a
    status 400; None for nothing. delay_s: of each
    answer. busy: the most calls that were open at once."""

    def __init__(self, answer=lambda body: "ok", *, fault=lambda n: None, delay_s=0.0, models=("tiny",), retry_after=None):
        self.answer, self.fault, self.delay_s, self.models, self.retry_after = answer, fault, delay_s, models, retry_after
        self.bodies, self.headers, self.faults, self.arrivals = [], [], [], []
        self.n_open = self.busy = 0
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def n_calls(self):
        return len(self.bodies)

    @property
    def texts(self):
        return [text_of(body) for body in self.bodies]

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in outer.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    fault = outer.fault(outer.n_calls)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.faults.append(fault)
                    outer.arrivals.append(time.monotonic())
                    outer.n_open += 1
                    outer.busy = max(outer.busy, outer.n_open)
                try:
                    if outer.delay_s:
                        outer.over.wait(outer.delay_s)
                    with contextlib.suppress(OSError):
                        self.respond(body, fault)
                finally:
                    with outer.lock:
                        outer.n_open -= 1

            def respond(self, body, fault):
                if fault in ("cut", "hang"):
                    if fault == "hang":
                        outer.over.wait()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif isinstance(fault, int):
                    self.send(fault, {"error": {"message": f"told to fail; your key is {self.headers['Authorization']}"}})
                elif isinstance(fault, dict):
                    self.send(400, {"error": {"message": "told to fail"} | fault})
                elif fault == "rubbish":
                    self.send(200, "<html>")
                elif fault == "no choices":
                    self.send(200, {"object": "error"})
                else:
                    message = {"role": "assistant", "content": outer.answer(body)}
                    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    reply = {
                        "id": "x",
                        "object": "chat.completion",
                        "model": body["model"],
                        "choices": [choice],
                        "usage": usage,
                    }
                    self.send(200, reply, is_cut=fault == "cut body")

            def send(self, status, reply, *, is_cut=False):
                data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status in (429, 503) and outer.retry_after is not None:
                    self.send_header("Retry-After", str(outer.retry_after))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if is_cut else data)
                if is_cut:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
