"""Scores a dictionary's directions against known true features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mean_max_cosine(W_dec: Tensor, truth: Tensor) -> float:
    """Mean over true features of the cosine to the decoder row nearest to it; 1 is recovery.

    W_dec is [F, D] and truth [F_true, D], of any norms. The sign counts: a feature that points the
    other way is another feature. Extra and duplicate rows of W_dec cost nothing here; they cost in
    `mean_max_cosine(truth, W_dec)`, where missing ones cost nothing.
    """
    return float(cosines(truth, W_dec).amax(1).mean())


def mcc(W_dec: Tensor, truth: Tensor) -> float:
    """Mean |cosine| over the best one-to-one matching (Hungarian) of decoder rows and features.

    The mean correlation coefficient of SynthSAEBench (2602.14687): every row of the
    smaller set counts once, so that one row can't stand for two features. O(n^2 m) for n rows of
    the smaller and m of the larger set: under a second for hundreds, minutes for thousands.
    """
    similarity = cosines(truth, W_dec).abs()
    if similarity.shape[0] > similarity.shape[1]:
        similarity = similarity.T
    match = assignment(-similarity.cpu().numpy())
    return float(similarity[torch.arange(len(match)), torch.from_numpy(match)].mean())


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a [A, D] with every row of b [B, D], 0 for zero rows: float64 [A, B]."""
    a, b = a.detach().double(), b.detach().to(a.device).double()
    return torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T


def assignment(cost: np.ndarray) -> np.ndarray:
    """The column of each row in the cheapest matching of cost [n, m] with n <= m: int64 [n].

    Kuhn-Munkres by shortest augmenting paths: rows join one after another, each by the cheapest
    chain of reassignments, which the duals `u` and `v` keep free of negative edges.
    """
    n, m = cost.shape
    assert n <= m
    u, v = np.zeros(n), np.zeros(m)
    row_of = np.full(m, -1)  # the row that holds each column
    for new in range(n):
        distance = np.full(m, np.inf)  # of the shortest path from `new` to each column
        before = np.full(m, -1)  # the column before it on that path; -1 is the start
        done = np.zeros(m, dtype=bool)
        row, column, length = new, -1, 0.0
        while True:
            through = length + cost[row] - u[row] - v
            shorter = ~done & (through < distance)
            distance[shorter] = through[shorter]
            before[shorter] = column
            column = int(np.argmin(np.where(done, np.inf, distance)))
            length = distance[column]
            if row_of[column] < 0:
                break
            done[column] = True
            row = row_of[column]
        u[new] += length
        u[row_of[done]] += length - distance[done]
        v[done] -= length - distance[done]
        while column >= 0:  # hand every column on the path to the row that leads to it
            row_of[column] = new if before[column] < 0 else row_of[before[column]]
            column = before[column]
    match = np.empty(n, dtype=np.int64)
    match[row_of[row_of >= 0]] = np.flatnonzero(row_of >= 0)
    return match
