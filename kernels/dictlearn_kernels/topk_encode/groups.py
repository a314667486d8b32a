"""How many entries of how many columns the kernel keeps."""

from __future__ import annotations

import math
from typing import NamedTuple

LOST = 0.005  # of rows that may be flagged because a group held more than it could keep


class Layout(NamedTuple):
    group: int  # columns that compete with one another
    kept: int  # of them


# An entry kept costs a pass over the tile, a group its memory; fewer constants are fewer compilations.
LAYOUTS = (Layout(group=64, kept=4), Layout(64, 8), Layout(32, 8))


def layout(m: int, n_columns: int) -> Layout | None:
    """The first layout in which m candidates hardly ever crowd in one group; None: they do in all.

    The count of winners in a group is taken as Poisson: on real activations it is no more uneven.
    """
    for found in LAYOUTS:
        n_groups = -(-n_columns // found.group)
        if n_groups * found.kept >= m and n_groups * _tail(m / n_groups, found.kept) <= LOST:
            return found
    return None


def _tail(mean: float, kept: int) -> float:
    """The probability that a Poisson count is `kept` or more."""
    return 1 - sum(math.exp(-mean) * mean**i / math.factorial(i) for i in range(kept))
