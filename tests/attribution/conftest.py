"""Tests of this folder run where circuit-tracer is installed (`make test-attribution`), with what
dictlearn's own environment has trained and exported. Elsewhere there is nothing to collect."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("circuit_tracer") is None:
    collect_ignore_glob = ["test_*.py"]

ROOT = Path(__file__).parents[2]
DICTLEARN = os.environ.get("DICTLEARN_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dictionaries with their exports, and `ours.safetensors`."""
    folder = tmp_path_factory.mktemp("trained")
    paths = [str(ROOT / "src"), str(ROOT / "kernels")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ours = Path(__file__).with_name("ours.py")
    subprocess.run([DICTLEARN, str(ours), str(folder)], check=True, env=environment, cwd=folder)
    return folder
