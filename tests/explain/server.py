"""A real HTTP server on loopback that speaks the OpenAI protocol, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """`faults` are taken one a request, then everything is answered."""

    answer: Callable[[dict[str, Any]], str]
    faults: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    delay: float = 0.0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.keys.append(request.headers.get("Authorization"))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.faults.pop(0) if self.faults else ""
        time.sleep(self.delay)
        try:
            self._respond(request, body, fault)
        finally:
            with self.lock:
                self.at_once -= 1

    def _respond(self, request: BaseHTTPRequestHandler, body: dict[str, Any], fault: str) -> None:
        if fault == "slow":
            time.sleep(1.0)
        status = int(fault) if fault.isdigit() else 200
        text = "" if status != 200 else self.answer(body)
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        reason = "length" if fault == "cut" else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        reply = {"choices": [{**choice, "finish_reason": reason}], "usage": usage}
        data = json.dumps(reply).encode() if status == 200 else b"no"
        if fault == "not json":
            data = b"<html>"
        request.send_response(status)
        if status == 429:
            request.send_header("Retry-After", "0.05")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2] if fault == "truncated" else data)
        if fault == "truncated":
            request.close_connection = True


@contextmanager
def serving(
    answer: Callable[[dict[str, Any]], str], faults: list[str] | None = None
) -> Iterator[Server]:
    server = Server(answer, list(faults or []))

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
