"""One writer at a time: two would destroy each other's checkpoints, counts and pages.

The kernel lets go of a lock when its process dies, however: so none is ever stale, whatever became of
the process ids, which repeat in a container. POSIX record locks, which forked workers don't inherit
and which work over NFS. Readers need none: what is read is whole or absent.
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

_held: set[Path] = set()  # the kernel's locks belong to a process: it never refuses itself


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` for this run. Of a run's ranks the first holds it for all.

    Raises:
        ValueError: another run holds it; the sentence names its process and host.
        OSError: the folder cannot be written.
    """

    def refusal(owner: str) -> str:
        what = "already trains in it" if owner == THIS_PROCESS else "is training in it"
        advice = "wait for it, stop it, or choose another name=..."
        return f"run_dir={folder}: {owner} {what}; {advice}"

    with _holding(folder, LOCK, refusal):
        yield


@contextlib.contextmanager
def writing(path: Path, verb: str, wait: bool = False) -> Iterator[None]:
    """Holds a file or folder that `verb` is about to write; the lock lies beside it.

    What dead processes left of it, and in it, is collected. With `wait` until nobody else holds it,
    for what may not fail by then, such as the end of a run.

    Raises:
        ValueError: another process writes it; the sentence names its process, host and verb.
        SaveError: the place cannot be written.
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
    with ensure_folder(folder):  # who was refused leaves nothing
        path = folder.resolve() / name
        if path in _held:
            raise ValueError(refusal(THIS_PROCESS))
        descriptor = _acquire(path, refusal)
        _held.add(path)
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "verb": verb}
            with contextlib.suppress(OSError):  # on a full disk it holds without saying for whom
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(owner).encode())
            yield
        finally:
            _held.discard(path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # while we still hold it: see _acquire
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
        # The holder before us may have removed the file between our open and our lock: then we
        # hold a file that nobody else can see.
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
