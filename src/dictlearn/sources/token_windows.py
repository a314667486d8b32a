"""Windows of tokens, cut from a stream of documents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor


@final
class TokenWindows:
    """A stream of tokens in windows of P, which a language model reads one by one.

    The stream consists of whole documents. By default it is cut without regard to them: window i
    contains tokens iP to iP + P - 1, so a window may contain the end of one document and the start of
    the next, and the model attends from one to the other, as in its own training. The last window is
    padded. A model without special tokens cannot be padded; the tokens of an incomplete last window
    are then left out.

    With `apart`, every document begins a new window, so that no window has two documents. A longer
    document continues in further windows, its last window is padded, and windows without kept tokens
    are left out.

    Args:
        stream_T: token ids, int32, at least one.
        context: P.
        special_ids: ids that no dictionary reads.
        pad_id: the id that fills windows up, or None.
        starts: offset of each document in the stream, ascending from 0; None for one document.
        chosen_T: bool, the tokens that a dictionary reads if they are not special; None for all.
        apart: whether each document has windows of its own.
    """

    def __init__(
        self,
        stream_T: Tensor,
        context: int,
        special_ids: frozenset[int],
        pad_id: int | None,
        starts: Tensor | None = None,
        chosen_T: Tensor | None = None,
        apart: bool = False,
    ):
        assert pad_id is not None or not apart, "windows of a single document end in padding"
        self.context = context
        self.special_ids = special_ids
        self._stream_T, self._pad_id, self._chosen_T = stream_T, pad_id, chosen_T
        self._starts = torch.zeros(1, dtype=torch.int64) if starts is None else starts
        assert len(stream_T) == 0 or int(self._starts[0]) == 0, "a stream begins with a document"
        largest = max(special_ids, default=0)
        self._special = torch.zeros(largest + 2, dtype=torch.bool)  # last entry: all larger ids
        self._special[list(special_ids)] = True
        edges = self._starts if apart else self._starts[:1]
        self._first_W, self._length_W = _cut(edges, len(stream_T), context)
        if pad_id is None:
            full = self._length_W == context
            self._first_W, self._length_W = self._first_W[full], self._length_W[full]
        if apart:
            used = self._kept_per_window > 0
            self._first_W, self._length_W = self._first_W[used], self._length_W[used]
            del self._kept_per_window

    def __len__(self) -> int:
        return len(self._first_W)

    @property
    def n_documents(self) -> int:
        """The number of documents, including those without kept tokens."""
        return len(self._starts)

    @property
    def n_kept(self) -> int:
        """The number of tokens that a dictionary reads."""
        return int(self._kept_per_window.sum())

    @property
    def n_read(self) -> int:
        """The number of tokens that the model reads, without padding."""
        return int(self._length_W.sum())

    @cached_property
    def _kept_per_window(self) -> Tensor:
        """The number of kept tokens of each window, int64 [W]."""
        kept_T = self._ordinary(self._stream_T)
        if self._chosen_T is not None:
            kept_T &= self._chosen_T
        before_T = torch.cat([torch.zeros(1, dtype=torch.int64), kept_T.cumsum(0)])
        return before_T[self._first_W + self._length_W] - before_T[self._first_W]

    def window_batch(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """Token ids of the windows, int64 [B, P]. Raises IndexError outside 0 to len - 1."""
        return self._tokens(*self._offsets(indices))

    def kept(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """bool [B, P]: True where a token is chosen and neither special nor a pad."""
        offset_BP, inside_BP = self._offsets(indices)
        tokens_BP = self._tokens(offset_BP, inside_BP)
        kept_BP = inside_BP & self._ordinary(tokens_BP)
        if self._chosen_T is None:
            return kept_BP
        # The model's mask recognises pads by their id, so it also masks one that ends a turn.
        pads_BP = (tokens_BP == self._pad_id).flip(1).cummin(1).values.flip(1)
        return kept_BP & self._chosen_T[offset_BP] & ~pads_BP

    def documents(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """The number of each token's document in the split, int64 [B, P]; pads have the last one's."""
        offset_BP, _ = self._offsets(indices)
        return torch.searchsorted(self._starts, offset_BP, right=True) - 1

    def _offsets(self, indices: Tensor | Sequence[int] | range) -> tuple[Tensor, Tensor]:
        """(offsets in the stream, int64 [B, P], for pads the last token's; a bool mask without pads)."""
        listed = list(indices) if isinstance(indices, range) else indices
        indices_B = torch.as_tensor(listed, dtype=torch.int64)
        if len(indices_B) and not 0 <= int(indices_B.min()) <= int(indices_B.max()) < len(self):
            raise IndexError(f"windows {indices_B.tolist()} of {len(self)}")
        position_P = torch.arange(self.context)
        length_B1 = self._length_W[indices_B, None]
        offset_BP = self._first_W[indices_B, None] + torch.minimum(position_P, length_B1 - 1)
        return offset_BP, position_P < length_B1

    def _tokens(self, offset_BP: Tensor, inside_BP: Tensor) -> Tensor:
        tokens_BP = self._stream_T[offset_BP].long()
        return tokens_BP if self._pad_id is None else tokens_BP.where(inside_BP, self._pad_id)

    def _ordinary(self, tokens: Tensor) -> Tensor:
        """A bool tensor, True where a token is not special."""
        return ~self._special[tokens.clamp(max=len(self._special) - 1)]


def _cut(starts: Tensor, n_tokens: int, context: int) -> tuple[Tensor, Tensor]:
    """(first token, length) of windows, int64 [W]; a new window begins at each of `starts`."""
    stops = torch.cat([starts[1:], starts.new_tensor([n_tokens])])
    n_windows = -((starts - stops) // context)
    segment_W = torch.repeat_interleave(torch.arange(len(starts)), n_windows)
    number_W = torch.arange(len(segment_W)) - (n_windows.cumsum(0) - n_windows)[segment_W]
    first_W = starts[segment_W] + number_W * context
    return first_W, (stops[segment_W] - first_W).clamp(max=context)
