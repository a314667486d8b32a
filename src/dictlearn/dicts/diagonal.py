"""The simplest link: features of source s write to target s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch
from dictlearn_kernels.decode_error import decode_error
from dictlearn_kernels.fused_adam import CONCAT, FREE, FeatureRows
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.dicts.decoder import Costs, Decoder, bag_costs, row_dots
from dictlearn.dicts.link import Link, check_pairs
from dictlearn.types import Code

if TYPE_CHECKING:
    from dictlearn.dicts.shape import Shape


@final
@dataclass(frozen=True)
class Diagonal(Link):
    """Source s -> target s."""

    name: ClassVar[str] = "diagonal"

    def check(self, shape: Shape) -> None:
        check_pairs(self, shape)

    def decoder(self, shape: Shape) -> Decoder:
        sizes = len(shape.targets), shape.n_features, shape.width
        return DiagonalDecoder(*sizes, shape.unit_norm)


@final
class DiagonalDecoder(Decoder):
    """y_hat_s = f_s W_dec[s] + b_dec_s."""

    def __init__(self, n_sites: int, n_features: int, width: int, unit_norm: bool):
        super().__init__()
        self.unit_norm = unit_norm
        self.W_dec = nn.Parameter(torch.empty(n_sites, n_features, width))  # SFD
        self.b_dec = nn.Parameter(torch.zeros(n_sites, width))  # TD

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        y_RD = sparse_decode(code.pattern, code.values, self.W_dec.flatten(0, 1))
        return y_RD.view(code.n_tokens, *self.b_dec.shape)

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
        pattern, entries = code.nested(prefixes)
        bias_TD = self.b_dec if with_bias else None
        W_CD, y_RD = self.W_dec.flatten(0, 1), y_NTD.flatten(0, 1)
        error, e_RD = decode_error(pattern, code.values[entries], W_CD, y_RD, bias_TD, weights)
        return error, e_RD.view_as(y_NTD).unbind(1)

    def reads(self, target: int) -> range:
        return range(target, target + 1)

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        return sparse_decode(codes[t].pattern, codes[t].values, self.W_dec[t])

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        return self.W_dec[s, rows]

    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.W_dec, dim=-1)

    def norms_by_target(self) -> Tensor:
        return self.norms().detach().mean(1).diag().cpu()

    def vectors(self) -> Tensor:
        return self.W_dec.squeeze(0) if len(self.W_dec) == 1 else self.W_dec

    def costs(self, k: float) -> Costs:
        return bag_costs(self, k)

    def features(self) -> list[FeatureRows]:
        n_rows = self.W_dec.shape[0] * self.W_dec.shape[1]
        return [FeatureRows(((self.W_dec, 0),), n_rows, CONCAT if self.unit_norm else FREE)]

    @torch.no_grad()
    def project_gradient(self) -> None:
        if self.unit_norm and self.W_dec.grad is not None:
            along_SF = row_dots(self.W_dec.grad, self.W_dec)
            self.W_dec.grad.addcmul_(self.W_dec, along_SF[..., None], value=-1)

    @torch.no_grad()
    def normalise(self) -> None:
        self.W_dec.div_(self.norms()[..., None].clamp_min(1e-12))

    @torch.no_grad()
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        self.W_dec.mul_((code_scale_S / output_scale_T)[:, None, None])
        self.b_dec.div_(output_scale_T[:, None])
