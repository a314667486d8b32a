"""Loss spikes: a batch so unlike those before it that its step is not taken."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

WINDOW = 128  # accepted steps to compare with; with fewer, nothing is a spike


@final
class Spikes(nn.Module):
    """Says whether a loss or a gradient's norm is above mean + `sigma` standard deviations.

    Both are those of the last WINDOW accepted steps of one dictionary. They are in buffers, and so in
    every checkpoint. `stage` is a number that changes when the loss gets other terms, such as those that
    read windows: comparison begins anew there.
    """

    recent_2W: Tensor  # float64: loss, norm; the oldest is overwritten
    count: Tensor  # int64: accepted steps of this stage
    stage: Tensor  # int64

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma
        self.register_buffer("recent_2W", torch.zeros(2, WINDOW, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def is_spike(self, loss: float, norm: float, stage: int = 0) -> bool:
        if int(self.count) < WINDOW or stage != int(self.stage):
            return False
        limits_2 = self.recent_2W.mean(1) + self.sigma * self.recent_2W.std(1)
        return bool((limits_2.new_tensor([loss, norm]) > limits_2).any())

    def accept(self, loss: float, norm: float, stage: int = 0) -> None:
        """Records a step that was taken."""
        if stage != int(self.stage):
            self.count.zero_()
            self.stage.fill_(stage)
        index = int(self.count) % WINDOW
        self.recent_2W[:, index] = self.recent_2W.new_tensor([loss, norm])
        self.count += 1
