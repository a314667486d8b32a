"""The memory that kernels are given in these tests shows what they leave unwritten."""

from __future__ import annotations

import torch
from dictlearn_kernels import memory, rounded


def test_memory_of_our_package_is_poisoned():
    assert memory.kept(4, torch.float32).isnan().all()
    assert (memory.kept(4, torch.int64) == -(2**63)).all()
    assert (memory.kept(4, torch.uint8) == 255).all()
    copy = rounded.keep(torch.ones(3, 2), torch.float16)  # by empty_like and new_empty
    assert all(part.isnan().all() for part in copy)
