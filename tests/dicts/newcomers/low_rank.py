"""SAE whose decoder has a low rank, W_dec = A B: features share a few directions of writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack, final

import torch
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.dicts.decoder import Costs, Decoder
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.link import Link, check_pairs
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import site_at
from dictlearn.ranges import Count, Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import Code, ModelInfo


def low_rank(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    site: str = "resid_post",
    layer: Natural | None = None,
    rank: Count = 32,
    k: Positive = 32,
    **options: Unpack[Options],
) -> Dictionary:
    """x -> code -> x, with decoder rows within `rank` dimensions."""
    name = (site_at(site, layer, info),)
    made = features_of(options, info.width)
    shape = Shape("low_rank", name, name, info.width, k=k, centre=True, link=LowRank(rank), **made)
    return Dictionary(shape, sparsity)


@final
@dataclass(frozen=True)
class LowRank(Link):
    """Source s -> target s."""

    name: ClassVar[str] = "low_rank"
    rank: Count = 32

    def check(self, shape: Shape) -> None:
        check_pairs(self, shape)
        if self.rank > shape.width:
            raise ValueError(f"dict.rank={self.rank}: want at most the width, {shape.width}")

    def decoder(self, shape: Shape) -> Decoder:
        sizes = len(shape.targets), shape.n_features, self.rank, shape.width
        return LowRankDecoder(*sizes, shape.unit_norm)


@final
class LowRankDecoder(Decoder):
    """y_hat_s = f_s A[s] B[s] + b_dec_s. A feature's norm is that of its row of the product."""

    def __init__(self, n_sites: int, n_features: int, rank: int, width: int, unit_norm: bool):
        super().__init__()
        self.unit_norm = unit_norm
        self.A = nn.Parameter(torch.empty(n_sites, n_features, rank))
        self.B = nn.Parameter(torch.empty(n_sites, rank, width))
        self.b_dec = nn.Parameter(torch.zeros(n_sites, width))  # TD

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        inner_RK = sparse_decode(code.pattern, code.values, self.A.flatten(0, 1))
        inner_NSK = inner_RK.unflatten(0, (-1, len(self.A)))
        return torch.einsum("nsk,skd->nsd", inner_NSK, self.B)

    def reads(self, target: int) -> range:
        return range(target, target + 1)

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        return sparse_decode(codes[t].pattern, codes[t].values, self.A[t]) @ self.B[t]

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        return self.A[s, rows] @ self.B[s]

    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.A @ self.B, dim=-1)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.A)
        nn.init.normal_(self.B)
        self.normalise()

    @torch.no_grad()
    def project_gradient(self) -> None:
        """A row of A along itself is what changes nothing but a norm."""
        if self.unit_norm and self.A.grad is not None:
            unit = nn.functional.normalize(self.A, dim=-1)
            self.A.grad.sub_((self.A.grad * unit).sum(-1, keepdim=True) * unit)

    @torch.no_grad()
    def normalise(self) -> None:
        self.A.div_(self.norms()[..., None])

    @torch.no_grad()
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        self.A.mul_((code_scale_S / output_scale_T)[:, None, None])
        self.b_dec.div_(output_scale_T[:, None])

    def costs(self, k: float) -> Costs:
        rows = k * self.A.shape[0] * self.A.shape[2]
        return Costs(rows + self.B.numel(), gathered=rows, once=self.B.numel())
