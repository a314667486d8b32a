"""Activations as the language model computes them: nothing is stored, and no epoch repeats."""

from __future__ import annotations

from typing import Literal, final

import torch

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.buffer import Read, ShuffleBuffer
from dictlearn.sources.reader import Reader, WindowOrder
from dictlearn.types import Batch, TextWindows

DTYPES = {"model": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@final
class LiveSource:
    """Tokens through the language model, then through a shuffle buffer.

    The order of windows is a pure function of (seed, epoch) and the order of tokens one of (seed,
    round of the buffer), so that a state is a handful of integers. Resuming runs the language model
    again on what was waiting in the buffer, in the same batches of windows, and so to the same bits
    on a CPU.

    Memory: never more than `buffer_tokens` rows and one LM batch, on the model's device; two where it
    reads ahead.

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
        ahead: whether the model reads on while batches are taken, on a stream of its own: "auto" on
            a GPU, true or false. The batches are the same.

    Raises:
        ValueError: for sizes that don't fit, NaN or Inf in activations, a state of another stream.
    """

    reads_model = True
    gives_windows = False

    def __init__(
        self,
        lm: LanguageModel,
        windows: TextWindows,
        *,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        batch_tokens: int,
        seed: int,
        buffer_tokens: Count = 65536,
        lm_batch_windows: Count = 16,
        nonfinite: Literal["error", "drop"] = "error",
        store_dtype: str = "model",
        batch_dtype: str = "float32",
        ahead: bool | Literal["auto"] = "auto",
    ):
        lm_batch_tokens = lm_batch_windows * windows.context
        _check(buffer_tokens, batch_tokens, lm_batch_windows, windows.context)
        for key, value in {"store_dtype": store_dtype, "batch_dtype": batch_dtype}.items():
            if value not in DTYPES:
                raise ValueError(f"source.{key}={value}: want one of {', '.join(DTYPES)}")
        if ahead not in (True, False, "auto"):
            raise ValueError(f"source.ahead={ahead}: want auto, true or false")

        self.sources = tuple(sources)
        self.targets = tuple(targets)
        self.batch_tokens = batch_tokens
        sites = list(dict.fromkeys(self.sources + self.targets))
        self._reader = Reader(lm, windows, sites, nonfinite)
        self._order = WindowOrder(len(windows), seed)
        self._lm_batch_windows = lm_batch_windows
        self._ahead = lm.device.type == "cuda" if ahead == "auto" else bool(ahead)
        self._buffer = ShuffleBuffer(
            self._read,
            reads_per_chunk=buffer_tokens // 2 // lm_batch_tokens,
            rows_per_read=lm_batch_tokens,
            seed=seed,
            device=lm.device,
            dtype=DTYPES[store_dtype],
            out_dtype=DTYPES[batch_dtype],
            ahead=self._ahead,
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
        return self._reader.lm.info.width

    @property
    def device(self) -> torch.device:
        return self._reader.lm.device

    @property
    def dropped(self) -> int:
        """Tokens that nonfinite=drop left out in this process."""
        return self._reader.dropped

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
        x_NSD, *targets = rows.groups
        return Batch(x_NSD, targets[0] if targets else None, rows.tokens_N, rows.positions_N)

    def _read(self, number: int) -> Read:
        """LM batch `number` of this rank's share of the endless sequence."""
        start = (number * self._ranks + self._rank) * self._lm_batch_windows
        indices_B = self._order.span(start, start + self._lm_batch_windows)
        read = self._reader.read(number, indices_B, put_off=self._ahead)
        groups = [self.sources] if self.sources == self.targets else [self.sources, self.targets]
        return Read(
            [[read.values[site] for site in sites] for sites in groups],
            read.keep_N,
            read.tokens_N,
            read.positions_N,
            read.check,
        )


def _check(buffer_tokens: int, batch_tokens: int, lm_batch_windows: int, context: int) -> None:
    """Raises ValueError where a buffer cannot hold what goes into it."""
    if lm_batch_windows < 1:
        raise ValueError(f"source.lm_batch_windows={lm_batch_windows}: want 1 or more")
    if buffer_tokens < batch_tokens:
        raise ValueError(
            f"source.buffer_tokens={buffer_tokens} is smaller than batch_tokens={batch_tokens}:"
            f" want a buffer that holds at least one batch"
        )
    least = 2 * lm_batch_windows * context
    if buffer_tokens < least:
        raise ValueError(
            f"source.buffer_tokens={buffer_tokens} is too small for source.lm_batch_windows="
            f"{lm_batch_windows} of {context} tokens each, which go into half of it: "
            f"want source.buffer_tokens={least} or more, or fewer windows"
        )
