"""Processes to kill, forked from one server that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

Start = Callable[..., ForkServerProcess]


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ckpt_worker"])
    with pytest.MonkeyPatch.context() as environment:
        # before Python 3.13 the server imports from its own path, and says nothing if it cannot
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


@pytest.fixture
def start(server: ForkServerContext) -> Iterator[Start]:
    """start(function of ckpt_worker, *arguments): a process, which dies with the test."""
    processes = []

    def launch(function: Callable[..., None], *arguments: Any, **options: Any) -> ForkServerProcess:
        process = server.Process(target=function, args=arguments, kwargs=options)
        process.start()
        processes.append(process)
        return process

    yield launch
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def wait_for() -> Callable[[Path], None]:
    """Waits until a file exists."""

    def wait(path: Path) -> None:
        end = time.monotonic() + 120  # a busy machine imports slowly
        while not path.exists():
            assert time.monotonic() < end, f"{path} never came"
            time.sleep(2e-3)

    return wait
