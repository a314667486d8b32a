"""Selection of the entries of a dense [R, C] matrix that exceed a threshold per column."""

from __future__ import annotations

from torch import Tensor

from dictlearn_kernels.top_k import Selection, _starts


def select_above(pre_RC: Tensor, threshold_C: Tensor | float) -> Selection:
    """Every entry with pre > threshold of its column, as CSR. No gradient."""
    above = pre_RC > threshold_C
    rows, columns = above.nonzero(as_tuple=True)
    return _starts(above.sum(1)), columns, pre_RC[rows, columns]
