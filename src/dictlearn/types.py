"""The letters of shapes, and the values that pass between packages.

    N tokens   S source sites   T target sites   D width   F features per source   K active   R rank
    B sequences   P positions   V vocabulary   G nested prefixes

A name's suffix is its shape: x_NSD is [N, S, D].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from dictlearn_kernels.pattern import Pattern
from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""
NamedProgress = Callable[[str, int, int], None]
"""The same, with the name of the work as the first argument."""


class Batch(NamedTuple):
    """N tokens' worth of activations, in the model's own units.

    `targets_NTD` is None in a batch for autoencoders, whose targets are their sources; `y_NTD` is
    then `x_NSD` itself, also after a move to another device.

    A batch of whole windows has the windows too: its rows are then the valid positions in reading
    order. In a shuffled batch both are None; it may have a batch of windows beside it.
    """

    x_NSD: Tensor
    targets_NTD: Tensor | None
    tokens_N: Tensor  # int64 token ids
    positions_N: Tensor  # int64 position within the model's context window
    tokens_BP: Tensor | None = None  # int64
    valid_BP: Tensor | None = None  # bool, N of them true
    beside: Batch | None = None  # whole windows, for terms that run the model on them

    @property
    def y_NTD(self) -> Tensor:
        """The tensor to reconstruct: the targets, or the sources of an autoencoder."""
        return self.x_NSD if self.targets_NTD is None else self.targets_NTD

    def rows(self, low: int, high: int) -> Batch:
        """Tokens low to high - 1, without windows."""
        y_NTD = None if self.targets_NTD is None else self.targets_NTD[low:high]
        tokens_N, positions_N = self.tokens_N[low:high], self.positions_N[low:high]
        return Batch(self.x_NSD[low:high], y_NTD, tokens_N, positions_N)


class Norms(NamedTuple):
    """The L2 norm of a site's activations."""

    mean: float
    mean_square: float


