"""The processes of a run watch each other: one that fails or is killed ends all, with one sentence."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, final

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from dictlearn import config, escape

GRACE = 3.0  # seconds for a process to leave by itself, before its watcher ends it
PATIENCE = 3.0  # seconds to hear whether another's end was the reason of an error
STATUS = 2


@final
class Peers(Callback):
    """Connects every process to the first one for as long as training lasts.

    The kernel closes the connections of a process that dies, so the others hear of it at once, from
    whatever it died. They may wait for it in a reduction, on NCCL for half an hour: a thread ends
    them. What a process says when it fails goes to the first one, which says it for all.
    """

    def __init__(self) -> None:
        self._rank = 0
        self._links: dict[int, socket.socket] = {}  # by the rank at the other end
        self._left: set[int] = set()  # ranks that are done
        self._failed: str | None = None  # why the run ends, by the first that said so
        self._ended = threading.Event()  # that reason, if it is another process's, is said
        self._gone = threading.Event()  # the main thread is on its way out
        self._lock = threading.Lock()

    # --- in the main thread -------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects. All processes call it together."""
        if trainer.world_size == 1:
            return
        self._rank = trainer.global_rank
        self._links = _hub(trainer.world_size) if self._rank == 0 else _member()
        for rank in self._links:
            threading.Thread(target=self._watch, args=(rank,), daemon=True).start()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tells the others, unless one of them is the reason."""
        if not self._links or isinstance(exception, SystemExit | KeyboardInterrupt):
            return
        mistake = isinstance(exception, ValueError | OSError)
        if not mistake and self._ended.wait(PATIENCE):
            return
        sentence = config.sentence(exception)  # type: ignore[arg-type]
        if self._rank == 0:
            if self._first_to_fail(sentence):
                self._send_all({"ended": True})
                threading.Thread(target=self._end, args=(sentence,), daemon=True).start()
            return
        if not mistake:
            traceback.print_exception(exception)
            sentence = f"process {self._rank}: {type(exception).__name__}: {sentence}"
        self._send(0, {"failed": sentence})
        self._ended.wait(GRACE)  # the first process says the sentence

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Around `Trainer.fit`: exits without a word where another process's sentence has been said."""
        try:
            yield
        except Exception:
            if self._ended.is_set():
                raise SystemExit(STATUS) from None
            raise
        finally:
            self._gone.set()
            self._leave()

    def _leave(self) -> None:
        if self._rank == 0 or not self._ended.is_set():
            self._send_all({"left": True})
        else:  # the first process goes first: a launcher would kill it if another were gone before
            threading.Event().wait(0.5)
        for link in self._links.values():
            with suppress(OSError):
                link.shutdown(socket.SHUT_WR)

    # --- in the threads that watch ------------------------------------------------------------

    def _watch(self, rank: int) -> None:
        """Reads what the process `rank` says, to the end of the connection."""
        with suppress(OSError, ValueError), self._links[rank].makefile() as lines:
            for line in lines:
                said = json.loads(line)
                if "failed" in said:
                    self._fail(str(said["failed"]))
                elif "ended" in said:
                    self._ended.set()
                    self._end()
                elif "left" in said:
                    self._left.add(rank)
        if rank not in self._left and not self._gone.is_set():
            killed = f"process {rank} of the run has ended without a word: killed, or out of memory"
            self._fail(f"{killed}; resume=auto continues from the latest checkpoint")

    def _fail(self, sentence: str) -> None:
        """Ends the run because of another process."""
        if not self._first_to_fail(sentence) or self._ended.is_set():
            return
        if self._rank <= 1:  # the second says it if the first is gone
            escape.say(sentence)
        if self._rank == 0:
            self._send_all({"ended": True})
        self._ended.set()
        self._end()

    def _first_to_fail(self, sentence: str) -> bool:
        with self._lock:
            first = self._failed is None
            self._failed = self._failed or sentence
        return first

    def _end(self, unsaid: str | None = None) -> None:
        """Ends the process if it doesn't leave by itself, after a sentence that it has not said yet."""
        if not self._gone.wait(GRACE):
            if unsaid is not None:
                escape.say(unsaid)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(STATUS)

    def _send_all(self, what: dict[str, Any]) -> None:
        for rank in self._links:
            self._send(rank, what)

    def _send(self, rank: int, what: dict[str, Any]) -> None:
        with suppress(OSError):
            self._links[rank].sendall(json.dumps(what).encode() + b"\n")


def _hub(ranks: int) -> dict[int, socket.socket]:
    """The first process's connections to all others."""
    hosts: list[Any] = [None] * ranks
    dist.all_gather_object(hosts, socket.gethostname())
    here = "127.0.0.1" if len(set(hosts)) == 1 else ""
    with socket.create_server((here, 0)) as server:
        password = secrets.token_hex()
        where = here or os.environ.get("MASTER_ADDR", hosts[0])
        dist.broadcast_object_list([where, server.getsockname()[1], password])
        links: dict[int, socket.socket] = {}
        while len(links) < ranks - 1:
            link, _ = server.accept()
            rank, _, given = _first_line(link).partition(" ")
            if secrets.compare_digest(given, password):
                links[int(rank)] = link
            else:
                link.close()
    return links


def _member() -> dict[int, socket.socket]:
    """Another process's connection to the first."""
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    found: list[Any] = [None] * 3
    dist.broadcast_object_list(found)
    host, port, password = found
    link = socket.create_connection((host, port))
    link.sendall(f"{dist.get_rank()} {password}\n".encode())
    return {0: link}


def _first_line(link: socket.socket) -> str:
    """What a stranger says first, up to the length of what is expected."""
    link.settimeout(10)
    text = b""
    with suppress(OSError):
        while len(text) < 200 and not text.endswith(b"\n"):
            if not (read := link.recv(1)):
                break
            text += read
    link.settimeout(None)
    return text.decode(errors="replace").strip()
