"""The adjoint of a linear model: what a unit at each source is worth to each target.

With patterns and scales held and MLPs cut, the stream at one place is a linear function of all that
was written before. A target is a vector that reads the stream somewhere, and its row of the graph
is that vector carried down the layers and multiplied by what the sources write on its way:

    r                what a unit of the stream is worth to the target               [rows, P, D]
    read layer m     row += r[q] . (what features, and the error, wrote at mlp_out.m, position q)
    skip             r += norm2^T W_skip^T r
    attention m      r[q] += sum_kv W_v,kv^T ( sum_{h in kv} sum_{p >= q} A_h[p, q] W_o,h^T r[p] )
    tokens           row += r[q] . embedding[q], once r is below layer 0

Nothing is computed that is known to be zero, and no sum is made twice:

    the cone         a row joins at its own layer, and knows no position after its own. Rows are
                     sorted by position, so a chunk's r is as short as its last target
    groups           the heads that share W_v are summed before it
    one position     where a row joins, r is one vector at one position. Its first attention makes
                     H vectors of it, spread over positions by the patterns, and the second reads
                     those H + 1 vectors instead of P
    tokens           embeddings are carried up through block 0 once, so no row goes down through it
    reads            all that was written at one position is one product, into columns of one block
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.attribution.carried import Carried, worth_carrying
from dictlearn.attribution.places import Entry, entry
from dictlearn.attribution.sources import Sources
from dictlearn.lm.linear import LinearModel

PACKED = {"cpu": 1 << 13, "cuda": 1 << 17}  # rows times positions that a chunk has at most
MOST_ROWS = 1024


class Targets(NamedTuple):
    """Vectors that read the stream. Level 2m is resid_pre.m, 2m + 1 is resid_mid.m."""

    level: Tensor  # int64 n
    position: Tensor  # int64 n
    vector: Tensor  # [n, D]

    def at(self, rows: Tensor) -> Targets:
        return Targets(*(field[rows] for field in self))


class Rows(NamedTuple):
    """Rows of the graph, sorted by falling level. Columns after their positions' end are zero."""

    target: Tensor  # int64 n: which of the targets
    edges: Tensor  # [n, columns]


class One(NamedTuple):
    """The last rows of r, if each is one vector at one position."""

    first: int
    position: Tensor  # n
    x: Tensor  # [n, D]


class Spread(NamedTuple):
    """The last rows of r, just below their first attention: sum_h spread[:, q, h] y[:, h], and x."""

    first: int
    position: Tensor
    x: Tensor
    spread: Tensor  # [n, P, H]
    y: Tensor  # [n, H, D]


