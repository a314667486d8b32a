"""The number of entries that the kernel of Triton keeps of each group of columns."""

from __future__ import annotations

import math
from typing import NamedTuple

LOST = 0.005  # the share of rows that may be flagged because a group has more winners than it keeps


class Layout(NamedTuple):
    group: int  # columns that compete with one another
    kept: int  # entries that a group keeps


# An entry costs a pass over the tile, and a group costs memory. Each layout is compiled separately.
LAYOUTS = (Layout(group=64, kept=4), Layout(64, 8), Layout(32, 8))


def layout(m: int, n_columns: int) -> Layout | None:
    """The first layout in which m candidates hardly ever crowd in one group, or None.

    The number of winners in a group is taken as Poisson: on real activations it is no more uneven.
    """
    for candidate in LAYOUTS:
        n_groups, kept = -(-n_columns // candidate.group), candidate.kept
        if n_groups * kept >= m and n_groups * _tail(m / n_groups, kept) <= LOST:
            return candidate
    return None


def _tail(mean: float, kept: int) -> float:
    """The probability that a Poisson count is `kept` or more."""
    return 1 - sum(math.exp(-mean) * mean**i / math.factorial(i) for i in range(kept))
