"""Mixtures of texts, each with its share of the tokens: the builder of data=mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol, final

import torch
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Fraction
from dictlearn.sources.mixture import naming_part
from dictlearn.sources.tokens import check_settings, say_once
from dictlearn.types import DocumentWindows


class PartWindows(DocumentWindows, Protocol):
    """Windows with the numbers of their documents and kept tokens."""

    @property
    def n_documents(self) -> int: ...
    @property
    def n_kept(self) -> int: ...


# Builds a part; it takes lm, split, context, held_out, and max_tokens if that is limited.
Part = Callable[..., PartWindows]


@final
class MixedWindows:
    """Windows of several texts, part by part.

    Sources shuffle the windows, and evenly spaced windows have all parts by their shares. The windows
    of a part are spread evenly over its text. If a part has fewer windows than `n_windows`, they are
    repeated, each equally often or once more.

    Args:
        parts: windows of equal length.
        n_windows: the number of windows of each part, in all at least one.
    """

    def __init__(self, parts: Sequence[PartWindows], n_windows: Sequence[int]):
        assert len({part.context for part in parts}) == 1, "windows have one length"
        self.context = parts[0].context
        self._parts, self._n_windows = list(parts), list(n_windows)
        self._ends = torch.tensor(list(accumulate(n_windows)))
        self._documents = [0, *accumulate(part.n_documents for part in parts)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def n_documents(self) -> int:
        return self._documents[-1]

    @property
    def n_kept(self) -> int:
        """The approximate number of tokens that a dictionary reads, from the mean per window."""
        pairs = zip(self._parts, self._n_windows, strict=True)
        return round(sum(part.n_kept / max(len(part), 1) * n for part, n in pairs))

    def window_batch(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """Token ids of the windows, int64 [B, P]. Raises IndexError outside 0 to len - 1."""
        return self._read_parts(indices, lambda p, at: self._parts[p].window_batch(at), torch.int64)

    def kept(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """bool [B, P]: True where a dictionary reads the token."""
        return self._read_parts(indices, lambda p, at: self._parts[p].kept(at), torch.bool)

    def documents(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """The number of each token's document, counted through all parts, int64 [B, P]."""
        return self._read_parts(
            indices,
            lambda p, at: self._parts[p].documents(at.tolist()) + self._documents[p],
            torch.int64,
        )

    def _read_parts(
        self,
        indices: Tensor | Sequence[int] | range,
        read: Callable[[int, Tensor], Tensor],
        dtype: torch.dtype,
    ) -> Tensor:
        listed = list(indices) if isinstance(indices, range) else indices
        indices_B = torch.as_tensor(listed, dtype=torch.int64)
        if len(indices_B) and not 0 <= int(indices_B.min()) <= int(indices_B.max()) < len(self):
            raise IndexError(f"windows {indices_B.tolist()} of {len(self)}")
        part_B = torch.searchsorted(self._ends, indices_B, right=True)
        result_BP = torch.empty((len(indices_B), self.context), dtype=dtype)
        for p in part_B.unique().tolist():
            is_part_B = part_B == p
            n = self._n_windows[p]
            within = indices_B[is_part_B] - (int(self._ends[p]) - n)
            result_BP[is_part_B] = read(p, within * len(self._parts[p]) // n)
        return result_BP


def mix_windows(
    lm: LanguageModel,
    split: str,
    parts: Mapping[str, Part] | None,
    weights: Mapping[str, float] | None = None,
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = None,
) -> MixedWindows:
    """One split of a mixture, in which each text has its share of the kept tokens.

    Args:
        parts: builders of the windows of each text.
        weights: the share of each part, in any unit; the default is 1.
        context, held_out: the same for all parts, see `windows`.
        max_tokens: the number of tokens to train on; each part is read up to its share. None uses
            each part's own limit.

    In the train split, the part with most text for its share occurs once, and the others are repeated
    to reach their shares; each repetition is logged. In the eval split nothing is repeated; it ends
    when the first part does.

    Raises ValueError, in one sentence that names the key.
    """
    context = check_settings(lm.info, context, held_out, max_tokens)
    if not parts:
        raise ValueError(
            "data.parts=null: want two texts or more, such as "
            "{code: {data: text, paths: [src/**/*.py]}, chats: {data: chat, path: owner/name}}"
        )
    shares = _shares(parts, weights or {})
    built: dict[str, PartWindows] = {}
    for name, part in parts.items():
        limit = {} if max_tokens is None else {"max_tokens": math.ceil(shares[name] * max_tokens)}
        with naming_part(f"data.parts.{name}"):
            built[name] = part(lm=lm, split=split, context=context, held_out=held_out, **limit)
    # The size of the mixture, in tokens, for which each part suffices once.
    kept = {name: windows.n_kept for name, windows in built.items()}
    if empty := [name for name, n in kept.items() if n == 0]:
        raise ValueError(f"data.parts.{empty[0]}: its {split} text has no token to keep")
    fits = {name: kept[name] / shares[name] for name in parts}
    total = max(fits.values()) if split == "train" else min(fits.values())
    n_windows = {
        name: max(1, round(len(windows) * total / fits[name])) for name, windows in built.items()
    }
    for name, windows in built.items():
        if n_windows[name] > len(windows):
            times = n_windows[name] / len(windows)
            say_once(
                f"mix {name} {times}",
                f"data.parts.{name}: its {kept[name]:,} tokens are repeated {times:.1f} times to be "
                f"{shares[name]:.0%} of the mixture",
            )
    return MixedWindows(list(built.values()), list(n_windows.values()))


def _shares(parts: Mapping[str, Part], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each part; the sum is 1."""
    for name, weight in weights.items():
        if name not in parts:
            raise ValueError(f"data.weights.{name}: no such part; there are {', '.join(parts)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
            raise ValueError(f"data.weights.{name}={weight}: want a number above 0")
    all_weights = {name: float(weights.get(name, 1)) for name in parts}
    return {name: weight / sum(all_weights.values()) for name, weight in all_weights.items()}
