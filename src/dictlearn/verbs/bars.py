"""Progress bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID

from dictlearn import escape
from dictlearn.types import NamedProgress


@contextmanager
def bars(instead: str | None = None) -> Iterator[NamedProgress]:
    """Yields a function that shows how far each stage of the work is.

    Where stderr is no terminal, `instead` is said, or, if it is None, the name of each stage. So it is
    in runs that share a process: a terminal shows one bar at a time.
    """
    console = escape.console(stderr=True)
    drawn = console.is_terminal and threading.current_thread() is threading.main_thread()
    if instead and not drawn:
        escape.say(instead)
    with Progress(console=console, transient=True, disable=not drawn) as shown:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(escape.markup(stage), total=total)
                if instead is None and not drawn:
                    escape.say(stage)
            shown.update(tasks[stage], completed=done, total=total)

        yield progress
