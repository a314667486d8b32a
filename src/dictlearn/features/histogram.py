"""Histograms of activations whose range is unknown until the pass is over.

A value's bin is the exponent of its float32 and the first MANTISSA bits of its mantissa: 32 bins of
equal width in each octave, a relative width of 2 to 3 %. A feature has bins for OCTAVES octaves, the
highest of which holds its largest value so far; smaller values count in bin 0. When a larger value
comes, bins move down, and those that leave the range are added to bin 0. So the counts depend on the
values alone, not on their order: parts of a pass add up exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

MANTISSA, OCTAVES = 5, 8
PER_OCTAVE = 1 << MANTISSA
N_BINS = OCTAVES * PER_OCTAVE + 1
NOTHING_YET = -1  # the octave of a feature that has not fired


def octave_of(values: Tensor) -> Tensor:
    """The biased exponent of positive float32 values: int32."""
    return values.view(torch.int32) >> 23


def rebased(counts_nB: Tensor, octave_n: Tensor, to_n: Tensor) -> Tensor:
    """Moves counts [n, N_BINS] from top octave `octave_n` to top octave `to_n`, which is no lower."""
    down_n1 = ((to_n - octave_n).clamp(0, OCTAVES) * PER_OCTAVE)[:, None]
    moved_nB = torch.arange(N_BINS) - down_n1
    return torch.zeros_like(counts_nB).scatter_add_(1, moved_nB.clamp_min(0).long(), counts_nB)


def counted(row: Tensor, values: Tensor, octave_n: Tensor) -> Tensor:
    """Counts int32 [n, N_BINS] of values by their rows, with top octaves `octave_n`."""
    code = values.view(torch.int32) >> (23 - MANTISSA)
    bins = code - ((octave_n[row] + 1 - OCTAVES) << MANTISSA) + 1
    flat = row * N_BINS + bins.clamp_min(0)
    counts = torch.bincount(flat, minlength=len(octave_n) * N_BINS)
    return counts.to(torch.int32).view(-1, N_BINS)


def edges(octave_n: Tensor) -> Tensor:
    """Edges of the bins: float64 [n, N_BINS + 1]; bin 0 begins at 0."""
    first_n1 = (octave_n + 1 - OCTAVES)[:, None].double() - 127
    step = torch.arange(N_BINS)
    octave, part = step // PER_OCTAVE, step % PER_OCTAVE
    inner = torch.exp2(first_n1 + octave) * (1 + part / PER_OCTAVE)
    return torch.cat([torch.zeros_like(first_n1), inner], 1)


def cumulative(counts_nB: Tensor, octave_n: Tensor, maximum_n: Tensor, at_nE: Tensor) -> Tensor:
    """Number of values up to each of the ascending `at_nE`: float64 [n, E], linear within bins."""
    edges_nB = edges(octave_n).minimum(maximum_n[:, None].double())
    below_nB = torch.nn.functional.pad(counts_nB.double().cumsum(1), (1, 0))
    bin_nE = (torch.searchsorted(edges_nB, at_nE.double(), right=True) - 1).clamp(0, N_BINS - 1)
    low, high = edges_nB.gather(1, bin_nE), edges_nB.gather(1, bin_nE + 1)
    tiny = torch.finfo(torch.float64).tiny
    share = ((at_nE - low) / (high - low).clamp_min(tiny)).clamp(0, 1)
    start, stop = below_nB.gather(1, bin_nE), below_nB.gather(1, bin_nE + 1)
    return start + share * (stop - start)


def equal_bins(counts_nB: Tensor, octave_n: Tensor, maximum_n: Tensor, n: int) -> Tensor:
    """Counts in n equal bins of [0, maximum]: int32 [rows, n]; they add up to all values."""
    at_nE = maximum_n[:, None].double() * torch.arange(n + 1) / n
    up_to = cumulative(counts_nB, octave_n, maximum_n, at_nE).round()
    up_to[:, 0], up_to[:, -1] = 0, counts_nB.sum(1)
    return up_to.diff(dim=1).to(torch.int32)


def quantiles(counts_nB: Tensor, octave_n: Tensor, maximum_n: Tensor, levels: Tensor) -> Tensor:
    """The values below which shares `levels` [Q] lie: float32 [rows, Q], linear within bins."""
    edges_nB = edges(octave_n).minimum(maximum_n[:, None].double())
    up_to_nB = counts_nB.double().cumsum(1)
    total_n1 = up_to_nB[:, -1:]
    want_nQ = (total_n1 * levels.double()).contiguous()
    bin_nQ = torch.searchsorted(up_to_nB, want_nQ).clamp_max(N_BINS - 1)
    count_nQ = counts_nB.double().gather(1, bin_nQ)
    share = (want_nQ - (up_to_nB.gather(1, bin_nQ) - count_nQ)) / count_nQ.clamp_min(1)
    low, high = edges_nB.gather(1, bin_nQ), edges_nB.gather(1, bin_nQ + 1)
    quantile_nQ = low + share.clamp(0, 1) * (high - low)
    return torch.where(total_n1 > 0, quantile_nQ, 0.0).float()
