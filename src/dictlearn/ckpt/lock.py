"""Locks that allow one writer at a time for each run, file or folder.

These are POSIX record locks. The kernel releases one when its process dies, so no lock is ever stale;
forked workers don't inherit them, and they work over NFS. Readers need no lock, as files and folders
are replaced atomically.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from dictlearn.disk import leftovers
from dictlearn.disk.folders import ensure_folder
from dictlearn.disk.leftovers import shortened
from dictlearn.disk.whole import SaveError

LOCK = ".lock"

_held: set[Path] = set()  # the kernel doesn't refuse a lock that the process itself holds


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder; rank 0 holds it for all ranks.

    Raises:
        ValueError: another run holds it; the sentence names its process and host.
        OSError: the folder cannot be written.
    """

    def refusal(owner: str) -> str:
        verb = "already trains in it" if owner == THIS_PROCESS else "is training in it"
        return f"run_dir={folder}: {owner} {verb}; wait for it, stop it, or choose another name=..."

    with _holding(folder, LOCK, refusal):
        yield


@contextlib.contextmanager
def writing(path: Path, verb: str, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a file or folder that `verb` is about to write; the lock is beside it.

    Removes leftovers of dead processes. With `wait` it waits for another writer to finish, as the
    end of a run must not fail.

    Raises:
        ValueError: another process writes it; the sentence names its process, host and verb.
        SaveError: the lock cannot be written.
    """

    def refusal(owner: str) -> str:
        return f"{path}: {owner} is writing it; wait for it or stop it"

    while True:
        try:
            holding = _holding(path.parent, f".{shortened(path.name)}.lock", refusal, verb)
            holding.__enter__()
            break
        except OSError as error:
            raise SaveError(path, error) from error
        except ValueError:
            if not wait:
                raise
            time.sleep(0.2)
    with contextlib.ExitStack() as stack:
        stack.push(holding)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # who holds the lock
            leftovers.collect(path.parent, path.name, alone=True)
            leftovers.collect(path)
        yield


THIS_PROCESS = "this process"


@contextlib.contextmanager
def _holding(
    folder: Path, name: str, refusal: Callable[[str], str], verb: str | None = None
) -> Iterator[None]:
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    with ensure_folder(folder):  # a refusal leaves no new folder
        path = folder.resolve() / name
        if path in _held:
            raise ValueError(refusal(THIS_PROCESS))
        descriptor = _acquire(path, refusal)
        _held.add(path)
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "verb": verb}
            with contextlib.suppress(OSError):  # on a full disk the lock does not name its owner
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(owner).encode())
            yield
        finally:
            _held.discard(path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # before the lock is released, see _acquire
            os.close(descriptor)


def _acquire(path: Path, refusal: Callable[[str], str]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = _owner(descriptor)
            os.close(descriptor)
            raise ValueError(refusal(owner)) from None
        except OSError:
            os.close(descriptor)
            raise
        # The previous owner may have removed the file between our open and our lock. Then we have
        # locked a file that nobody else can open, and try again.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        verb = f" (dictlearn {owner['verb']})" if owner.get("verb") else ""
        return f"process {int(owner['pid'])} on {owner['host']}{verb}"
    except (ValueError, KeyError, TypeError):
        return "another process"
