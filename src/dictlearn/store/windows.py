"""The text that a harvest read, stored once; examples refer to positions in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredWindows:
    """W windows of P tokens, in the order they were read."""

    tokens: Tensor  # int32 [W, P]
    documents: Tensor  # int32 [W, P]: number of each token's document in the held-out stream
    numbers: Tensor  # int64 [W]: number of each row's window in the split

    def __len__(self) -> int:
        return len(self.numbers)
