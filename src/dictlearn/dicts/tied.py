"""The tied decoder: a feature writes the same vector to all its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from dictlearn_kernels.fused_adam import CONCAT, FREE, FeatureRows
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.dicts.decoder import Costs, Decoder, bag_costs, row_dots
from dictlearn.types import Code


@final
class TiedDecoder(Decoder):
    """y_hat_t = sum over the sources s that t reads of f_s W_dec[s] + b_dec_t.

    It has the parameters of per-layer transcoders and the targets of a cross-layer transcoder. A
    feature's norm is that of its vectors for all targets together, sqrt(number of targets) ||w||.
    """

    links_TS: Tensor  # 1 if target t reads source s, else 0; folded: scaled to the target's units

    def __init__(self, sources_of: Sequence[range], n_features: int, width: int, unit_norm: bool):
        super().__init__()
        self.sources_of, self.unit_norm = tuple(sources_of), unit_norm
        n_sources = max(sources.stop for sources in sources_of)
        self.W_dec = nn.Parameter(torch.empty(n_sources, n_features, width))  # SFD
        self.b_dec = nn.Parameter(torch.zeros(len(sources_of), width))  # TD
        links = [[float(s in sources) for s in range(n_sources)] for sources in sources_of]
        self.register_buffer("links_TS", torch.tensor(links))

    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        bags_RD = sparse_decode(code.pattern, code.values, self.W_dec.flatten(0, 1))
        bags_NSD = bags_RD.view(code.n_tokens, code.n_sources, -1)
        return torch.einsum("ts,nsd->ntd", self.links_TS, bags_NSD)

    def reads(self, target: int) -> range:
        return self.sources_of[target]

    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        bags = [
            sparse_decode(codes[s].pattern, codes[s].values, self.W_dec[s]) for s in self.reads(t)
        ]
        weights_S = self.links_TS[t, self.reads(t).start : self.reads(t).stop]
        return torch.einsum("s,snd->nd", weights_S, torch.stack(bags))

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        return self.links_TS[t, s] * self.W_dec[s, rows]

    def norms(self) -> Tensor:
        reach_S = torch.linalg.vector_norm(self.links_TS, dim=0)
        return reach_S[:, None] * torch.linalg.vector_norm(self.W_dec, dim=-1)

    @torch.no_grad()
    def norms_by_target(self) -> Tensor:
        means_S = torch.linalg.vector_norm(self.W_dec, dim=-1).mean(1)
        return (self.links_TS * means_S).T.cpu()

    def vectors(self) -> Tensor:
        """[S, F, D], or [F, D] for one source; `links_TS[t, s]` scales it for target t and source s."""
        return self.W_dec.squeeze(0) if len(self.W_dec) == 1 else self.W_dec

    def costs(self, k: float) -> Costs:
        return bag_costs(self, k)

    def features(self) -> list[FeatureRows]:
        n_features, norm = self.W_dec.shape[1], CONCAT if self.unit_norm else FREE
        reach_S = torch.linalg.vector_norm(self.links_TS, dim=0).tolist()
        return [
            FeatureRows(((self.W_dec, s * n_features),), n_features, norm, 1 / reach)
            for s, reach in enumerate(reach_S)
        ]

    @torch.no_grad()
    def project_gradient(self) -> None:
        if self.unit_norm and self.W_dec.grad is not None:
            unit = nn.functional.normalize(self.W_dec, dim=-1)
            along_SF = row_dots(self.W_dec.grad, unit)
            self.W_dec.grad.addcmul_(unit, along_SF[..., None], value=-1)

    @torch.no_grad()
    def normalise(self) -> None:
        self.W_dec.div_(self.norms()[..., None].clamp_min(1e-12))

    @torch.no_grad()
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        self.W_dec.mul_(code_scale_S[:, None, None])
        self.links_TS.div_(output_scale_T[:, None])
        self.b_dec.div_(output_scale_T[:, None])
