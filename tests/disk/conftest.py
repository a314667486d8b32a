"""What a process that is dead would have been called."""

from __future__ import annotations

import subprocess

import pytest

from dictlearn.disk import leftovers


@pytest.fixture(scope="session")
def dead() -> str:
    """The ending of a dead process's temporary names, on this machine."""
    process = subprocess.Popen(["true"])
    process.wait()
    return f"{process.pid}-1-{leftovers._machine()}"