@dataclass(frozen=True, eq=False, repr=False)
class Code:
    """Which features fired and how strongly: CSR, one row per (token, source) in that order.

    No stored value is zero: a feature that a top-k picked at zero is not in the code, so it gets no
    gradient. All are positive, unless the sparsity is `signed`. Feature ids ascend within a row: two
    equal codes are equal tensors.

    N counts all tokens. If one site's activations came as [tokens, width] or [batch, positions,
    width], `leading` is their shape without the width, and results of the code have it again.
    """

    row_starts: Tensor  # int64 [N*S + 1], from 0 to nnz
    features: Tensor  # int64 [nnz], 0 <= id < n_features, within their source
    values: Tensor  # float [nnz]
    n_sources: int
    n_features: int  # F, per source
    leading: tuple[int, ...] | None = None  # set if the activations had no axis of sites

    def __repr__(self) -> str:
        sources = f"{self.n_sources} sources" if self.n_sources > 1 else "1 source"
        return (
            f"Code of {self.n_tokens:,} tokens and {sources} of {self.n_features:,} features, "
            f"{len(self.features):,} of them active"
        )

    @property
    def n_tokens(self) -> int:
        return (len(self.row_starts) - 1) // self.n_sources

    @cached_property
    def pattern(self) -> Pattern:
        """The code's positions as one sparse [N*S, S*F] matrix, the form that kernels take."""
        columns = self.features
        if self.n_sources > 1:
            counts = self.row_starts.diff()
            source = torch.arange(len(counts), device=counts.device) % self.n_sources
            source = torch.repeat_interleave(source, counts, output_size=len(columns))
            columns = columns + self.n_features * source
        return Pattern(self.row_starts, columns, self.n_sources * self.n_features)

    def per_token(self, low: int, high: int) -> tuple[Pattern, Tensor | slice]:
        """Sources low to high - 1 as one sparse [N, (high - low)*F] matrix, and its entries here."""
        key = f"per_token_{low}_{high}"
        if key not in self.__dict__:
            n_features = self.n_features
            merged = self.pattern.merged(self.n_sources, low * n_features, high * n_features)
            self.__dict__[key] = merged
        return self.__dict__[key]

    def nested(
        self, prefixes: Sequence[int], sources: range | None = None
    ) -> tuple[Pattern, Tensor | slice]:
        """A pattern with the rows of the first prefix, then those that the second adds to it, and so on.

        The rows are the code's, or one per token over `sources`. Also returns the indices of the
        pattern's entries in this code. `prefixes` are ascending feature counts, the last all of them.
        """
        pattern, entries = self.pattern, slice(None)
        if sources is not None:
            pattern, entries = self.per_token(sources.start, sources.stop)
        if len(prefixes) < 2:
            return pattern, entries
        ends = torch.tensor(prefixes, device=self.features.device)
        part = torch.bucketize(self.features[entries], ends, right=True)
        stacked, order = pattern.stacked(part, len(prefixes))
        return stacked, order if isinstance(entries, slice) else entries[order]

    @property
    def rows(self) -> Tensor:
        """The row, token * n_sources + source, of every entry: int64 [nnz]."""
        return self.pattern.rows

    def with_values(self, values: Tensor) -> Code:
        """The same positions with other values; shares the sorted column order."""
        other = replace(self, values=values)
        other.__dict__["pattern"] = self.pattern
        return other

    def shaped(self, leading: tuple[int, ...] | None) -> Code:
        """The same code with another `leading` shape; one source only."""
        other = replace(self, leading=leading)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in vars(other)})
        return other

    def where(self, keep: Tensor) -> Code:
        """The entries for which keep (bool [nnz]) is true."""
        running = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
        row_starts = running[self.row_starts]
        return replace(
            self, row_starts=row_starts, features=self.features[keep], values=self.values[keep]
        )

    @property
    def l0_NS(self) -> Tensor:
        """Active features per token and source, int64."""
        return self.row_starts.diff().view(self.n_tokens, self.n_sources)

    def dense(self) -> Tensor:
        """The code as float [N, S, F], or [*leading, F]; keeps the gradient of `values`."""
        flat = self.values.new_zeros(len(self.row_starts) - 1, self.n_features)
        flat = flat.index_put((self.rows, self.features), self.values)
        return flat.view(*self._rows_shape, self.n_features)

    @property
    def _rows_shape(self) -> tuple[int, ...]:
        return (self.n_tokens, self.n_sources) if self.leading is None else self.leading

    def padded(self) -> tuple[Tensor, Tensor]:
        """(features, values), each [N, S, K] with K the longest row; short rows end in (0, 0.0).

        The shape is [*leading, K] if the activations had no axis of sites.
        """
        longest = int(self.row_starts.diff().max()) if len(self.row_starts) > 1 else 0
        slot = torch.arange(len(self.features), device=self.features.device)
        slot = slot - self.row_starts[self.rows]
        shape = (len(self.row_starts) - 1, longest)
        features = self.features.new_zeros(shape).index_put((self.rows, slot), self.features)
        values = self.values.new_zeros(shape).index_put((self.rows, slot), self.values)
        final = (*self._rows_shape, longest)
        return features.view(final), values.view(final)


class Encoding(NamedTuple):
    """A code, with the other tensors that training needs.

    The training decode reads `support`. For most sparsities it is the code itself; JumpReLU adds the
    features just below their threshold, and Gated those with an open gate and magnitude zero. The
    added entries have value zero and serve only gradients: no other Code may hold zeros.
    `pre` holds the differentiable pre-activations at the support, [nnz of support].
    `wide` is the code of more features than k that the multi-TopK loss reads, if asked for.
    """

    code: Code
    support: Code
    pre: Tensor
    wide: Code | None = None


class TextWindows(Protocol):
    """Tokenised text in windows of one length."""

    @property
    def context(self) -> int:
        """P, tokens per window."""
        ...

    def __len__(self) -> int: ...

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Token ids of some windows, int64 [B, P]."""
        ...

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        """bool [B, P] for some windows: True where a dictionary sees the token.

        It is then neither special nor a pad and, in a conversation, of a turn that was asked for:
        the same token may be kept at one place and not at another.
        """
        ...


class DocumentWindows(TextWindows, Protocol):
    """Windows that know the documents of their tokens."""

    def documents(self, indices: Sequence[int] | range) -> Tensor:
        """The number of each token's document, int64 [B, P]."""
        ...


