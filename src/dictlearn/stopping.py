"""SIGTERM and Ctrl-C outside training's steps: clean up, say what goes on, exit as a shell expects.

Within training the signals are its own (train/callbacks/signals.py): there a step is finished and saved.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

from omegaconf import DictConfig

from dictlearn import escape


class Stopped(SystemExit):
    """Raised where the process is when SIGTERM comes, so that whatever is half done is cleaned up."""


@contextmanager
def listening() -> Iterator[None]:
    """Turns SIGTERM into `Stopped`; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # others can't
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)
    raise Stopped(128 + signum)


@contextmanager
def told(verb: str, cfg: DictConfig) -> Iterator[None]:
    """Says what goes on from here when the verb inside is stopped, and exits with 143 or 130."""
    try:
        yield
    except (Stopped, KeyboardInterrupt) as stop:
        number = signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT
        if (
            os.environ.get("LOCAL_RANK", "0") == "0"
        ):  # the first of a run's processes speaks for all
            escape.say(f"stopped by {number.name}; {_goes_on(verb, cfg)}")
        raise SystemExit(128 + number) from None


def _goes_on(verb: str, cfg: DictConfig) -> str:
    if verb == "train":
        return import_module("dictlearn.verbs.continued").goes_on(cfg)
    if verb in ("features", "explain"):
        return "the same command goes on from what is saved"
    return "nothing is left half-written, and the same command starts again"
