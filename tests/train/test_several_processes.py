"""Processes with a share of a batch each have gradients, metrics and counters of one with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/ddp_table.py"
# Each gets its number from all processes in another way.
CASES = (
    "sae / topk / mse on windows",  # unequal shares
    "sae / jumprelu / kl",  # L0's target, KL's balance
    "sae / topk / ce",  # tokens that another one follows
    "sae / topk / mse_then_kl",  # windows beside shuffled tokens
    "matryoshka / batchtopk / mse",  # the budget
    "clt / topk / e2e",  # the scale of later layers
    "skip_transcoder / gated / mse",
    "crosscoder / jumprelu_tanh / mse",
)


def test_unequal_shares_are_one_batch():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), "--only", *CASES],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if " / " in line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.partition(":")[0] for line in lines} == set(CASES)  # and none was refused
    assert all(line.count("e-") == 2 for line in lines)
