"""Kernels of Triton against the references: interpreted on a CPU, for real where there is a GPU."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@pytest.fixture(autouse=True, scope="session")
def runnable() -> None:
    assert INTERPRETED or torch.cuda.is_available(), (
        "without a GPU these tests want Triton's interpreter, which must be chosen before triton is "
        "imported and changes it for the whole process; run them alone, as "
        "TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted"
    )


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")
