"""The held-out windows that a harvest reads, in batches that processes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from dictlearn.features.settings import Settings
from dictlearn.store.windows import StoredWindows
from dictlearn.types import DocumentWindows


@final
@dataclass(frozen=True, eq=False)
class Text:
    """Windows evenly spread over the held-out split, numbered from 0 as rows.

    They are spread because neighbouring windows come from the same documents. A batch of windows goes
    through the model together and is never split, so its activations are the same in every process.
    """

    windows: DocumentWindows
    settings: Settings

    def __post_init__(self) -> None:
        if len(self.windows) == 0:
            raise ValueError("data: the held-out split has no text; raise data.held_out")

    def __len__(self) -> int:
        return min(-(-self.settings.tokens // self.windows.context), len(self.windows))

    @property
    def context(self) -> int:
        return self.windows.context

    @property
    def n_batches(self) -> int:
        return -(-len(self) // self.settings.batch_windows)

    def rows(self, batch: int) -> range:
        size = self.settings.batch_windows
        return range(batch * size, min((batch + 1) * size, len(self)))

    def numbers(self, rows: range) -> list[int]:
        """Numbers of the rows' windows in the split."""
        return [row * len(self.windows) // len(self) for row in rows]

    def stored(self) -> StoredWindows:
        """All windows of the text, as a store keeps them."""
        numbers = self.numbers(range(len(self)))
        return StoredWindows(
            self.windows.window_batch(numbers).to(torch.int32),
            self.windows.documents(numbers).to(torch.int32),
            torch.tensor(numbers),
        )
