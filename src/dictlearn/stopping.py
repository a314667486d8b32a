"""SIGTERM and Ctrl-C outside training's steps: clean up, say how to go on, exit with 143 or 130.

During training train/callbacks/signals.py handles the signals: it finishes a step and saves it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

from dictlearn import escape

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOTHING = "nothing was written"
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # from schedulers, some time before they end a job
STATUSES = tuple(128 + n for n in (signal.SIGINT, signal.SIGTERM, *WARNINGS))  # of stopped programs
_warned: int | None = None  # the first of WARNINGS that came
_begun = False  # whether a verb has begun since `listening`


class Stopped(SystemExit):
    """Raised by SIGTERM, so that cleanup code runs."""


@contextmanager
def at_once() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM end the process at once; for imports, before anything is written.

    An exception would not do: some libraries catch exceptions while they are imported.
    """
    with _answered(signal.SIGINT, _leave), _answered(signal.SIGTERM, _leave):
        yield


@contextmanager
def noting_warnings() -> Iterator[None]:
    """A scheduler's warning ends nothing by itself; training saves and stops after its next step."""
    first, second = WARNINGS
    with _answered(first, _note), _answered(second, _note):
        yield


def warned() -> int | None:
    """The warning of a scheduler that has come in this process, if any."""
    return _warned


def _note(signum: int, frame: FrameType | None) -> None:
    global _warned
    _warned = _warned or signum


@contextmanager
def listening() -> Iterator[None]:
    """Turns SIGTERM into `Stopped`; a second one ends the process at once.

    It handles stops before a verb begins, and between two runs of a multirun: nothing is lost then.
    """
    global _begun
    _begun = False
    with _answered(signal.SIGTERM, _stop):
        try:
            yield
        except (Stopped, KeyboardInterrupt) as stop:
            raise SystemExit(_stopped_by(stop, "what was begun before is there" * _begun)) from None


@contextmanager
def _answered(
    number: signal.Signals, answer: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # other threads cannot set handlers
        yield
        return
    before = signal.signal(number, answer)
    try:
        yield
    finally:
        signal.signal(number, before)


def _leave(signum: int, frame: FrameType | None) -> None:
    escape.say(f"stopped by {signal.Signals(signum).name}; {NOTHING}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signum)


def _stopped_by(stop: BaseException, rest: str) -> int:
    """Says what stopped the process and `rest`; returns the exit status."""
    number = signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first of a run's processes speaks for all
        escape.say(f"stopped by {number.name}; {rest or NOTHING}")
    return 128 + number


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)
    raise Stopped(128 + signum)


def begin() -> None:
    """From here on something may have been written."""
    global _begun
    _begun = True


@contextmanager
def told(verb: str, cfg: DictConfig) -> Iterator[None]:
    """If the verb inside is stopped, says how to go on and exits with 143 or 130."""
    begin()
    try:
        yield
    except (Stopped, KeyboardInterrupt) as stop:
        raise SystemExit(_stopped_by(stop, _goes_on(verb, cfg))) from None


def _goes_on(verb: str, cfg: DictConfig) -> str:
    if verb == "train":
        return import_module("dictlearn.verbs.continued").goes_on(cfg)
    if verb in ("features", "explain"):
        return "the same command goes on from what is saved"
    return "nothing is left half-written, and the same command starts again"
