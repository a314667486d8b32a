"""The links and the decoder of cross-layer transcoders and crosscoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from dictlearn_kernels.decode_error import decode_error
from dictlearn_kernels.fused_adam import FREE, FeatureRows
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.dicts.decoder import Costs, Decoder, bag_costs, row_dots
from dictlearn.dicts.link import Link, check_pairs
from dictlearn.dicts.tied import TiedDecoder
from dictlearn.ranges import Count
from dictlearn.types import Code

if TYPE_CHECKING:
    from dictlearn.dicts.shape import Shape

Norm = Literal["concat", "sum"]


@final
@dataclass(frozen=True)
class Lower(Link):
    """Source s -> targets s, s + 1, ... (cross-layer transcoders).

    Args:
        window: the number of targets that a source writes to, its own first; None: all of them.
        tied: whether a feature has one decoder vector for all its targets.
    """

    name: ClassVar[str] = "lower"
    cross_layer: ClassVar[bool] = True
    window: Count | None = None
    tied: bool = False

    def check(self, shape: Shape) -> None:
        check_pairs(self, shape)
        if self.window is not None and self.window < 1:
            raise ValueError(f"dict.window={self.window}: want at least 1 target, or null for all")

    def decoder(self, shape: Shape) -> Decoder:
        n_targets = len(shape.targets)
        reach = self.window or n_targets
        sources_of = [range(max(0, t + 1 - reach), t + 1) for t in range(n_targets)]
        decoder = TiedDecoder if self.tied else LinkedDecoder
        return decoder(sources_of, shape.n_features, shape.width, shape.unit_norm)

    def economies(self, n_targets: int) -> dict[str, Sequence[Any]]:
        if self.tied:
            return {}
        return {"window": range(1, (self.window or n_targets) + 1), "tied": [True]}


@final
@dataclass(frozen=True)
class Shared(Link):
    """All sources -> one code -> all targets (crosscoders); `norm` as in `LinkedDecoder`."""

    name: ClassVar[str] = "shared"
    one_code: ClassVar[bool] = True
    norm: Norm = "concat"

    def decoder(self, shape: Shape) -> Decoder:
        everywhere = [range(1)] * len(shape.targets)
        sizes = shape.n_features, shape.width
        return LinkedDecoder(everywhere, *sizes, shape.unit_norm, self.norm)


@final
class LinkedDecoder(Decoder):
    """y_hat_t = sum over the sources s that t reads of f_s W_dec[t][s] + b_dec_t.

    Every target has one matrix, whose rows are the features of all its sources in order. So a target
    is one weighted sum over the codes of its sources, and its gradient is computed on its own.

    Args:
        sources_of: for each target, the contiguous range of the code's sources that it reads.
        norm: a feature's norm: `concat`, the norm of its concatenated vectors (Ameisen et al. 2025),
            or `sum`, the sum of their norms (Lindsey et al. 2024).
    """

    streams: ClassVar[bool] = True

    def __init__(
        self,
        sources_of: Sequence[range],
        n_features: int,
        width: int,
        unit_norm: bool,
        norm: Norm = "concat",
    ):
        super().__init__()
        if norm not in ("concat", "sum"):
            raise ValueError(f"dict.norm={norm}: want concat or sum")
        self.sources_of = tuple(sources_of)
        self.n_sources = max(sources.stop for sources in sources_of)
        self.n_features, self.unit_norm, self.norm = n_features, unit_norm, norm
        self.W_dec = nn.ParameterList(
            torch.empty(len(sources), n_features, width) for sources in sources_of
        )  # per target SFD
        self.b_dec = nn.Parameter(torch.zeros(len(sources_of), width))  # TD

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        bags = [self._bag(t, code, W_SFD) for t, W_SFD in enumerate(self.W_dec)]
        return torch.stack(bags, dim=1)

    def _bag(self, t: int, code: Code, W_SFD: Tensor) -> Tensor:
        pattern, entries = code.per_token(self.sources_of[t].start, self.sources_of[t].stop)
        return sparse_decode(pattern, _select(code.values, entries), W_SFD.flatten(0, 1))

    def squared_error(
        self,
        code: Code,
        x_NSD: Tensor,
        y_NTD: Tensor,
        weights: Sequence[float],
        prefixes: Sequence[int] = (),
        *,
        with_bias: bool = True,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Goes target by target; the backward pass keeps the residual of each."""
        total, residuals = y_NTD.new_zeros(()), []
        for t, (sources, b_D) in enumerate(zip(self.sources_of, self.b_dec.unbind(), strict=True)):
            pattern, entries = code.nested(prefixes, sources)
            error, e_ND = decode_error(
                pattern,
                _select(code.values, entries),
                self.W_dec[t].flatten(0, 1),
                y_NTD[:, t],
                b_D[None] if with_bias else None,
                weights,
            )
            total = total + error
            residuals.append(e_ND)
        return total, residuals

    def reads(self, target: int) -> range:
        return self.sources_of[target]

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        bags = [
            sparse_decode(codes[s].pattern, codes[s].values, W_FD)
            for s, W_FD in zip(self.reads(t), self.W_dec[t].unbind(), strict=True)
        ]
        return torch.stack(bags).sum(0)

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        return self.W_dec[t][s - self.reads(t).start, rows]

    def norms(self) -> Tensor:
        norms_SF = self.b_dec.new_zeros(self.n_sources, self.n_features)
        for sources, W_SFD in self._links():
            norm_SF = torch.linalg.vector_norm(W_SFD, dim=-1)
            if self.norm == "concat":
                norm_SF = norm_SF.square()
            norms_SF = norms_SF + _pad(sources, norm_SF, self.n_sources)
        return norms_SF if self.norm == "sum" else norms_SF.sqrt()

    @torch.no_grad()
    def norms_by_target(self) -> Tensor:
        table_ST = torch.zeros(self.n_sources, len(self.sources_of), dtype=self.b_dec.dtype)
        for t, (sources, W_SFD) in enumerate(self._links()):
            means_S = torch.linalg.vector_norm(W_SFD, dim=-1).mean(-1)
            table_ST[sources.start : sources.stop, t] = means_S.cpu()
        return table_ST

    def vectors(self) -> Any:
        targets = tuple(self.W_dec)
        if self.n_sources > 1:
            return targets
        return targets[0].squeeze(0) if len(targets) == 1 else torch.cat(targets)

    def costs(self, k: float) -> Costs:
        costs = bag_costs(self, k)
        if self.n_sources == 1:
            return costs
        # Each target has a pattern of the whole code, sorted, and one of the sources that it reads.
        indices = sum(k * (self.n_sources + len(sources)) for sources in self.sources_of)
        return replace(costs, indices=indices)

    def features(self) -> list[FeatureRows]:
        norm = self.norm if self.unit_norm else FREE
        parts_S: list[list[tuple[Tensor, int]]] = [[] for _ in range(self.n_sources)]
        for sources, W_SFD in self._links():
            for i, s in enumerate(sources):
                parts_S[s].append((W_SFD, i * self.n_features))
        return [FeatureRows(tuple(parts), self.n_features, norm) for parts in parts_S if parts]

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Removes the component along the norm's gradient, which `_radial` yields."""
        if not self.unit_norm or self.W_dec[0].grad is None:
            return
        along_SF = self.b_dec.new_zeros(self.n_sources, self.n_features)
        for sources, grad_SFD, up_SFD in self._radial():
            along_SF[sources.start : sources.stop] += row_dots(grad_SFD, up_SFD)
        if self.norm == "sum":  # its gradient has norm 1 in every target
            n_targets = [
                sum(s in sources for sources in self.sources_of) for s in range(self.n_sources)
            ]
            along_SF /= along_SF.new_tensor(n_targets)[:, None]
        for sources, grad_SFD, up_SFD in self._radial():
            share_SF1 = along_SF[sources.start : sources.stop, :, None]
            grad_SFD.addcmul_(up_SFD, share_SF1, value=-1)

    def _radial(self) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Yields (sources, the loss's gradient in W, the norm's gradient in W) for each target."""
        for sources, W_SFD in self._links():
            assert W_SFD.grad is not None
            up_SFD = W_SFD.detach()
            if self.norm == "sum":
                up_SFD = nn.functional.normalize(up_SFD, dim=-1)
            yield sources, W_SFD.grad, up_SFD

    @torch.no_grad()
    def normalise(self) -> None:
        norms_SF = self.norms().clamp_min(1e-12)
        for sources, W_SFD in self._links():
            W_SFD.div_(norms_SF[sources.start : sources.stop, :, None])

    @torch.no_grad()
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        for t, (sources, W_SFD) in enumerate(self._links()):
            scale_S = code_scale_S[sources.start : sources.stop] / output_scale_T[t]
            W_SFD.mul_(scale_S[:, None, None])
        self.b_dec.div_(output_scale_T[:, None])

    def _links(self) -> list[tuple[range, Tensor]]:
        return list(zip(self.sources_of, self.W_dec, strict=True))


def _select(values: Tensor, entries: Tensor | slice) -> Tensor:
    """values[entries]; the backward pass of index_select is several times as fast."""
    return values if isinstance(entries, slice) else values.index_select(0, entries)


def _pad(sources: range, rows: Tensor, n_sources: int) -> Tensor:
    """[n_sources, F]: `rows` for the sources in `sources`, zero for the others."""
    return nn.functional.pad(rows, (0, 0, sources.start, n_sources - sources.stop))
