"""A number on which processes agree in every step, without waiting for each other."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from dictlearn.sparsity import ranks


@final
class Agreed:
    """The largest of the numbers that processes ask for in a step.

    `ask` starts to reduce them before the optimiser's step and `told` reads the result after it. On a
    GPU the number is on the host by then: the training module has read the gradient's norm in between.
    """

    def __init__(self) -> None:
        self._number = torch.zeros(1, dtype=torch.int32)
        self._pending: Any = None  # a reduction on the CPU, or the event after one on the GPU

    def ask(self, number: int) -> None:
        self._number = torch.tensor([number], dtype=torch.int32)
        if not ranks.several():
            return
        if dist.get_backend() != "nccl":
            self._pending = dist.all_reduce(self._number, dist.ReduceOp.MAX, async_op=True)
            return
        on_gpu = self._number.cuda(non_blocking=True)
        dist.all_reduce(on_gpu, dist.ReduceOp.MAX)
        self._number, self._pending = _on_the_way(on_gpu)

    def told(self) -> int:
        """The largest number of the latest `ask`; all processes get the same."""
        if isinstance(self._pending, torch.cuda.Event):
            self._pending.synchronize()
        elif self._pending is not None:
            self._pending.wait()
        self._pending = None
        return int(self._number)


def _on_the_way(on_gpu: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A copy on the host, and the event after which it is there."""
    copy = torch.empty_like(on_gpu, device="cpu", pin_memory=True)
    copy.copy_(on_gpu, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event
