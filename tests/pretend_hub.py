"""A hub of our own on this machine, with one repository, for the tests."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository, owner/tiny, on branch main."""

    files: dict[str, bytes]
    status: int = 200
    error: str = ""
    message: str = ""
    asked: list[str] = field(default_factory=list)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            _, _, name = path.partition("/resolve/")
            name = name.partition("/")[2]
            listing = [
                {"type": "file", "path": p, "size": len(c), "oid": f"{i:040x}"}
                for i, (p, c) in enumerate(hub.files.items())
            ]
            if hub.status != 200:
                self.reply(hub.status, b"", hub.error, body)
            elif (
                path.startswith("/api/models/owner/tiny/revision/")
                or path == "/api/models/owner/tiny"
            ):
                siblings = [{"rfilename": p, "size": len(c)} for p, c in hub.files.items()]
                about = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}
                self.reply(200, json.dumps(about).encode(), "", body)
            elif path.startswith("/api/models/owner/tiny/tree/"):
                self.reply(200, json.dumps(listing).encode(), "", body)
            elif name in hub.files:
                self.reply(200, hub.files[name], "", body)
            else:
                self.reply(404, b"", "EntryNotFound", body)

        def reply(self, status: int, content: bytes, error: str, body: bool) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:08x}"')
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            if error:
                self.send_header("X-Error-Code", error)
            if hub.message:
                self.send_header("X-Error-Message", hub.message)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def empty_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no offline switch; the hub itself is a closed port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    _point_at(monkeypatch, port)
    return folder


@contextmanager
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The repository is there while the block runs. Wants an `empty_cache`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    _point_at(monkeypatch, server.server_address[1])
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def _point_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
