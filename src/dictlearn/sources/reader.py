"""Runs the language model on windows: values of the sites, and which positions to train on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from dictlearn.lm.capture import capture_inputs, stack_sites
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import resolve
from dictlearn.sources.buffer import permutation
from dictlearn.types import Batch, TextWindows

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """The values at M = B * P positions, on the model's device; N of them are kept."""

    tokens_BP: Tensor  # int64
    values: dict[str, Tensor]  # by site, [M, D]
    keep_N: Tensor  # int64, ascending
    check: Callable[[], None] | None = None  # raises if a kept value is NaN or Inf

    @property
    def tokens_N(self) -> Tensor:
        return self.tokens_BP.flatten()[self.keep_N]

    @property
    def positions_N(self) -> Tensor:
        return self.keep_N % self.tokens_BP.shape[1]

    def batch(self, sources: Sequence[str], targets: Sequence[str]) -> Batch:
        """The kept rows, in float32."""
        x_NSD, targets_NTD = stack_sites(self.values, self.keep_N, sources, targets)
        return Batch(x_NSD, targets_NTD, self.tokens_N, self.positions_N)


@final
class Reader:
    """Reads windows by number, and leaves out special tokens and pads.

    Args:
        nonfinite: "error", or "drop" to leave out tokens with NaN or Inf at any of the sites.
    """

    def __init__(self, lm: LanguageModel, windows: TextWindows, sites: list[str], nonfinite: str):
        if nonfinite not in ("error", "drop"):
            raise ValueError(f"source.nonfinite={nonfinite}: want error or drop")
        if len(windows) == 0:
            raise ValueError("data: there is no text to read, not one window of tokens")
        for site in sites:
            model, name = lm.at(site)
            resolve(model.model, name, model.info)  # refuse an unknown site before any work
        self.lm = lm
        self.dropped = 0  # tokens that nonfinite=drop left out in this process
        self._windows = windows
        self._sites = sites
        self._drop = nonfinite == "drop"
        self._counted = 0  # readings that `dropped` includes

    def read(self, number: int, indices_B: Tensor, defer_check: bool = False) -> Reading:
        """Reads windows. A `number` that was read before (on resume) is not counted in `dropped` again.

        With `defer_check` nothing waits for a GPU: the reading's `check` looks for NaN and Inf later,
        except for nonfinite="drop", which must know them now.
        """
        tokens_BP = self._windows.window_batch(indices_B)
        keep_N = self._windows.kept(indices_B).flatten().nonzero().squeeze(1)
        inputs = self.lm.inputs(tokens_BP, self._send)
        on_device_BP = inputs[self.lm.model.main_input_name]
        captured = capture_inputs(self.lm, inputs, self._sites)
        values = {site: captured[site].flatten(0, 1) for site in self._sites}
        for site, values_MD in values.items():
            if values_MD.shape[1] != self.lm.info.width:
                raise ValueError(
                    f"dict: site {site} is {values_MD.shape[1]} wide, and dictionaries of "
                    f"{self.lm.info.name} are {self.lm.info.width} wide"
                )
        if defer_check and not self._drop:
            kept_N = self._send(keep_N)
            sums = torch.stack([v_MD.sum(1, dtype=torch.float32) for v_MD in values.values()])
            finite = sums.index_select(1, kept_N).isfinite().all()
            check = partial(self._check, finite, number, indices_B)
            return Reading(on_device_BP, values, kept_N, check)
        # One NaN makes both extremes NaN; this is a dozen times faster than isfinite on every value.
        extremes = torch.stack([torch.stack(v_MD.aminmax()) for v_MD in values.values()])
        if not extremes.isfinite().all():
            keep_N = self._without_nonfinite(number, values, indices_B, tokens_BP, keep_N)
        return Reading(on_device_BP, values, self._send(keep_N))

    def _check(self, finite: Tensor, number: int, indices_B: Tensor) -> None:
        """Reads the windows again if the sum of a row is not finite, to name the value that isn't."""
        if not finite:
            self.read(number, indices_B)

    def _send(self, tensor: Tensor) -> Tensor:
        """Moves a tensor to the model's device; a copy to a GPU is not waited for."""
        if self.lm.device.type != "cuda":
            return tensor.to(self.lm.device)
        return tensor.pin_memory().to(self.lm.device, non_blocking=True)

    def _without_nonfinite(
        self,
        number: int,
        values: dict[str, Tensor],
        indices_B: Tensor,
        tokens_BP: Tensor,
        keep_N: Tensor,
    ) -> Tensor:
        bad_SM = torch.stack([~values_MD.isfinite().all(1) for values_MD in values.values()])
        bad_SN = bad_SM.cpu()[:, keep_N]
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
            if self.dropped.bit_length() > before.bit_length():  # warns at 1, 2, 4, 8, ...
                log.warning("source.nonfinite=drop: %d tokens with NaN or Inf so far", self.dropped)
        return keep_N[~bad_N]


def first_rows(batch_from: Callable[[int], tuple[Batch, int]], n: int) -> Batch:
    """The first n rows; `batch_from(i)` is the first batch from number i on, and its number."""
    batches: list[Batch] = []
    number = 0
    while sum(len(batch.x_NSD) for batch in batches) < n:
        batch, last = batch_from(number)
        batches.append(batch)
        number = last + 1
    targets = [batch.targets_NTD for batch in batches if batch.targets_NTD is not None]
    return Batch(
        torch.cat([batch.x_NSD for batch in batches]),
        torch.cat(targets) if targets else None,
        torch.cat([batch.tokens_N for batch in batches]),
        torch.cat([batch.positions_N for batch in batches]),
    ).rows(0, n)


def check_state(settings: dict[str, int], state: dict[str, int]) -> None:
    """Raises ValueError unless `state` was saved by a source with the same settings."""
    for key, value in settings.items():
        if state[key] != value:
            raise ValueError(
                f"{key}={value}: the run to resume had {state[key]}, and its stream of activations "
                f"continues only with that"
            )


@final
class WindowOrder:
    """The order of windows: each epoch has its own, a pure function of (seed, epoch)."""

    def __init__(self, n_windows: int, seed: int):
        if seed < 0:
            raise ValueError(f"seed={seed}: want 0 or more")
        self._n = n_windows
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)  # the order of `_epoch`

    def span(self, start: int, stop: int) -> Tensor:
        """Windows start to stop - 1 of the endless sequence, int64 [stop - start]."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self._n)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self._n, self._seed, 2, epoch)
            parts.append(self._order[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)
