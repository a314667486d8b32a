"""What tests of kernels share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch) -> None:
    """New memory of our package holds NaN, or an impossible integer, until something writes to it.

    A kernel that leaves a part of its output unwritten is otherwise right by luck: memory that was
    never used holds zeros.
    """
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))


def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocated(*args: Any, **kwargs: Any) -> Tensor:
        memory = allocate(*args, **kwargs)
        if torch.compiler.is_compiling():
            return memory
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return poison(memory) if caller.startswith("dictlearn") else memory

    return allocated


def poison(memory: Tensor) -> Tensor:
    if memory.dtype == torch.bool:
        return memory
    floating = memory.is_floating_point() or memory.is_complex()
    worst = torch.nan if floating else torch.iinfo(memory.dtype).min
    with torch.no_grad():
        return memory.fill_(worst or 255)  # no unsigned byte is impossible, but few are 255


@pytest.fixture(params=[1, 3], ids=["one_thread", "three_threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
