"""TextWindows through the language model: the sites' values, and which positions are fit to train on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from dictlearn.lm.capture import capture_inputs
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import resolve
from dictlearn.sources.buffer import permutation
from dictlearn.types import Batch, TextWindows

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """M = B * P positions, on the model's device; the rows to keep are N of them."""

    tokens_BP: Tensor  # int64
    values: dict[str, Tensor]  # by site, [M, D]
    keep_N: Tensor  # int64, ascending
    check: Callable[[], None] | None = None  # raises where a value kept is NaN or Inf; put off

    @property
    def tokens_N(self) -> Tensor:
        return self.tokens_BP.flatten()[self.keep_N]

    @property
    def positions_N(self) -> Tensor:
        return self.keep_N % self.tokens_BP.shape[1]

    def batch(self, sources: Sequence[str], targets: Sequence[str]) -> Batch:
        """The rows to keep, in float32."""

        def stacked(sites: Sequence[str]) -> Tensor:
            return torch.stack([self.values[site][self.keep_N] for site in sites], 1).float()

        targets_NTD = None if tuple(sources) == tuple(targets) else stacked(targets)
        return Batch(stacked(sources), targets_NTD, self.tokens_N, self.positions_N)


@final
class Reader:
    """Reads windows, which it is told by number, and leaves out what no dictionary should see.

    Args:
        nonfinite: "error", or "drop" to leave out tokens with NaN or Inf at any of the sites.
    """

    def __init__(self, lm: LanguageModel, windows: TextWindows, sites: list[str], nonfinite: str):
        if nonfinite not in ("error", "drop"):
            raise ValueError(f"source.nonfinite={nonfinite}: want error or drop")
        if len(windows) == 0:
            raise ValueError("data: there is no text to read, not one window of tokens")
        for site in sites:
            whose, name = lm.at(site)
            resolve(whose.model, name, whose.info)  # an unknown site is one before any work
        self.lm = lm
        self.dropped = 0  # tokens that nonfinite=drop left out in this process
        self._windows = windows
        self._sites = sites
        self._drop = nonfinite == "drop"
        self._counted = 0  # readings whose dropped tokens are in `dropped`

    def read(self, number: int, indices_B: Tensor, put_off: bool = False) -> Reading:
        """The windows of reading `number`; numbers tell one that is read again on resume.

        With `put_off` nothing waits for a GPU: whether all values are finite is left to `check`, but
        for nonfinite="drop", which must know what to keep.
        """
        tokens_BP = self._windows.window_batch(indices_B)
        keep_N = self._windows.kept(indices_B).flatten().nonzero().squeeze(1)
        inputs = self.lm.inputs(tokens_BP, self._sent)
        on_device_BP = inputs[self.lm.model.main_input_name]
        captured = capture_inputs(self.lm, inputs, self._sites)
        flat = {site: captured[site].flatten(0, 1) for site in self._sites}
        for site, values_MD in flat.items():
            if values_MD.shape[1] != self.lm.info.width:
                raise ValueError(
                    f"dict: site {site} is {values_MD.shape[1]} wide, and dictionaries of "
                    f"{self.lm.info.name} are {self.lm.info.width} wide"
                )
        if put_off and not self._drop:
            kept_N = self._sent(keep_N)
            sums = torch.stack([values.sum(1, dtype=torch.float32) for values in flat.values()])
            finite = sums.index_select(1, kept_N).isfinite().all()
            check = partial(self._check, finite, number, indices_B)
            return Reading(on_device_BP, flat, kept_N, check)
        # Extremes are NaN where any value is; a dozen times faster than looking at every value.
        extremes = torch.stack([torch.stack(values.aminmax()) for values in flat.values()])
        if not extremes.isfinite().all():
            keep_N = self._without_nonfinite(number, flat, indices_B, tokens_BP, keep_N)
        return Reading(on_device_BP, flat, self._sent(keep_N))

    def _check(self, finite: Tensor, number: int, indices_B: Tensor) -> None:
        """Reads again what has a row whose sum is not finite: whether a value is, and which."""
        if not finite:
            self.read(number, indices_B)

    def _sent(self, tensor: Tensor) -> Tensor:
        """Moves a tensor to the model's device; to a GPU without waiting, from pinned memory."""
        if self.lm.device.type != "cuda":
            return tensor.to(self.lm.device)
        return tensor.pin_memory().to(self.lm.device, non_blocking=True)

    def _without_nonfinite(
        self,
        number: int,
        flat: dict[str, Tensor],
        indices_B: Tensor,
        tokens_BP: Tensor,
        keep_N: Tensor,
    ) -> Tensor:
        bad_SN = torch.stack([~values.isfinite().all(1) for values in flat.values()]).cpu()[
            :, keep_N
        ]
        bad_N = bad_SN.any(0)
        if bad_N.any() and not self._drop:
            first = int(bad_N.nonzero()[0])
            site = self._sites[int(bad_SN[:, first].nonzero()[0])]
            window, position = divmod(int(keep_N[first]), tokens_BP.shape[1])
            raise ValueError(
                f"source.nonfinite=error: NaN or Inf in {site} at position {position} of window "
                f"{int(indices_B[window])} (token id {int(tokens_BP[window, position])}), one of "
                f"{int(bad_N.sum())} such tokens in this LM batch of {len(keep_N)}; "
                f"source.nonfinite=drop leaves them out"
            )
        if number >= self._counted:
            before, self.dropped = self.dropped, self.dropped + int(bad_N.sum())
            self._counted = number + 1
            if self.dropped.bit_length() > before.bit_length():  # says so at 1, 2, 4, 8, ...
                log.warning("source.nonfinite=drop: %d tokens with NaN or Inf so far", self.dropped)
        return keep_N[~bad_N]


@final
class WindowOrder:
    """Epoch after epoch of windows, each in its own order, a pure function of (seed, epoch)."""

    def __init__(self, n_windows: int, seed: int):
        if seed < 0:
            raise ValueError(f"seed={seed}: want 0 or more")
        self._n = n_windows
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)  # of `_epoch`, the one in use

    def span(self, start: int, stop: int) -> Tensor:
        """TextWindows at places start to stop - 1 of the endless sequence, int64 [stop - start]."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self._n)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self._n, self._seed, 2, epoch)
            parts.append(self._order[place : place + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)
