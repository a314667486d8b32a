"""Token embeddings as block 0 carries them up, so that no row of a graph goes down through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dictlearn.attribution.places import Entry
from dictlearn.lm.linear import LinearModel

if TYPE_CHECKING:
    from dictlearn.attribution.sweep import Targets

MOST = 1 << 28  # bytes that carried embeddings may take
STEP = 64  # positions in one piece: a position sees no token after it


def worth_carrying(model: LinearModel, rows: int) -> bool:
    """Whether carrying costs less than taking about `rows` rows down through block 0, and fits."""
    P, attention = len(model.tokens), model.blocks[0].attention
    size = P * P * model.width * model.embedded.element_size()
    per_row = (attention.heads + attention.groups) * attention.head_width - P / 2
    return size <= MOST and rows * per_row > P * attention.heads


class Carried:
    """What each token adds to the stream at mid (resid_mid.0) and post (resid_post.0), by position."""

    def __init__(self, model: LinearModel, below: Entry | None, skip: Tensor | None) -> None:
        attention, x_QD = model.blocks[0].attention, model.embedded
        P, D = x_QD.shape
        H, KV, dh = attention.heads, attention.groups, attention.head_width
        v = (x_QD @ attention.W_v.T).view(P, KV, 1, dh).expand(-1, -1, H // KV, -1)
        y_HQD = torch.einsum("qhe,dhe->hqd", v.reshape(P, H, dh), attention.W_o.view(D, H, dh))
        self.x = x_QD
        self.mid: list[Tensor] = []  # [positions, D, tokens up to the last of them] each
        self.post: list[Tensor] = []
        for a in range(0, P, STEP):
            b = min(a + STEP, P)
            at = torch.arange(a, b, device=x_QD.device)
            own = x_QD.new_zeros(b - a, D, b)
            own[at - a, :, at] = x_QD[a:b]
            pattern = attention.pattern[:, :b, a:b]
            mid = torch.einsum("hqp,hqd->pdq", pattern, y_HQD[:, :b]).contiguous()
            mid[at - a, :, at] += x_QD[a:b]
            self.mid.append(mid)
            if skip is None:
                self.post.append(mid)
                continue
            assert below is not None
            read = mid if below.after_attention else own
            W = below.back(skip.to(x_QD.dtype))
            carried = torch.einsum("oi,piq->poq", W, read)
            if below.norm is not None:
                carried *= below.norm.inverse[a:b, None, None]
            self.post.append(mid + carried)

    def read_post(self, r: Tensor, tokens: Tensor) -> None:
        """Adds to tokens [n, P] what r [n, P, D] at resid_post.0 is worth to them."""
        n, P = tokens.shape
        if not n:
            return
        for a in range(0, P, STEP):
            b = min(a + STEP, P)
            piece = self.post[a // STEP][: b - a, :, :b]
            tokens[:, :b].addmm_(r[:, a:b].reshape(n, -1), piece.reshape(-1, b))

    def read_low(self, targets: Targets, first: int, tokens: Tensor) -> None:
        """The same for rows from `first`, whose targets read resid_pre.0 or resid_mid.0 themselves."""
        level, position, x = (field[first:] for field in targets)
        for p in position.unique().tolist():
            for mid in (True, False):
                rows = ((position == p) & (level % 2 == mid)).nonzero()[:, 0]
                if not len(rows):
                    continue
                if mid:
                    piece = self.mid[p // STEP][p % STEP, :, : p + 1]
                    tokens[first + rows, : p + 1] = x[rows] @ piece
                else:
                    tokens[first + rows, p] = x[rows] @ self.x[p]
