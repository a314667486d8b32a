"""What every test gets: one thread, no network, a fixed seed, and the code of scripts/."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # no test signs with its user's own key

import pytest
import torch

from tests.command_line import command, runs

__all__ = ["command", "runs"]

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # no package holds it


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
