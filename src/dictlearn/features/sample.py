"""All firings in some of the windows, which show the features that fire together.

Windows whose row is a multiple of 2^h * stride are kept. When they hold more firings than the limit,
h grows by one and half of them are dropped. The final h is the smallest that fits, in whatever order
windows were read, so the merged samples of several processes equal the sample of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor


@final
@dataclass(eq=False)
class Sampled:
    stride: int
    most: int  # firings that are kept
    keys: Tensor  # int64: feature * places + place
    values: Tensor  # float32
    context: int
    places: int  # number of places: windows * P

    @classmethod
    def empty(cls, stride: int, most: int, context: int, places: int) -> Self:
        keys = torch.zeros(0, dtype=torch.int64)
        return cls(stride, most, keys, torch.zeros(0), context, places)

    def update(self, keys: Tensor, values: Tensor) -> None:
        kept = self._keeps(keys)
        self.keys = torch.cat([self.keys, keys[kept]])
        self.values = torch.cat([self.values, values[kept]])
        while len(self.keys) > self.most and self.stride * self.context < self.places:
            self.stride *= 2
            kept = self._keeps(self.keys)
            self.keys, self.values = self.keys[kept], self.values[kept]

    def merge(self, other: Sampled) -> None:
        self.stride = max(self.stride, other.stride)
        mine = self._keeps(self.keys)
        self.keys, self.values = self.keys[mine], self.values[mine]
        self.update(other.keys, other.values)

    def rows(self) -> Tensor:
        """Rows of the windows that are kept, ascending."""
        return torch.arange(0, self.places // self.context, self.stride)

    def _keeps(self, keys: Tensor) -> Tensor:
        return keys % self.places // self.context % self.stride == 0
