"""Activations as the language model computes them: nothing is stored, and no epoch repeats."""

from __future__ import annotations

import logging
from typing import Protocol, final

import torch
from torch import Tensor

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import resolve
from dictlearn.sources.buffer import Read, ShuffleBuffer, permutation
from dictlearn.types import Batch

log = logging.getLogger(__name__)

DTYPES = {"model": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Windows(Protocol):
    """Tokenised text in windows of one length."""

    @property
    def context(self) -> int:
        """P, tokens per window."""
        ...

    def __len__(self) -> int: ...

    def window_batch(self, indices: Tensor) -> Tensor:
        """Token ids of some windows, int64 [B, P]."""
        ...

    def valid(self, tokens_BP: Tensor) -> Tensor:
        """bool [B, P]: True where a token is neither special nor a pad."""
        ...


@final
class LiveSource:
    """Tokens through the language model, then through a shuffle buffer.

    The order of windows is a pure function of (seed, epoch) and the order of tokens one of (seed,
    round of the buffer), so that a state is a handful of integers. Resuming runs the language model
    again on what was waiting in the buffer, in the same batches of windows, and so to the same bits
    on a CPU.

    Memory: never more than `buffer_tokens` rows and one LM batch, on the model's device.

    Args:
        windows: tokenised text. Special tokens and pads are read by the model, then left out.
        sources, targets: sites that x_NSD and y_NTD stack. Where a site is in both and they are
            not equal, it is stored twice.
        batch_tokens: N, rows in every batch.
        buffer_tokens: rows that are shuffled together; half of them are new after each refill.
        lm_batch_windows: windows in one forward of the language model.
        nonfinite: "error", or "drop" to leave out tokens with NaN or Inf at any of the sites.
        store_dtype: of the buffer, "model" for the dtype in which the model computes.
        batch_dtype: of the batches, "model" to leave them as they are stored.

    Raises:
        ValueError: for sizes that don't fit, NaN or Inf in activations, a state of another stream.
    """

    reads_model = True

    def __init__(
        self,
        lm: LanguageModel,
        windows: Windows,
        *,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        batch_tokens: int,
        seed: int,
        buffer_tokens: int = 65536,
        lm_batch_windows: int = 16,
        nonfinite: str = "error",
        store_dtype: str = "model",
        batch_dtype: str = "float32",
    ):
        for key, value in {"store_dtype": store_dtype, "batch_dtype": batch_dtype}.items():
            if value not in DTYPES:
                raise ValueError(f"source.{key}={value}: want one of {', '.join(DTYPES)}")
        if nonfinite not in ("error", "drop"):
            raise ValueError(f"source.nonfinite={nonfinite}: want error or drop")
        if seed < 0:
            raise ValueError(f"seed={seed}: want 0 or more")
        if lm_batch_windows < 1:
            raise ValueError(f"source.lm_batch_windows={lm_batch_windows}: want 1 or more")
        if buffer_tokens < batch_tokens:
            raise ValueError(
                f"source.buffer_tokens={buffer_tokens} is smaller than batch_tokens={batch_tokens}:"
                f" want a buffer that holds at least one batch"
            )
        lm_batch_tokens = lm_batch_windows * windows.context
        if buffer_tokens < 2 * lm_batch_tokens:
            raise ValueError(
                f"source.buffer_tokens={buffer_tokens} is too small for source.lm_batch_windows="
                f"{lm_batch_windows} of {windows.context} tokens each, which go into half of it: "
                f"want source.buffer_tokens={2 * lm_batch_tokens} or more, or fewer windows"
            )
        if len(windows) == 0:
            raise ValueError("data: there is no text to read, not one window of tokens")

        self.sources = tuple(sources)
        self.targets = tuple(targets)
        self.batch_tokens = batch_tokens
        self.dropped = 0  # tokens that nonfinite=drop left out in this process
        self._sites = list(dict.fromkeys(self.sources + self.targets))
        for site in self._sites:
            resolve(lm.model, site, lm.info)  # an unknown site is known to be one before any work
        self._lm = lm
        self._windows = windows
        self._order = WindowOrder(len(windows), seed)
        self._lm_batch_windows = lm_batch_windows
        self._drop = nonfinite == "drop"
        self._counted = 0  # LM batches whose dropped tokens are in `dropped`
        self._buffer = ShuffleBuffer(
            self._read,
            reads_per_chunk=buffer_tokens // 2 // lm_batch_tokens,
            rows_per_read=lm_batch_tokens,
            seed=seed,
            device=lm.device,
            dtype=DTYPES[store_dtype],
            out_dtype=DTYPES[batch_dtype],
        )
        self._rank, self._ranks = 0, 1
        # What must be equal for a state to mean the same place in the same stream.
        self._stream = {
            "seed": seed,
            "data.windows": len(windows),
            "data.context": windows.context,
            "source.lm_batch_windows": lm_batch_windows,
            "source.lm_batches_per_refill": self._buffer.reads_per_chunk,
        }

    @property
    def width(self) -> int:
        return self._lm.info.width

    @property
    def device(self) -> torch.device:
        return self._lm.device

    def shard(self, rank: int, ranks: int) -> None:
        """Every rank takes each `ranks`-th LM batch, and shuffles its own."""
        if (rank, ranks) != (self._rank, self._ranks):
            self._rank, self._ranks = rank, ranks
            self._buffer.restore(*self._buffer.position)  # what it holds is another rank's

    def next_batch(self) -> Batch:
        return self._batch(self.batch_tokens, from_start=False)

    def sample(self, n: int) -> Batch:
        """See `Source.sample`. Before the first batch, half a buffer costs no extra forward."""
        return self._batch(n, from_start=True)

    def state(self) -> dict[str, int]:
        round_, taken = self._buffer.position
        return {"round": round_, "taken": taken, **self._stream}

    def restore(self, state: dict[str, int]) -> None:
        for key, value in self._stream.items():
            if state[key] != value:
                raise ValueError(
                    f"{key}={value}: the run to resume had {state[key]}, "
                    f"and without that its stream of activations cannot go on"
                )
        self._buffer.restore(state["round"], state["taken"])

    def _batch(self, n: int, from_start: bool) -> Batch:
        rows = self._buffer.peek(n) if from_start else self._buffer.take(n)
        return Batch(rows.groups[0], rows.groups[-1], rows.tokens_N, rows.positions_N)

    def _read(self, number: int) -> Read:
        """LM batch `number` of this rank's share of the endless sequence."""
        start = (number * self._ranks + self._rank) * self._lm_batch_windows
        indices_B = self._order.span(start, start + self._lm_batch_windows)
        tokens_BP = self._windows.window_batch(indices_B)
        keep_N = self._windows.valid(tokens_BP).flatten().nonzero().squeeze(1)
        captured = capture(self._lm, tokens_BP.to(self.device), self._sites)
        flat = {site: captured[site].flatten(0, 1) for site in self._sites}
        for site, values_MD in flat.items():
            if values_MD.shape[1] != self.width:
                raise ValueError(
                    f"dict: site {site} is {values_MD.shape[1]} wide, and dictionaries of "
                    f"{self._lm.info.name} are {self.width} wide"
                )
        # Extremes are NaN where any value is; a dozen times faster than looking at every value.
        extremes = torch.stack([torch.stack(values.aminmax()) for values in flat.values()])
        if not extremes.isfinite().all():
            keep_N = self._without_nonfinite(number, flat, indices_B, tokens_BP, keep_N)
        positions_M = torch.arange(tokens_BP.shape[1]).repeat(len(tokens_BP))
        groups = [self.sources] if self.sources == self.targets else [self.sources, self.targets]
        return Read(
            [[flat[site] for site in sites] for sites in groups],
            keep_N.to(self.device),
            tokens_BP.flatten()[keep_N].to(self.device),
            positions_M[keep_N].to(self.device),
        )

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
        self._n = n_windows
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)  # of `_epoch`, the one in use

    def span(self, start: int, stop: int) -> Tensor:
        """Windows at places start to stop - 1 of the endless sequence, int64 [stop - start]."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self._n)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self._n, self._seed, 2, epoch)
            parts.append(self._order[place : place + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)
