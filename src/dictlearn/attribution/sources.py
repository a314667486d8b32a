"""What writes to the stream at a prompt: active features, errors and tokens, each in a column.

Columns go position by position. Within one they are the token, then layer by layer the features and
the error:

    | token | features of layer 0 | error 0 | features of layer 1 | error 1 | ... |   next position

So whatever writes at one position in a range of layers is one block of columns, and all that a
target at position p can depend on comes before the end of position p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.attribution.places import Places, value
from dictlearn.lm.linear import LinearModel

CACHE = 1 << 30  # bytes of vectors that are kept from one sweep to the next


class Block(NamedTuple):
    """Rows start to start + size of what is written at one position, and their first column."""

    start: int
    column: int
    size: int


class Writes(NamedTuple):
    """What is written at mlp_out of one layer, position by position."""

    vectors: Tensor  # [rows, D]
    blocks: list[Block]


@dataclass(frozen=True, eq=False)
class Features:
    """The active features, by layer, position and index."""

    layer: Tensor  # int64 n
    position: Tensor  # int64 n
    index: Tensor  # int64 n, within the layer
    value: Tensor  # n
    starts: list[int]  # the first of each layer, and the end

    def __len__(self) -> int:
        return len(self.layer)

    def of(self, layer: int) -> slice:
        return slice(self.starts[layer], self.starts[layer + 1])


class Sources:
    """The columns of a prompt, and what each of them writes."""

    def __init__(self, model: LinearModel, places: Places, held: int) -> None:
        """`held`: positions at the start whose features and errors are constants, not nodes."""
        self.model, self.places, self.held = model, places, held
        self.inputs = {
            layer: value(model, layer, places.kind[layer]) for layer in sorted(places.source)
        }
        self.features = self._encoded()
        self._columns()
        self.errors, self.constants = zip(
            *(self._error(layer) for layer in range(places.n_layers)), strict=True
        )
        self._kept: dict[int, Writes] = {}
        self._bytes = 0

    def _encoded(self) -> Features:
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for dictionary in {
            id(o.dictionary): o.dictionary for o in self.places.source.values()
        }.values():
            owned = {
                o.number: n for n, o in self.places.source.items() if o.dictionary is dictionary
            }
            x_NSD = torch.stack([self.inputs[owned[s]] for s in range(len(owned))], 1)
            code = dictionary.encode(x_NSD)
            position, source = code.rows // code.n_sources, code.rows % code.n_sources
            for s, layer in owned.items():
                at = ((source == s) & (position >= self.held)).nonzero()[:, 0]
                values = code.values[at].to(self.model.dtype)
                found[layer] = position[at], code.features[at], values
        empty = self.model.tokens.new_zeros(0)
        parts = [
            found.get(layer, (empty, empty, self.model.embedded.new_zeros(0)))
            for layer in range(self.places.n_layers)
        ]
        sizes = torch.tensor([len(position) for position, _, _ in parts])
        layers = torch.arange(len(parts)).repeat_interleave(sizes).to(self.model.tokens.device)
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return Features(layers, *columns, starts=[0, *sizes.cumsum(0).tolist()])

    def _columns(self) -> None:
        features, L, P = self.features, self.places.n_layers, len(self.model.tokens)
        group = features.layer * P + features.position
        count_LP = group.bincount(minlength=L * P)
        rank = (
            torch.arange(len(group), device=group.device) - (count_LP.cumsum(0) - count_LP)[group]
        )
        size_PL = torch.cat([count_LP.new_ones(P, 1), count_LP.view(L, P).T + 1], 1)
        ends = size_PL.flatten().cumsum(0)
        first_PL = (ends - size_PL.flatten()).view(P, L + 1)
        self.token = first_PL[:, 0]  # P
        self.first = first_PL[:, 1:].T.contiguous()  # LP, the first column of a layer and position
        self.error = self.first + count_LP.view(L, P)  # LP
        self.feature = self.first[features.layer, features.position] + rank  # n
        self.ends: list[int] = ends.view(P, L + 1)[:, -1].tolist()  # P, the end of each position

    def _error(self, layer: int) -> tuple[Tensor, Tensor]:
        """(the error, what is neither feature, error nor skip) of an MLP's output, [P, D] each."""
        wanted = self.model.blocks[layer].mlp_out
        features, bias, constant = (
            torch.zeros_like(wanted),
            torch.zeros_like(wanted),
            wanted.clone(),
        )
        for source in self.places.sources_of(layer):
            at, rows = self._written(layer, source)
            features.index_add_(0, self.features.position[at], rows)
        if layer in self.places.target:
            dictionary, number = self.places.target[layer]
            bias += dictionary.decoder.b_dec[number].detach().to(bias.dtype)
        skip = self.places.skip(layer)
        if skip is not None:
            skipped = self.inputs[layer] @ skip.to(wanted.dtype).T
            wanted, constant = wanted - skipped, constant - skipped
        error = wanted - features - bias
        error[: self.held] = 0
        constant[self.held :] = bias[self.held :]
        return error, constant

    def _written(self, layer: int, source: int) -> tuple[slice, Tensor]:
        """What the active features of layer `source` write at mlp_out of `layer`: [n, D]."""
        at = self.features.of(source)
        owner, target = self.places.source.get(source), self.places.target[layer]
        if owner is None or owner.dictionary is not target.dictionary:  # of another dictionary
            n = at.stop - at.start
            return at, self.model.embedded.new_zeros(n, self.model.width)
        decoder = owner.dictionary.decoder
        W_FD = decoder.written(target.number, owner.number, slice(None)).detach()
        rows = W_FD[self.features.index[at]].to(self.model.dtype)
        return at, rows * self.features.value[at, None]

    def writes(self, layer: int) -> Writes:
        """What is written at mlp_out of a layer; kept from one sweep to the next while it is little."""
        if layer in self._kept:
            return self._kept[layer]
        from_layers = self.places.sources_of(layer)
        low = from_layers.start if from_layers else layer
        start_P, end_P = self.first[low], self.error[layer] + 1
        if layer not in self.places.target:  # no features: the error alone
            start_P = self.error[layer]
        size_P = end_P - start_P
        offset_P = size_P.cumsum(0) - size_P
        rows = self.model.embedded.new_zeros(int(size_P.sum()), self.model.width)
        rows[offset_P + self.error[layer] - start_P] = self.errors[layer]
        for source in from_layers:
            at, written = self._written(layer, source)
            position = self.features.position[at]
            rows[offset_P[position] + self.feature[at] - start_P[position]] = written
        table = torch.stack([offset_P, start_P, size_P], 1).tolist()
        found = Writes(rows, [Block(*row) for row in table])
        if self._bytes + rows.nbytes <= CACHE:
            self._kept[layer], self._bytes = found, self._bytes + rows.nbytes
        return found
