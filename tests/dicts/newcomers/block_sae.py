"""Block SAE: a feature is a plane, or a larger subspace, of several decoder vectors.

A code has a feature's coordinates as entries of their own, all first coordinates before all second ones:
coordinate j of block g is entry j * blocks + g. `block_topk` picks them block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack, final

import torch
from dictlearn_kernels.fused_adam import CONCAT, FREE, FeatureRows
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.dicts.decoder import Costs, Decoder, bag_costs
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.link import Link
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import site_at
from dictlearn.ranges import Count, Natural
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import Code, ModelInfo


def block_sae(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    site: str = "resid_post",
    layer: Natural | None = None,
    size: Count = 2,
    k: Count = 8,
    **options: Unpack[Options],
) -> Dictionary:
    """x -> code -> x; `k` blocks of `size` coordinates fire on a token."""
    name = (site_at(site, layer, info),)
    made = features_of(options, info.width)
    shape = Shape(
        "block_sae", name, name, info.width, k=k * size, centre=True, link=Blocks(size), **made
    )
    return Dictionary(shape, sparsity)


@final
@dataclass(frozen=True)
class Blocks(Link):
    """One source -> one target, by blocks of `size` features."""

    name: ClassVar[str] = "blocks"
    size: Count = 2

    def check(self, shape: Shape) -> None:
        if shape.n_features % self.size or len(shape.sources) + len(shape.targets) != 2:
            raise ValueError(
                f"dict.n_features={shape.n_features}: want a multiple of dict.size={self.size}"
            )

    def decoder(self, shape: Shape) -> Decoder:
        return BlockDecoder(shape.n_features // self.size, self.size, shape.width, shape.unit_norm)


@final
class BlockDecoder(Decoder):
    """y_hat = f W_dec + b_dec. What is kept at 1 is the norm of a block, of all its vectors."""

    def __init__(self, n_blocks: int, size: int, width: int, unit_norm: bool):
        super().__init__()
        self.n_blocks, self.size, self.unit_norm = n_blocks, size, unit_norm
        self.W_dec = nn.Parameter(torch.empty(size, n_blocks, width))
        self.b_dec = nn.Parameter(torch.zeros(1, width))  # TD

    @property
    def W_FD(self) -> Tensor:
        return self.W_dec.flatten(0, 1)

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        return sparse_decode(code.pattern, code.values, self.W_FD)[:, None]

    def reads(self, target: int) -> range:
        return range(1)

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        return self.without_bias(codes[0])[:, 0]

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        return self.W_FD[rows]

    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.W_dec, dim=(0, 2)).repeat(self.size)[None]

    def reset_parameters(self) -> None:
        nn.init.normal_(self.W_dec)
        self.normalise()

    def features(self) -> list[FeatureRows]:
        parts = tuple((self.W_dec, j * self.n_blocks) for j in range(self.size))
        return [FeatureRows(parts, self.n_blocks, CONCAT if self.unit_norm else FREE)]

    @torch.no_grad()
    def project_gradient(self) -> None:
        if self.unit_norm and self.W_dec.grad is not None:
            along_G1 = (self.W_dec * self.W_dec.grad).sum((0, 2))[:, None]
            self.W_dec.grad.sub_(along_G1 * self.W_dec)

    @torch.no_grad()
    def normalise(self) -> None:
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=(0, 2), keepdim=True))

    @torch.no_grad()
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        self.W_dec.mul_(code_scale_S / output_scale_T)
        self.b_dec.div_(output_scale_T)

    def costs(self, k: float) -> Costs:
        return bag_costs(self, k)
