"""The decoder of several targets that read several sources: cross-layer transcoders, crosscoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from dictlearn_kernels.fused_adam import FREE, Features
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.dicts.decoder import START_NORM, Decoder, row_dots
from dictlearn.dicts.streamed import Piece, streamed_sum
from dictlearn.types import Code

Group = tuple[Code, Tensor | slice]  # part of a code, and which of the code's entries it has


@final
class LinkedDecoder(Decoder):
    """y_hat_t = sum over the sources s that t reads of f_s W_dec[t][s] + b_dec_t.

    Every target has one matrix whose rows are the features of all its sources in order, so that it
    is one bag over the codes of all of them: no partial sums, and one target's gradient at a time.

    Args:
        sources_of: for each target, the contiguous range of the code's sources that it reads.
        norm: of all that a feature writes: `concat`, the norm of its vectors to all targets put
            together (the root of the sum of squares; Ameisen et al. 2025), or `sum`, of the norms
            to each (Lindsey et al. 2024).
    """

    def __init__(
        self,
        sources_of: Sequence[range],
        n_features: int,
        width: int,
        unit_norm: bool,
        norm: str = "concat",
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
        bags = [self.bag(t, code, code.values, W_SFD) for t, W_SFD in enumerate(self.W_dec)]
        return torch.stack(bags, dim=1)

    def bag(self, t: int, code: Code, values: Tensor, W_SFD: Tensor) -> Tensor:
        """One target less its bias, [N, D], from a code of all sources: a function of the tensors."""
        sources = self.sources_of[t]
        pattern, entries = code.per_token(sources.start, sources.stop)
        return sparse_decode(pattern, values[entries], W_SFD.flatten(0, 1))

    def squared_error(
        self,
        values: Tensor,
        groups: Sequence[Group],
        y_NTD: Tensor,
        weights: Sequence[float],
        skip: tuple[Tensor, Tensor] | None = None,
        *,
        with_bias: bool = True,
        into: Tensor | None = None,
        few_rows: bool = False,
    ) -> Tensor:
        """sum_g weights[g] ||y - y_hat_g||^2, y_hat_g from the first g groups of a code's entries.

        `skip` is (x [N, T, D], W_skip [T, D, D]); `few_rows` says that the code is one of few of the
        features. See `Dictionary.squared_error`.
        """

        def piece(t: int, affine: dict[str, Tensor]) -> Piece:
            def error(values: Tensor, W_SFD: Tensor, *tensors: Tensor) -> Tensor:
                own = dict(zip(affine, tensors, strict=True))
                y_hat_ND = own.get("bias", y_NTD.new_zeros(()))
                if skip is not None:
                    y_hat_ND = y_hat_ND + skip[0][:, t] @ own["skip"].T
                total = y_NTD.new_zeros(())
                for weight, (group, entries) in zip(weights, groups, strict=True):
                    y_hat_ND = y_hat_ND + self.bag(t, group, values[entries], W_SFD)
                    total = total + weight * (y_NTD[:, t] - y_hat_ND).square().sum()
                if into is not None:
                    into[:, t] = y_hat_ND.detach()
                return total

            return error, (self.W_dec[t], *affine.values())

        affine = [{"bias": b_D} if with_bias else {} for b_D in self.b_dec.unbind()]
        if skip is not None:
            affine = [own | {"skip": W} for own, W in zip(affine, skip[1].unbind(), strict=True)]
        pieces = [piece(t, own) for t, own in enumerate(affine)]
        return streamed_sum(values, pieces, few_rows=few_rows)

    def reads(self, target: int) -> range:
        return self.sources_of[target]

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        bags = [
            sparse_decode(codes[s].pattern, codes[s].values, W_FD)
            for s, W_FD in zip(self.reads(t), self.W_dec[t].unbind(), strict=True)
        ]
        return torch.stack(bags).sum(0)

    def norms(self) -> Tensor:
        norms_SF = self.b_dec.new_zeros(self.n_sources, self.n_features)
        for sources, W_SFD in self._links():
            added = torch.linalg.vector_norm(W_SFD, dim=-1)
            if self.norm == "concat":
                added = added.square()
            norms_SF = norms_SF + _at(sources, added, self.n_sources)
        return norms_SF if self.norm == "sum" else norms_SF.sqrt()

    @torch.no_grad()
    def norms_by_target(self) -> Tensor:
        table_ST = torch.zeros(self.n_sources, len(self.sources_of), dtype=self.b_dec.dtype)
        for t, (sources, W_SFD) in enumerate(self._links()):
            means_S = torch.linalg.vector_norm(W_SFD, dim=-1).mean(-1)
            table_ST[sources.start : sources.stop, t] = means_S.cpu()
        return table_ST

    def vectors(self) -> list[Tensor]:
        """What features write, [S, F, D] for each target, of a code that all targets read."""
        return list(self.W_dec)

    def features(self) -> list[Features]:
        norm = self.norm if self.unit_norm else FREE
        parts_S: list[list[tuple[Tensor, int]]] = [[] for _ in range(self.n_sources)]
        for sources, W_SFD in self._links():
            for place, s in enumerate(sources):
                parts_S[s].append((W_SFD, place * self.n_features))
        return [Features(tuple(parts), self.n_features, norm) for parts in parts_S if parts]

    def reset_parameters(self) -> None:
        for W_SFD in self.W_dec:
            nn.init.normal_(W_SFD)
        self.normalise()
        if not self.unit_norm:
            for W_SFD in self.W_dec:
                W_SFD.data.mul_(START_NORM)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """What changes the norm: along the vectors themselves, or along each vector's direction."""
        if not self.unit_norm or self.W_dec[0].grad is None:
            return
        along_SF = self.b_dec.new_zeros(self.n_sources, self.n_features)
        for sources, grad_SFD, up_SFD in self._radial():
            along_SF[sources.start : sources.stop] += row_dots(grad_SFD, up_SFD)
        if self.norm == "sum":  # whose gradient has norm 1 in every target
            n_targets = [sum(s in read for read in self.sources_of) for s in range(self.n_sources)]
            along_SF /= along_SF.new_tensor(n_targets)[:, None]
        for sources, grad_SFD, up_SFD in self._radial():
            share_SF1 = along_SF[sources.start : sources.stop, :, None]
            grad_SFD.addcmul_(up_SFD, share_SF1, value=-1)

    def _radial(self) -> Iterator[tuple[range, Tensor, Tensor]]:
        """(sources, the loss's gradient in W, the norm's gradient in W) of each target."""
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


def _at(sources: range, rows: Tensor, n_sources: int) -> Tensor:
    """`rows` at the places of `sources` among n_sources, zero elsewhere."""
    return nn.functional.pad(rows, (0, 0, sources.start, n_sources - sources.stop))
