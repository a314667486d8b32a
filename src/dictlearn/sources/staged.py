"""Shuffled tokens, with whole windows beside them in the last part of the run."""

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
class WindowSubset:
    """Some of the windows of a text."""

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
    """Batches of `live`; in the `last` part of a run each has a batch of `windows` beside it.

    Terms that run the model read the windows; all others read the shuffled tokens. The tokens of
    windows are correlated, and short windows lack the late positions of long ones; either would
    raise the squared error by more than the KL falls. The windows come from the text that `live`
    reads in the run.

    Args:
        steps, accumulate: optimiser steps of the run, and batches in one.
        last: fraction of the steps that get windows, between 0 and 1.
        window_tokens: length of these windows, which are cut from the text's; None leaves them
            whole. `live` always reads whole windows.
        nonfinite: as in both sources.

    The remaining arguments are those of `live`. The state consists of the states of both sources and
    the number of batches taken.
    """

    reads_model = True
    gives_windows = True
    elastic = False  # the step of the first windows is counted in batches of one process

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
        common: dict[str, Any] = {
            "sources": sources,
            "targets": targets,
            "batch_tokens": batch_tokens,
            "seed": seed,
            "nonfinite": nonfinite,
        }
        self._live = LiveSource(
            lm,
            windows,
            **common,
            buffer_tokens=buffer_tokens,
            lm_batch_windows=lm_batch_windows,
            store_dtype=store_dtype,
            batch_dtype=batch_dtype,
            ahead=ahead,
        )
        read = min(len(windows), -(-steps * accumulate * batch_tokens // windows.context))
        subset = WindowSubset(windows, WindowOrder(len(windows), seed).span(0, read))
        self._windows = WindowsSource(lm, subset, **common, window_tokens=window_tokens)
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
        for name, source in {"live": self._live, "windows": self._windows}.items():
            own = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{name}/")}
            source.restore(own)
        self._taken = state["batches"]
