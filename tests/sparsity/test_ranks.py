"""Two processes with a share each of a batch do what one does with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.sparsity.ranks_worker import CASES, gradients


@pytest.fixture(scope="module")
def shares(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(Path(__file__).with_name("ranks_worker.py")), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [subprocess.Popen([*command, str(r), "2"], env=environment) for r in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in CASES if name != "tied"])
def test_the_batch_is_that_of_all_processes(shares, name):
    whole = gradients(name, 0, 1)
    parts = [share[name] for share in shares]
    assert torch.equal(torch.cat([part.pop("code") for part in parts]) > 0, whole.pop("code") > 0)
    if name == "l0 target":
        for part in parts:
            torch.testing.assert_close(part["loss"], whole["loss"])
    del whole["loss"]
    for key, expected in whole.items():
        mean = (parts[0][key] + parts[1][key]) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")


def test_ties_do_not_exceed_the_budget(shares):
    assert sum(int((share["tied"]["code"] > 0).sum()) for share in shares) == 3 * 48
