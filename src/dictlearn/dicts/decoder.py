"""What a decoder is, and the simplest: every source's features write to the target of its number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from dictlearn_kernels.decode_error import decode_error
from dictlearn_kernels.fused_adam import CONCAT, FREE, Features
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.types import Code

START_NORM = 0.1  # of features whose norm is free (Anthropic, April 2024 update)


class Decoder(nn.Module, ABC):
    """Abstract. From a code to the targets; one final class for each way of linking them.

    With `unit_norm`, `norms()` stays at 1 during training: after the backward pass the gradient
    loses what would only change a norm, and after the optimiser's step the features are normalised
    (in this order: see Gao et al. 2024, A.3; momentum brings back a radial part, so both are needed).
    """

    W_dec: Any  # a parameter [S, F, D], or a list of them, one for each target
    b_dec: nn.Parameter  # TD
    unit_norm: bool

    @abstractmethod
    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        """The reconstruction less b_dec: [N, T, D]. `x_NSD` is the input, for decoders that read it."""

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
        """(sum_g weights[g] ||y - y_hat_g||^2 over nested prefixes, the last y - y_hat detached).

        The latter is [N, D] for every target. Decoders whose targets are sums of rows do it in one
        pass over them; this is for all others.
        """
        y_hat_NTD = self.b_dec if with_bias else y_NTD.new_zeros(())
        error, low = y_NTD.new_zeros(()), 0
        for weight, high in zip(weights, prefixes or [code.n_features], strict=True):
            part = code
            if len(prefixes) > 1:
                part = code.where((code.features >= low) & (code.features < high))
            y_hat_NTD = y_hat_NTD + self.without_bias(part, x_NSD)
            squares = torch.nn.functional.mse_loss(y_hat_NTD, y_NTD, reduction="sum")
            error, low = error + weight * squares, high
        return error, (y_NTD - y_hat_NTD).detach().unbind(1)

    @abstractmethod
    def reads(self, target: int) -> range:
        """The code's sources that this target is decoded from."""

    @abstractmethod
    def target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        """One target less its bias, [N, D], from one code of one source each for s in `reads(t)`."""

    @abstractmethod
    def written(self, t: int, s: int, rows: slice) -> Tensor:
        """What features `rows` of source s, one of `reads(t)`, write to target t: [n, D].

        ValueError for features that write no fixed direction.
        """

    @abstractmethod
    def norms(self) -> Tensor:
        """Norm of everything a feature writes: [S, F], over the code's sources."""

    @abstractmethod
    def norms_by_target(self) -> Tensor:
        """Mean over features of the norm that a source writes to a target: [S, T], 0 without a link."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Random directions: of norm 1, or 0.1 where norms are free."""

    def features(self) -> list[Features]:
        """Which rows of which parameters make a feature, for the fused optimiser; maybe none."""
        return []

    @abstractmethod
    def project_gradient(self) -> None:
        """Removes from the gradient what would only change a feature's norm."""

    @abstractmethod
    def normalise(self) -> None:
        """Brings every feature's norm to 1."""

    @abstractmethod
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        """In place: for codes that are 1 / code_scale as large, outputs 1 / output_scale as large."""

    def forward(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        """The reconstruction [N, T, D], with the bias."""
        return self.without_bias(code, x_NSD) + self.b_dec

    @torch.no_grad()
    def after_step(self) -> None:
        if self.unit_norm:
            self.normalise()


def row_dots(a_SFD: Tensor, b_SFD: Tensor, rows: int = 1024) -> Tensor:
    """<a_sf, b_sf> [S, F], a few rows at a time: the products never leave the cache."""
    pairs = zip(a_SFD.flatten(0, 1).split(rows), b_SFD.flatten(0, 1).split(rows), strict=True)
    return torch.cat([(a * b).sum(-1) for a, b in pairs]).view(a_SFD.shape[:2])


@final
class DiagonalDecoder(Decoder):
    """y_hat_s = f_s W_dec[s] + b_dec_s: rows of W_dec are the dictionary's vectors."""

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

    def vectors(self) -> list[Tensor]:
        """What features write, [S, F, D] for each of the targets that a code's source reaches."""
        return [self.W_dec]

    def features(self) -> list[Features]:
        n_rows = self.W_dec.shape[0] * self.W_dec.shape[1]
        return [Features(((self.W_dec, 0),), n_rows, CONCAT if self.unit_norm else FREE)]

    def reset_parameters(self) -> None:
        nn.init.normal_(self.W_dec)
        self.normalise()
        if not self.unit_norm:
            self.W_dec.data.mul_(START_NORM)

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
