"""Messages on long waits, and durations in words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dictlearn import escape

PATIENCE = 3.0  # seconds after which a wait is named


@contextmanager
def waiting_for(what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Says on stderr what the work inside is, if it takes longer than `patience` seconds."""
    timer = threading.Timer(patience, escape.say, [f"Waiting for {what}."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def duration(seconds: float) -> str:
    """A duration as text: under a second, 50 s, 3 min, 2 h 05 min, 4 d 3 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60:02d} min"
    return f"{int(days)} d {int(hours) % 24} h"
