"""Shuffled tokens, and beside them whole windows for the last part of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Fraction
from dictlearn.sources.live import LiveSource
from dictlearn.sources.reader import WindowOrder
from dictlearn.sources.windows import WindowsSource
from dictlearn.types import Batch, TextWindows


@final
class Chosen:
    """Some windows of a text."""

    def __init__(self, windows: TextWindows, indices: Tensor):
        self.context = windows.context
        self._windows, self._indices = windows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._windows.window_batch(self._indices[torch.as_tensor(indices)])

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._windows.kept(self._indices[torch.as_tensor(indices)])


@final
class StagedSource:
    """`live`, and for the `last` part of a run a batch of `windows` beside each of its batches.

    Terms that run the model read the windows, all others the shuffled tokens: a batch of windows is
    correlated, and short windows lack the late positions of long ones, and either costs a squared
    error more than a KL gains. The windows are of the text that `live` reads in the run, no more.

    Args:
        steps, accumulate: optimiser steps of the run, and batches in one.
        last: fraction of the steps that get windows, between 0 and 1.
        window_tokens: length of these windows, cut from the text's, which `live` reads whole.
            None: they are whole too.
        live: the options of `live`; `nonfinite` is that of both.

    The state is that of both stages and how many batches were taken.
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
        steps: int,
        accumulate: int = 1,
        last: Fraction = 0.2,
        window_tokens: Count | None = None,
        buffer_tokens: Count = 65536,
        lm_batch_windows: Count = 16,
        nonfinite: Literal["error", "drop"] = "error",
        store_dtype: str = "model",
        batch_dtype: str = "float32",
        ahead: bool | Literal["auto"] = "auto",
    ):
        if not 0 < last < 1:
            raise ValueError(
                f"source.last={last}: want a fraction between 0 and 1; source=windows has windows "
                f"from the first step on, source=live never"
            )
        same: dict[str, Any] = {
            "sources": sources,
            "targets": targets,
            "batch_tokens": batch_tokens,
            "seed": seed,
            "nonfinite": nonfinite,
        }
        self._live = LiveSource(
            lm,
            windows,
            **same,
            buffer_tokens=buffer_tokens,
            lm_batch_windows=lm_batch_windows,
            store_dtype=store_dtype,
            batch_dtype=batch_dtype,
            ahead=ahead,
        )
        read = min(len(windows), -(-steps * accumulate * batch_tokens // windows.context))
        chosen = Chosen(windows, WindowOrder(len(windows), seed).span(0, read))
        self._windows = WindowsSource(lm, chosen, **same, window_tokens=window_tokens)
        self.sources, self.targets = self._live.sources, self._live.targets
        self.batch_tokens = batch_tokens
        self._first_window = (steps - max(1, round(last * steps))) * accumulate
        self._taken = 0

    @property
    def width(self) -> int:
        return self._live.width

    @property
    def device(self) -> torch.device:
        return self._live.device

    def shard(self, rank: int, ranks: int) -> None:
        self._live.shard(rank, ranks)
        self._windows.shard(rank, ranks)

    def next_batch(self) -> Batch:
        beside = None if self._taken < self._first_window else self._windows.next_batch()
        batch = self._live.next_batch()._replace(beside=beside)
        self._taken += 1
        return batch

    def sample(self, n: int) -> Batch:
        return self._live.sample(n)

    def state(self) -> dict[str, int]:
        return {
            "batches": self._taken,
            **{f"live/{key}": value for key, value in self._live.state().items()},
            **{f"windows/{key}": value for key, value in self._windows.state().items()},
        }

    def restore(self, state: dict[str, int]) -> None:
        for name, stage in {"live": self._live, "windows": self._windows}.items():
            own = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{name}/")}
            stage.restore(own)
        self._taken = state["batches"]
