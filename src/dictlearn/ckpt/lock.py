"""One run per folder: two writers would destroy each other's checkpoints and metrics."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

LOCK = ".lock"

_held: set[Path] = set()  # the kernel's locks belong to a process: it never refuses itself


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` for this run; the kernel lets go of it when the process dies, however.

    So a lock is never stale, whatever became of the process ids: in a container they repeat.
    A POSIX record lock, which forked workers don't inherit and which works over NFS. Of a run's
    ranks the first holds it for all.

    Raises:
        ValueError: another run holds it; the sentence names its process and host.
        OSError: the folder cannot be written.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if path in _held:
        raise ValueError(f"run_dir={folder}: this process already trains in it; {_ADVICE}")
    descriptor = _acquire(path, folder)
    _held.add(path)
    try:
        os.ftruncate(descriptor, 0)
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        os.write(descriptor, json.dumps(owner).encode())
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # while we still hold it: see _acquire
        os.close(descriptor)
        with contextlib.suppress(OSError):  # a run that was refused leaves nothing
            for made in new:
                made.rmdir()


_ADVICE = "wait for it, stop it, or choose another name=..."


def _acquire(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = _owner(descriptor)
            os.close(descriptor)
            raise ValueError(f"run_dir={folder}: {owner} is training in it; {_ADVICE}") from None
        except OSError:
            os.close(descriptor)
            raise
        # The holder before us may have removed the file between our open and our lock: then we
        # hold a file that nobody else can see.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(owner['pid'])} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
