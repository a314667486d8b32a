"""The link and the decoder of a MOLT, whose features gate low-rank linear maps of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, NoReturn, final

import torch
from dictlearn_kernels.fused_adam import FeatureRows
from dictlearn_kernels.transforms import gram_norms, transform
from torch import Tensor, nn

from dictlearn.dicts.decoder import Costs, Decoder, matrices
from dictlearn.dicts.link import Link
from dictlearn.types import Code
from dictlearn.words import a

if TYPE_CHECKING:
    from dictlearn.dicts.shape import Shape

START_NORM = 0.3  # initial norm of maps without unit_norm; larger ones explode with many open gates


@final
@dataclass(frozen=True)
class Transforms(Link):
    """One source -> one target, by linear maps of these ranks; equal ranks must be adjacent (MOLT)."""

    name: ClassVar[str] = "transforms"
    ranks: tuple[int, ...] = ()

    def check(self, shape: Shape) -> None:
        if len(self.ranks) != shape.n_features or min(self.ranks, default=0) < 1:
            raise ValueError(
                f"dict.ranks={list(self.ranks)}: want a rank of 1 or more for each of the "
                f"{shape.n_features} transforms"
            )
        if len(shape.sources) != 1 or len(shape.targets) != 1:
            raise ValueError(f"{a(shape.kind)} has one source and one target, not {shape.sources}")

    def decoder(self, shape: Shape) -> Decoder:
        return TransformDecoder(self.ranks, shape.width, shape.unit_norm)

    @property
    def least_tensors(self) -> int:
        return sum(1 for _ in groupby(self.ranks))


@final
class TransformDecoder(Decoder):
    """y_hat = sum_t f_t U_t V_t x + b_dec over one source and one target (Anthropic 2025).

    Row k of V_t is a direction that is read, row k of U_t the direction that is written for it.
    Transforms of equal rank are stored together, and only a token's active ones are computed. The
    norm of a feature is ||U_t V_t||_F, which the Gram matrices of its rows give.

    Both the gate and the map read the input. So if codes are divided by a because the input is, the
    maps are multiplied by a^2.
    """

    writes_directions: ClassVar[bool] = False

    def __init__(self, ranks: Sequence[int], width: int, unit_norm: bool):
        super().__init__()
        self.unit_norm, self.width = unit_norm, width
        groups = [(len(list(same)), rank) for rank, same in groupby(ranks)]
        self.U = nn.ParameterList(torch.empty(n, rank, width) for n, rank in groups)
        self.V = nn.ParameterList(torch.empty(n, rank, width) for n, rank in groups)
        self.b_dec = nn.Parameter(torch.zeros(1, width))  # TD

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        if x_NSD is None:
            raise ValueError("a molt decodes from its input too: decode(code, x)")
        return self._transformed(code, x_NSD[:, 0])[:, None]

    def _transformed(self, code: Code, x_ND: Tensor) -> Tensor:
        return transform(code.pattern, code.values, x_ND, tuple(self.U), tuple(self.V))

    def reads(self, target: int) -> range:
        return range(1)

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        return self._transformed(codes[0], x[0])

    def written(self, t: int, s: int, rows: slice) -> NoReturn:
        raise ValueError(
            "a transform writes no fixed direction: what it writes depends on its input"
        )

    def maps(self) -> Sequence[tuple[Tensor, Tensor]]:
        return list(zip(self.U, self.V, strict=True))

    def vectors(self) -> NoReturn:
        raise ValueError(
            "transforms have no fixed decoder vectors; decoder.U and decoder.V are their maps"
        )

    def inner(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        """The Frobenius inner products of the maps."""
        return _inner(self.stacked(a[1]), self.stacked(b[1]))

    def lengths(self, source: int) -> Tensor:
        return self.norms()[source]

    def costs(self, k: float) -> Costs:
        rows = matrices(self)
        n_transforms = sum(len(U_CKD) for U_CKD in self.U)
        rank = rows / 2 / self.width / n_transforms
        return Costs(
            2 * k * self.width * rank,
            once=sum(p.numel() for p in self.parameters()),
            per_entry=2 * rank,
            dense=0 if self.unit_norm else rows,
        )

    def stacked(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of U and V of these transforms, [R, D] each, and the transform of each row, [R].

        A transform maps x to U^T V x.
        """
        U, V = ([map_ for group in side for map_ in group][rows] for side in (self.U, self.V))
        ranks = torch.tensor([len(u) for u in U])
        return torch.cat(U), torch.cat(V), torch.repeat_interleave(torch.arange(len(U)), ranks)

    def norms(self) -> Tensor:
        return gram_norms(tuple(self.U), tuple(self.V))[None]

    def norms_by_target(self) -> Tensor:
        return self.norms().mean(1, keepdim=True)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets random maps of norm 1 with unit_norm, else of START_NORM; Kaiming's would explode."""
        for U_CKD, V_CKD in zip(self.U, self.V, strict=True):
            for rows in (U_CKD, V_CKD):
                nn.init.normal_(rows, std=(self.width * rows.shape[1]) ** -0.25)
        self._scale((1.0 if self.unit_norm else START_NORM) / self.norms()[0])

    def _scale(self, factor_F: Tensor) -> None:
        """Multiplies the maps by a factor; U and V each get its square root."""
        start = 0
        for U_CKD, V_CKD in zip(self.U, self.V, strict=True):
            root = factor_F[start : start + len(U_CKD), None, None].sqrt()
            U_CKD.mul_(root)
            V_CKD.mul_(root)
            start += len(U_CKD)

    def features(self) -> list[FeatureRows]:
        """The rows of U and V; empty with unit_norm, as the norm of a map depends on all its rows."""
        if self.unit_norm:
            return []
        return [FeatureRows(((rows, 0),), len(rows) * rows.shape[1]) for rows in (*self.U, *self.V)]

    @torch.no_grad()
    def project_gradient(self) -> None:
        if not self.unit_norm:
            return
        for U_CKD, V_CKD in zip(self.U, self.V, strict=True):
            if U_CKD.grad is None or V_CKD.grad is None:
                continue
            along = (U_CKD * U_CKD.grad + V_CKD * V_CKD.grad).sum((1, 2), keepdim=True)
            along /= (U_CKD.square() + V_CKD.square()).sum((1, 2), keepdim=True)
            U_CKD.grad.addcmul_(U_CKD, along, value=-1)
            V_CKD.grad.addcmul_(V_CKD, along, value=-1)

    @torch.no_grad()
    def normalise(self) -> None:
        self._scale(1 / self.norms()[0].clamp_min(1e-12))

    @torch.no_grad()
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        # There is one source, whose input has the scale of its code.
        for U_CKD in self.U:
            U_CKD.mul_(code_scale_S[0].square() / output_scale_T[0])
        self.b_dec.div_(output_scale_T[:, None])


def _inner(a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """<U_a^T V_a, U_b^T V_b> for all pairs: the sums of the blocks of (U_a U_b^T) o (V_a V_b^T)."""
    (U_a, V_a, owner_a), (U_b, V_b, owner_b) = a, b
    products = (U_a @ U_b.T) * (V_a @ V_b.T)
    n, c = int(owner_a[-1]) + 1, int(owner_b[-1]) + 1
    by_row = products.new_zeros(n, len(owner_b)).index_add_(
        0, owner_a.to(products.device), products
    )
    return products.new_zeros(n, c).index_add_(1, owner_b.to(products.device), by_row)
