"""Compare a dictionary with the one that is read back from its export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary

TOLERANCE = 1e-5  # for float32 sums in another order


class Difference(NamedTuple):
    """The largest differences relative to the largest value, and the share of flipped firings."""

    encode: float
    decode: float
    flipped: float  # share of firings that only one of the two has

    @property
    def small(self) -> bool:
        """Whether all values are at most TOLERANCE; NaN is not."""
        return all(value <= TOLERANCE for value in self)

    def __str__(self) -> str:
        return f"encode differs by {self.encode:.1e}, decode by {self.decode:.1e}"


@torch.no_grad()
def difference(ours: Dictionary, theirs: Dictionary, x_NSD: Iterable[Tensor]) -> Difference:
    """Compares codes and reconstructions on activations, both in raw units.

    A pre-activation within rounding of its threshold may fall on either side of it. Such entries
    are counted in `flipped` only, and both dictionaries decode the same code.
    """
    encode, decode, flipped, fired = 0.0, 0.0, 0, 0
    for x in x_NSD:
        code = ours.encode(x)
        a, b = code.dense(), theirs.encode(x).dense()
        both = (a > 0) & (b > 0)
        flipped += int(((a > 0) ^ (b > 0)).sum())
        fired += len(code.values)
        encode = max(encode, _relative((a - b) * both, a))
        y_hat = ours.decode(code, x)
        decode = max(decode, _relative(theirs.decode(code, x) - y_hat, y_hat))
    return Difference(encode, decode, flipped / max(1, fired))


def _relative(error: Tensor, value: Tensor) -> float:
    if not error.isfinite().all():
        return float("nan")
    return float(error.abs().max() / value.abs().max().clamp_min(1e-30)) if error.numel() else 0.0