def spread(windows: TextWindows, n_tokens: int) -> list[int]:
    """Numbers of windows that hold about `n_tokens` positions, or of all windows.

    They are evenly spread, because neighbouring windows come from the same documents.
    """
    n = min(-(-n_tokens // windows.context), len(windows))
    return [i * len(windows) // n for i in range(n)]


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a model that a dictionary needs, read from its config without its weights."""

    name: str  # hub id or folder, as the user wrote it
    revision: str | None
    family: str  # transformers' model_type
    n_layers: int
    width: int
    vocab_size: int
    context_length: int


class DecoderLike(Protocol):
    """The parts of a decoder that objectives and evals use."""

    writes_directions: ClassVar[bool]  # whether features write fixed vectors, whatever the input is

    def norms(self) -> Tensor:
        """Norm of a feature's vectors for all targets together: [S, F]."""
        ...

    def norms_by_target(self) -> Tensor:
        """Mean over features of the norm that a source writes to a target: [S, T]."""
        ...

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        """The vectors that features `rows` of source s write to target t: [n, D]."""
        ...

    def lengths(self, source: int) -> Tensor:
        """Root of the sum of squares of all that each feature of a source writes: [F]."""
        ...

    def inner(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        """Inner products of all that features write: [n, m], of (source, rows) and (source, rows)."""
        ...

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        """What codes of the sources in `reads(t)` write to target t, without its bias: [N, D]."""
        ...

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        """What a code writes to all targets: [N, T, D]."""
        ...


class EncoderLike(Protocol):
    """The parts of an encoder that objectives and evals use: W_enc [S, F, D] and b_enc [S, F]."""

    @property
    def W_enc(self) -> Tensor: ...
    @property
    def b_enc(self) -> Tensor: ...
    @property
    def n_sources(self) -> int: ...


class DictionaryLike(Protocol):
    """The parts of a dictionary that evals use: sizes, encoding and decoding, also layer by layer.

    `dicts.Dictionary` is one. Evals use only this.
    """

    @property
    def kind(self) -> str: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def n_targets(self) -> int: ...
    @property
    def n_features(self) -> int:
        """F, the number of features per source."""
        ...

    @property
    def width(self) -> int: ...
    @property
    def prefixes(self) -> tuple[int, ...]:
        """Widths of nested dictionaries, the whole one last; empty if there are none."""
        ...

    @property
    def code_sources(self) -> int:
        """Rows of a code per token: one for every source, or one that all share."""
        ...

    @property
    def layerwise(self) -> bool:
        """Every source has its own code, and target t is decoded from the sources up to it."""
        ...

    @property
    def reads_what_it_writes(self) -> bool:
        """Whether a feature writes one vector to each site that it reads, and nowhere else."""
        ...

    @property
    def encoder(self) -> EncoderLike: ...
    @property
    def decodes_from_input(self) -> bool:
        """Whether what is decoded depends on the input beside the code, by a skip or by maps."""
        ...

    @property
    def decoder(self) -> DecoderLike: ...
    def parameters(self) -> Iterator[Any]: ...
    def encode(self, x_NSD: Tensor) -> Code: ...
    def decode(self, code: Code, x_NSD: Tensor) -> Tensor: ...
    def reads(self, t: int) -> range:
        """The code's sources that target t is decoded from."""
        ...

    def encode_source(self, x_ND: Tensor, s: int) -> Encoding: ...
    def decode_target(
        self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]
    ) -> Tensor: ...


class LinearMapLike(EncoderLike, Protocol):
    """An encoder's map, with which a term may select entries of its own."""

    def at(self, x_NSD: Tensor, selection: Any) -> Code:
        """The selected pre-activations as a code whose values carry their gradient."""
        ...


class TrainedDictionary(DictionaryLike, Protocol):
    """The parts of a dictionary in training that objective terms use, beside those of evals."""

    @property
    def streams(self) -> bool:
        """Whether `squared_error` goes target by target, to save the memory of y_hat and its graph."""
        ...

    @property
    def sparsity(self) -> Any:  # each term checks for the sparsity whose parameters it reads
        ...

    def read(self, x_NSD: Tensor) -> Tensor:
        """The tensor that the encoder multiplies."""
        ...

    def encoding_of(self, x_NSD: Tensor) -> tuple[Tensor, LinearMapLike]:
        """(the tensor that the encoder multiplies, the encoder), as a sparsity takes them."""
        ...

    def squared_error(
        self,
        code: Code,
        x_NSD: Tensor,
        y_NTD: Tensor,
        weights: Sequence[float],
        *,
        only_features: bool = False,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(the weighted squared error over the nested prefixes, y - y_hat detached, by target)."""
        ...

    def decode_prefixes(self, code: Code, x_NSD: Tensor) -> list[Tensor]:
        """One reconstruction for each nested prefix, the whole dictionary's last."""
        ...

    def decode_constant(self, code: Code, x_NSD: Tensor) -> Tensor:
        """Like `decode`, with a gradient only for the code, not for weights."""
        ...
