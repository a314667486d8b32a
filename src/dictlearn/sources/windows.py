"""Batches of whole windows, for objectives that run the model on them; tokens are not shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.reader import Reader, Reading, WindowOrder, check_state, first_rows
from dictlearn.types import Batch, TextWindows


@final
class ShorterWindows:
    """Windows of P tokens, each cut into P / n consecutive windows of n tokens.

    They equal the windows of n tokens of the same text: windows that would contain only the padding
    of the last window are left out.
    """

    def __init__(self, windows: TextWindows, n: int):
        if n < 1 or windows.context % n:
            raise ValueError(
                f"source.window_tokens={n}: windows of data.context={windows.context} tokens are cut "
                f"into equal pieces; want a divisor of that, or null for whole windows"
            )
        self.context = n
        self._windows, self._per_window = windows, windows.context // n
        self._len = len(windows) * self._per_window
        if len(windows):
            last_P = windows.kept(torch.tensor([len(windows) - 1]))[0]
            padding = last_P.flip(0).long().argmax()  # 0 if there are only pads, which then stay
            self._len -= int(padding) // n

    def __len__(self) -> int:
        return self._len

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._pieces(self._windows.window_batch, indices)

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._pieces(self._windows.kept, indices)

    def _pieces(self, read: Callable[[Tensor], Tensor], indices: Sequence[int] | Tensor) -> Tensor:
        """Windows `indices` of what `read` returns for the long windows, [B, n]."""
        indices_B = torch.as_tensor(indices)
        long_BP = read(indices_B // self._per_window)
        pieces_BKn = long_BP.unflatten(1, (self._per_window, self.context))
        return pieces_BKn[torch.arange(len(indices_B)), indices_B % self._per_window]


@final
class WindowsSource:
    """Batches of `batch_tokens` / P windows, with the valid positions of the windows as rows.

    Rows are in reading order, without special tokens and pads, so a batch has slightly fewer than
    `batch_tokens`. Tokens of one window are correlated: to average over as many contexts as a
    shuffled batch, a batch must be larger or its windows shorter. The order of windows is a pure
    function of (seed, epoch), and the state is the number of batches taken.

    Args:
        windows: tokenised text.
        sources, targets: sites that x_NSD and y_NTD stack.
        batch_tokens: positions in a batch, a multiple of the windows' length P.
        window_tokens: P; longer windows are cut. None leaves them whole.
        nonfinite: "error", or "drop" to leave out tokens with NaN or Inf at any of the sites; in the
            model they stay as computed.

    Raises:
        ValueError: for sizes that don't fit, NaN or Inf in activations, a state of another stream.
    """

    reads_model = True
    gives_windows = True

    def __init__(
        self,
        lm: LanguageModel,
        windows: TextWindows,
        *,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        batch_tokens: int,
        seed: int,
        window_tokens: Count | None = None,
        nonfinite: Literal["error", "drop"] = "error",
    ):
        key, context = "data.context", windows.context
        if window_tokens is not None and window_tokens < context:
            windows, key = ShorterWindows(windows, window_tokens), "source.window_tokens"
        if batch_tokens % windows.context:
            raise ValueError(
                f"batch_tokens={batch_tokens}: its batches are whole windows of {key}="
                f"{windows.context} tokens; want a multiple of that, or another {key}"
            )
        self.sources = tuple(sources)
        self.targets = tuple(targets)
        self.batch_tokens = batch_tokens
        self._reader = Reader(
            lm, windows, list(dict.fromkeys(self.sources + self.targets)), nonfinite
        )
        self._order = WindowOrder(len(windows), seed)
        self._n_windows = len(windows)
        self._per_batch = batch_tokens // windows.context
        self._taken = 0
        self._rank, self._ranks = 0, 1
        # A state is valid only for a source with these values.
        self._stream = {
            "seed": seed,
            "data.windows": len(windows),
            "data.context": context,
            "source.window_tokens": windows.context,
            "batch_tokens": batch_tokens,
        }

    @property
    def width(self) -> int:
        return self._reader.lm.info.width

    @property
    def device(self) -> torch.device:
        return self._reader.lm.device

    def shard(self, rank: int, ranks: int) -> None:
        """Every rank takes each `ranks`-th batch."""
        self._rank, self._ranks = rank, ranks

    def next_batch(self) -> Batch:
        read, number = self._next_reading(self._taken)
        shape = read.tokens_BP.shape
        valid_M = torch.zeros(read.tokens_BP.numel(), dtype=torch.bool, device=self.device)
        valid_M[read.keep_N] = True
        self._taken = number + 1
        batch = read.batch(self.sources, self.targets)
        return batch._replace(tokens_BP=read.tokens_BP, valid_BP=valid_M.view(shape))

    def sample(self, n: int) -> Batch:
        def batch_from(number: int) -> tuple[Batch, int]:
            reading, number = self._next_reading(number)
            return reading.batch(self.sources, self.targets), number

        return first_rows(batch_from, n)

    def state(self) -> dict[str, int]:
        return {"batches": self._taken, **self._stream}

    def restore(self, state: dict[str, int]) -> None:
        check_state(self._stream, state)
        self._taken = state["batches"]

    def _next_reading(self, number: int) -> tuple[Reading, int]:
        """The first batch from `number` on that has a token to train on, and its number."""
        for later in range(number, number + self._n_windows + 1):
            start = (later * self._ranks + self._rank) * self._per_batch
            read = self._reader.read(later, self._order.span(start, start + self._per_batch))
            if len(read.keep_N):
                return read, later
        raise ValueError(
            f"data: {self._n_windows + 1} batches in a row hold no token to train on, only special "
            "tokens, pads and activations that source.nonfinite=drop dropped"
        )
