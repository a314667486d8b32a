"""A real HTTP server on loopback that speaks the OpenAI protocol, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: Any, usage: Any = None, finish: str = "stop", **message: Any) -> bytes:
    """The body of an answer."""
    said = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    counts = {"prompt_tokens": 10, "completion_tokens": 3} if usage is None else usage
    return json.dumps({"choices": [choice], "usage": counts}).encode()


@dataclass
class Reply:
    """One that is sent as it stands. `endless`: its body again and again, until the client goes."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    endless: bool = False
    pause: float = 0.0  # seconds between two pieces of an endless one


@dataclass
class Server:
    """`answer` gives a text, or a whole Reply. `faults` are taken one a request before that: words
    that are handled here, or a Reply."""

    answer: Callable[[dict[str, Any]], str | Reply]
    faults: Sequence[str | Reply] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    delay: float = 0.0
    url: str = ""
    sent: int = 0  # bytes of endless replies
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            fault = self.faults[len(self.bodies)] if len(self.bodies) < len(self.faults) else ""
            self.bodies.append(body)
            self.keys.append(request.headers.get("Authorization"))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        try:
            self._respond(request, body, fault)
        finally:
            with self.lock:
                self.at_once -= 1

    def _respond(
        self, request: BaseHTTPRequestHandler, body: dict[str, Any], fault: str | Reply
    ) -> None:
        if fault == "slow":
            time.sleep(1.0)
        reply = fault if isinstance(fault, Reply) else self._reply(body, fault)
        request.send_response(reply.status)
        for name, value in reply.headers.items():
            request.send_header(name, value)
        if reply.endless:
            request.end_headers()
            request.close_connection = True
            while self.sent < 2**30:  # the client is to go long before
                request.wfile.write(reply.body)
                self.sent += len(reply.body)
                time.sleep(reply.pause)
            return
        request.send_header("Content-Length", str(len(reply.body)))
        request.end_headers()
        half = reply.body[: len(reply.body) // 2]
        request.wfile.write(half if fault == "truncated" else reply.body)
        if fault == "truncated":
            request.close_connection = True

    def _reply(self, body: dict[str, Any], fault: str) -> Reply:
        if fault.isdigit():
            wait = {"Retry-After": "0.05"} if fault == "429" else {}
            return Reply(b"no", int(fault), wait)
        if fault == "not json":
            return Reply(b"<html>")
        answer = self.answer(body)
        if isinstance(answer, Reply):
            return answer
        return Reply(completion(answer, finish="length" if fault == "cut" else "stop"))


@contextmanager
def serving(
    answer: Callable[[dict[str, Any]], str | Reply], faults: Sequence[str | Reply] = ()
) -> Iterator[Server]:
    server = Server(answer, list(faults))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                server.handle(self)
            except (BrokenPipeError, ConnectionResetError):  # the client has gone
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
