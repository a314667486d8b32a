"""Activations that the language model computes during training; nothing is stored on disk."""

from __future__ import annotations

from typing import Literal, final

import torch

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.buffer import Read, ShuffleBuffer
from dictlearn.sources.reader import Reader, WindowOrder, check_state
from dictlearn.types import Batch, TextWindows

DTYPES = {"model": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@final
class LiveSource:
    """Runs the language model on windows and shuffles the tokens in a buffer.

    The order of windows is a pure function of (seed, epoch), and the order of tokens one of (seed,
    round of the buffer), so a state is a few integers. Resuming runs the language model again for
    the tokens that waited in the buffer, in the same batches of windows, which on a CPU gives the
    same bits.

    On the model's device there are at most `buffer_tokens` rows and one LM batch, or two LM batches
    with `ahead`.

    Args:
        windows: tokenised text. The model reads special tokens and pads; batches leave them out.
        sources, targets: sites that x_NSD and y_NTD stack. If the two differ, a site in both is
            stored twice.
        batch_tokens: N, rows in every batch.
        buffer_tokens: rows that are shuffled together; each refill replaces half of them.
        lm_batch_windows: windows in one forward pass of the language model.
        nonfinite: "error", or "drop" to leave out tokens with NaN or Inf at any of the sites.
        store_dtype: dtype of the buffer; "model" is the dtype in which the model computes.
        batch_dtype: dtype of the batches; "model" leaves them as they are stored.
        ahead: whether the model runs on a stream of its own while batches are taken; "auto" does
            that on a GPU. The batches are the same.

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
        # A state is valid only for a source with these values.
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
            self._buffer.restore(*self._buffer.position)  # its rows belong to another rank

    def next_batch(self) -> Batch:
        return self._batch(self.batch_tokens, from_start=False)

    def sample(self, n: int) -> Batch:
        """See `Source.sample`. Before the first batch, half a buffer needs no extra forward pass."""
        return self._batch(n, from_start=True)

    def state(self) -> dict[str, int]:
        round_, taken = self._buffer.position
        return {"round": round_, "taken": taken, **self._stream}

    def restore(self, state: dict[str, int]) -> None:
        check_state(self._stream, state)
        self._buffer.restore(state["round"], state["taken"])

    def _batch(self, n: int, from_start: bool) -> Batch:
        rows = self._buffer.peek(n) if from_start else self._buffer.take(n)
        x_NSD, *targets = rows.groups
        return Batch(x_NSD, targets[0] if targets else None, rows.tokens_N, rows.positions_N)

    def _read(self, number: int) -> Read:
        """LM batch `number` of this rank."""
        start = (number * self._ranks + self._rank) * self._lm_batch_windows
        indices_B = self._order.span(start, start + self._lm_batch_windows)
        read = self._reader.read(number, indices_B, defer_check=self._ahead)
        groups = [self.sources] if self.sources == self.targets else [self.sources, self.targets]
        return Read(
            [[read.values[site] for site in sites] for sites in groups],
            read.keep_N,
            read.tokens_N,
            read.positions_N,
            read.check,
        )


def _check(buffer_tokens: int, batch_tokens: int, lm_batch_windows: int, context: int) -> None:
    """Raises ValueError if the buffer is too small for a batch or two LM batches."""
    if lm_batch_windows < 1:
        raise ValueError(f"source.lm_batch_windows={lm_batch_windows}: want 1 or more")
    if buffer_tokens < batch_tokens:
        raise ValueError(
            f"source.buffer_tokens={buffer_tokens} is smaller than batch_tokens={batch_tokens}:"
            f" want a buffer that holds at least one batch"
        )
    smallest = 2 * lm_batch_windows * context
    if buffer_tokens < smallest:
        raise ValueError(
            f"source.buffer_tokens={buffer_tokens} is too small for source.lm_batch_windows="
            f"{lm_batch_windows} of {context} tokens each, which go into half of it: "
            f"want source.buffer_tokens={smallest} or more, or fewer windows"
        )