class Sweep:
    """The adjoint at one prompt. `expected`: about how many rows there will be."""

    def __init__(self, model: LinearModel, sources: Sources, expected: int) -> None:
        self.model, self.sources = model, sources
        self.packed = PACKED.get(model.embedded.device.type, PACKED["cuda"])
        self.entries: dict[int, Entry] = {
            layer: entry(model, layer, kind) for layer, kind in sources.places.kind.items()
        }
        self.skips = {layer: self._skip(layer) for layer in range(len(model.blocks))}
        self.carried = None
        if worth_carrying(model, expected):
            below = self.entries.get(0)
            self.carried = Carried(model, below, sources.places.skip(0))

    def rows(self, targets: Targets) -> Iterator[Rows]:
        """The rows of all targets, a chunk at a time."""
        order = targets.position.argsort(stable=True)
        lengths = (targets.position[order] + 1).tolist()
        start = 0
        while start < len(lengths):
            end = start + 1
            while (
                end < len(lengths)
                and end - start < MOST_ROWS
                and (end + 1 - start) * lengths[end] <= self.packed
            ):
                end += 1
            chunk = order[start:end]
            chunk = chunk[targets.level[chunk].argsort(descending=True, stable=True)]
            yield Rows(chunk, self._swept(targets.at(chunk), lengths[end - 1]))
            start = end

    def _swept(self, targets: Targets, P: int) -> Tensor:
        """The rows of one chunk, from its highest level down to the tokens."""
        n, bottom = len(targets.level), 0 if self.carried is None else 1
        edges = targets.vector.new_zeros(n, self.sources.ends[P - 1])
        r = targets.vector.new_zeros(n, P, self.model.width)
        falling = -targets.level
        joined, top = 0, int(targets.level[0])
        for m in reversed(range(top // 2)):
            # r is at resid_post.m, for all rows of a level above block m
            live = int(torch.searchsorted(falling, -(2 * m + 2), right=True))
            fresh = self._join(targets, r, joined, live)
            joined = live
            if live:
                self._read(m, r[:live], edges[:live])
                if m >= bottom:
                    self._down(m, r[:live], fresh)
        tokens = edges.new_zeros(n, P)
        if self.carried is None:
            self._join(targets, r, joined, n)
            tokens += torch.einsum("npd,pd->np", r, self.model.embedded[:P])
        else:
            self.carried.read_post(r[:joined], tokens[:joined])
            self.carried.read_low(targets, joined, tokens)
        edges[:, self.sources.token[:P]] = tokens
        return edges

    def _join(self, targets: Targets, r: Tensor, start: int, end: int) -> One | Spread | None:
        """Sets rows start to end of r, at the resid_pre that is next below their levels.

        Returns what they are made of, if that is the same for all.
        """
        if start == end:
            return None
        level, position, x = (field[start:end] for field in targets)
        after = int((level % 2 == 1).sum())  # sorted: those that attention has still to carry first
        layer = int(level[0]) // 2
        below: One | Spread | None = None
        if after:
            below = self._own_attention(layer, One(start, position[:after], x[:after]), r)
        if after < end - start:
            rows = torch.arange(start + after, end, device=r.device)
            r[rows, position[after:]] = x[after:]
            below = One(start, position, x) if not after else None
        return below

    def _own_attention(self, m: int, one: One, r: Tensor) -> Spread:
        """Sets rows of r from one.first: the vectors as attention m carries them down, and themselves."""
        attention, n = self.model.blocks[m].attention, len(one.x)
        H, KV, dh = attention.heads, attention.groups, attention.head_width
        u = (one.x @ attention.W_o).view(n, KV, H // KV, dh).permute(1, 0, 2, 3)
        y = torch.matmul(u.reshape(KV, -1, dh), attention.W_v.view(KV, dh, -1))
        y = y.view(KV, n, H // KV, -1).transpose(0, 1).reshape(n, H, -1)
        spread = attention.pattern[:, : r.shape[1]].permute(2, 1, 0)[one.position]  # [n, P, H]
        rows = r[one.first : one.first + n]
        torch.bmm(spread, y, out=rows)
        rows[torch.arange(n, device=r.device), one.position] += one.x
        return Spread(one.first, one.position, one.x, spread, y)

    def _read(self, m: int, r: Tensor, edges: Tensor) -> None:
        vectors, blocks = self.sources.writes(m)
        for q, (start, column, size) in enumerate(blocks[: r.shape[1]]):
            edges[:, column : column + size].addmm_(r[:, q], vectors[start : start + size].T)

    def _down(self, m: int, r: Tensor, fresh: One | Spread | None) -> None:
        """r at resid_post.m becomes r at resid_pre.m, in place."""
        skip = self.skips[m]
        if isinstance(fresh, One):
            if skip is not None and not self.entries[m].after_attention:
                fresh = None
            else:
                self._down_one(m, r, fresh)
                r, fresh = r[: fresh.first], None
        if len(r) == 0:
            return
        if skip is None:
            self._attention(m, r, self._heads(m, r, fresh))
        elif self.entries[m].after_attention:
            skip.add(r)
            self._attention(m, r, self._heads(m, r, None))
        else:
            u = self._heads(m, r, fresh)
            skip.add(r)
            self._attention(m, r, u)

    def _down_one(self, m: int, r: Tensor, one: One) -> None:
        """The same for rows that are one vector each; a skip leaves them so."""
        skip, x = self.skips[m], one.x
        if skip is not None:
            x = x + skip(x, one.position)
        self._own_attention(m, One(one.first, one.position, x), r)

    def _heads(self, m: int, r: Tensor, fresh: One | Spread | None) -> Tensor:
        """r W_o: [n, P, H * dh]. Of fresh rows it is made from their H + 1 vectors, if those are few."""
        W_o = self.model.blocks[m].attention.W_o
        n, P, D = r.shape
        if not isinstance(fresh, Spread) or fresh.y.shape[1] + 1 >= P:
            return (r.view(n * P, D) @ W_o).view(n, P, -1)
        u, old = r.new_empty(n, P, W_o.shape[1]), fresh.first
        torch.mm(r[:old].view(old * P, D), W_o, out=u[:old].view(old * P, W_o.shape[1]))
        torch.bmm(fresh.spread, fresh.y @ W_o, out=u[old:])
        u[torch.arange(old, n, device=r.device), fresh.position] += fresh.x @ W_o
        return u

    def _attention(self, m: int, r: Tensor, u: Tensor) -> None:
        """Adds to r what attention m carries down: `u`, mixed over positions, times W_v."""
        attention = self.model.blocks[m].attention
        n, P, D = r.shape
        G = attention.heads // attention.groups
        u = u.view(n, P, attention.heads, attention.head_width)
        w = u.new_empty(n, P, attention.groups, attention.head_width)
        for kv in range(attention.groups):
            patterns = attention.pattern[kv * G : (kv + 1) * G, None, :P, :P].expand(G, n, P, P)
            mixed = torch.bmm(patterns[0], u[:, :, kv * G])
            for g in range(1, G):
                mixed.baddbmm_(patterns[g], u[:, :, kv * G + g])
            w[:, :, kv] = mixed
        r.view(n * P, D).addmm_(w.view(n * P, -1), attention.W_v)

    def _skip(self, layer: int) -> _Skip | None:
        W = self.sources.places.skip(layer)
        if W is None:
            return None
        through = self.entries[layer]
        W = W.to(self.model.dtype)
        return _Skip(through.back(W), None if through.norm is None else through.norm.inverse)


class _Skip(NamedTuple):
    """The adjoint of a linear path beside the features: r -> (r W) / scale."""

    W: Tensor  # [D out, D in], with the norm's gain
    inverse: Tensor | None  # P

    def add(self, r: Tensor) -> None:
        carried = r @ self.W
        if self.inverse is None:
            r.add_(carried)
        else:
            r.addcmul_(carried, self.inverse[: r.shape[1], None])

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        carried = x @ self.W
        return carried if self.inverse is None else carried * self.inverse[position, None]
