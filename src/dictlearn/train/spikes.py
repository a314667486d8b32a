"""Loss spikes: a batch so unlike those before it that its step is not taken."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

WINDOW = 128  # accepted steps to compare with; before there are so many, nothing is a spike


@final
class Spikes(nn.Module):
    """Says whether a loss or a gradient's norm is above mean + `sigma` standard deviations.

    Of the last WINDOW accepted steps of one dictionary. What it remembers is in buffers, and so in every
    checkpoint. `stage` is any number that changes where the loss becomes another one, such as when terms
    begin that read windows: comparison begins anew there.
    """

    recent_2W: Tensor  # float64: loss, norm; the oldest is overwritten
    count: Tensor  # int64: accepted steps of this stage
    stage: Tensor  # int64

    def __init__(self, sigma: float):
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"spike_sigma={sigma}: want a positive number, or null for no policy")
        self.sigma = sigma
        self.register_buffer("recent_2W", torch.zeros(2, WINDOW, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def found(self, loss: float, norm: float, stage: int = 0) -> bool:
        if int(self.count) < WINDOW or stage != int(self.stage):
            return False
        limits_2 = self.recent_2W.mean(1) + self.sigma * self.recent_2W.std(1)
        return bool((limits_2.new_tensor([loss, norm]) > limits_2).any())

    def accept(self, loss: float, norm: float, stage: int = 0) -> None:
        """Remembers a step that was taken."""
        if stage != int(self.stage):
            self.count.zero_()
            self.stage.fill_(stage)
        place = int(self.count) % WINDOW
        self.recent_2W[:, place] = self.recent_2W.new_tensor([loss, norm])
        self.count += 1
