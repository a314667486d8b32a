"""What several processes that train one dictionary select together: the batch is that of all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from dictlearn_kernels import selection
from dictlearn_kernels.selection import Selection
from torch import Tensor

DIGIT = 8  # bits of a number that are decided at a time


def count() -> int:
    """Processes that train together; 1 for one alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def several() -> bool:
    """Whether there are other processes."""
    return count() > 1


def sum_of_all(values: Tensor) -> Tensor:
    """The sum over all processes, on each of them; a copy."""
    if not several():
        return values.clone()
    total = values.detach().to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def share_of_all(n: int, device: torch.device) -> Tensor | None:
    """What a mean over this process's `n` tokens counts, if the mean over processes is to be that
    over all tokens: n * processes / tokens of all, a float32 scalar. None for a process alone.
    """
    if not several():
        return None
    own = torch.tensor(n, device=device)
    return (own * count() / sum_of_all(own)).float()


def mean_of_all(total: Tensor, n: int) -> Tensor:
    """sum of `total` / sum of `n` over all processes, a scalar on each.

    Its gradient is such that the mean over processes, which is what they apply, is that of one process
    with all of the batch.
    """
    if not several():
        return total / n
    of_all = torch.stack([total.detach().double(), total.new_tensor(n, dtype=torch.float64)])
    dist.all_reduce(of_all)
    own = total * (dist.get_world_size() / of_all[1]).to(total.dtype)
    return own + ((of_all[0] / of_all[1]).to(total.dtype) - own.detach())


def batch_largest(
    candidates: Callable[[int], Selection], n_tokens: Tensor, per_token: float, n_groups: int
) -> Selection:
    """This process's share of the largest positive entries of all processes' batches.

    Args:
        candidates: gives the `budget` largest entries of each group in this process's batch.
        n_tokens: of this process's batch, an int64 scalar where the batch is.
        per_token: entries to select in each group, for each token of all batches.
        n_groups: row r belongs to group r % n_groups; each has a budget of its own.

    Exact, ties aside: the smallest winner is found digit by digit from counts that all processes add
    up. A process offers twice its share of candidates, and more where even the least of them wins.
    """
    counted = n_tokens.clone()
    dist.all_reduce(counted)
    budget = round(per_token * int(counted))
    offered = 2 * -(-budget // dist.get_world_size())
    while True:
        offered = min(offered, budget)
        found = candidates(offered)
        bits, group = _bits(found[2]), _groups(found, n_groups)
        smallest_G, ties_G = _smallest_winners(bits, group, budget, n_groups)
        counts_G = torch.bincount(group, minlength=n_groups)
        least_G = torch.full_like(smallest_G, torch.iinfo(bits.dtype).max)
        least_G.scatter_reduce_(0, group, bits, "amin")
        short = ((counts_G == offered) & (least_G > smallest_G)).any().int()
        dist.all_reduce(short, dist.ReduceOp.MAX)
        if offered == budget or not int(short):
            break
        offered *= 4
    above = bits > smallest_G[group]
    tied = bits == smallest_G[group]
    return selection.where(found, above | _first(tied, group, ties_G))


def _bits(values: Tensor) -> Tensor:
    """Integers in the order of numbers above zero."""
    return values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)


def _groups(found: Selection, n_groups: int) -> Tensor:
    """The group of every entry: int64 [nnz]."""
    counts = found[0].diff()
    of_row = torch.arange(len(counts), device=counts.device) % n_groups
    return of_row.repeat_interleave(counts, output_size=len(found[1]))


def _smallest_winners(
    bits: Tensor, group: Tensor, budget: int, n_groups: int
) -> tuple[Tensor, Tensor]:
    """For each group the bits of the budget-th largest entry of all processes, 0 where there are fewer
    entries; and how many entries of just these bits are among the winners.
    """
    n_bits = 8 * bits.dtype.itemsize
    prefix_G = torch.zeros(n_groups, dtype=bits.dtype, device=bits.device)
    left_G = torch.full((n_groups,), budget, dtype=torch.int64, device=bits.device)
    size = 1 << DIGIT
    for shift in range(n_bits - DIGIT, -1, -DIGIT):
        # Signs are 0: what a shift brings in from the left is 0 too.
        possible = (bits >> shift >> DIGIT) == (prefix_G >> shift >> DIGIT)[group]
        digit = (bits[possible] >> shift & (size - 1)).long()
        counts = torch.bincount(group[possible] * size + digit, minlength=n_groups * size)
        dist.all_reduce(counts)
        at_least_GD = counts.view(n_groups, size).flip(1).cumsum(1).flip(1)
        found_G = (at_least_GD >= left_G[:, None]).sum(1).sub(1).clamp(min=0)  # a digit, 0 if none
        above_GD = torch.nn.functional.pad(at_least_GD, (0, 1))
        left_G = left_G - above_GD.gather(1, found_G[:, None] + 1).squeeze(1)
        prefix_G |= found_G.to(bits.dtype) << shift
    return prefix_G, left_G


def _first(tied: Tensor, group: Tensor, left_G: Tensor) -> Tensor:
    """Which tied entries win: as many of each group as are left, the first processes' first."""
    n_groups = len(left_G)
    counts_G = torch.bincount(group[tied], minlength=n_groups)
    of_all = [torch.empty_like(counts_G) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, counts_G)
    before_G = sum(of_all[: dist.get_rank()], torch.zeros_like(counts_G))
    taken = torch.zeros_like(tied)
    for g, left in enumerate((left_G - before_G).clamp(min=0).tolist()):
        taken[(tied & (group == g)).nonzero().squeeze(1)[:left]] = True
    return taken
