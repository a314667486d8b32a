"""The base class of decoders, which map a code to the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dictlearn_kernels.fused_adam import FeatureRows
from torch import Tensor, nn

from dictlearn.types import Code

START_NORM = 0.1  # initial norm of features without unit_norm (Anthropic, April 2024 update)


@dataclass(frozen=True)
class Costs:
    """Work and memory of decoding in a forward pass, counted in numbers (not bytes)."""

    multiplied: float  # weights per token that its code is multiplied with
    gathered: float = 0.0  # weights per token that are read for this token alone
    once: float = 0.0  # weights per batch that are read once for all tokens
    per_entry: float = 0.0  # saved for the backward pass per entry of a code, beside the entry
    indices: float = 0.0  # integers per token in the patterns that targets have of their own
    in_factors: int = 0  # parameters in `features()` whose gradients are kept as factors
    dense: int = 0  # other parameters in `features()`, for whose gradients a CPU keeps the memory


class Decoder(nn.Module, ABC):
    """Abstract: maps a code to the targets. Its subclasses are final.

    With `unit_norm`, `norms()` stays at 1 during training: after the backward pass the component of
    the gradient that changes a norm is removed, and after the optimiser's step the features are
    normalised (Gao et al. 2024, A.3). Both are needed, as momentum has such a component again.
    """

    W_dec: Any  # if there is one: a parameter [S, F, D], or a list with one for each target
    b_dec: nn.Parameter  # TD
    unit_norm: bool
    writes_directions: ClassVar[bool] = True  # whether features write fixed vectors, whatever x is
    streams: ClassVar[bool] = False  # `squared_error` goes target by target, without y_hat

    @abstractmethod
    def without_bias(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        """The reconstruction without b_dec, [N, T, D]. Some decoders also read the input `x_NSD`."""

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
        """(sum_g weights[g] ||y - y_hat_g||^2 over the nested prefixes g, y - y_hat detached).

        The second has [N, D] for every target and uses the last prefix. Decoders whose targets are
        sums of rows override this with one pass over the rows.
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
        """Target t without its bias, [N, D], from one code of one source for each s in `reads(t)`."""

    def reaches(self, source: int) -> list[int]:
        """The targets that a source of the code writes to, in order."""
        return [t for t in range(len(self.b_dec)) if source in self.reads(t)]

    @abstractmethod
    def written(self, t: int, s: int, rows: slice) -> Tensor:
        """The vectors that features `rows` of source s, one of `reads(t)`, write to target t: [n, D].

        Raises ValueError if features write no fixed vectors (`writes_directions`).
        """

    def maps(self) -> Sequence[tuple[Tensor, Tensor]]:
        """For features that write U^T V x, pairs of U and V, [n, rank, D] each, in order; else empty."""
        return ()

    def vectors(self) -> Any:
        """The value of `Dictionary.W_dec`.

        If every target reads one source it is [T, F, D], or [F, D] for one target. Otherwise it is a
        tuple with [sources in `reads(t)`, F, D] for each target t.

        Raises:
            ValueError: features write no fixed vectors.
        """
        targets = tuple(
            torch.stack([self.written(t, s, slice(None)) for s in self.reads(t)])
            for t in range(len(self.b_dec))
        )
        if any(len(W_SFD) > 1 for W_SFD in targets):
            return targets
        return targets[0].squeeze(0) if len(targets) == 1 else torch.cat(targets)

    def inner(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        """Inner products [n, m] of the features a and b, (source, rows) each, summed over targets."""
        targets_a, targets_b = self.reaches(a[0]), self.reaches(b[0])
        n, m = len(self.written(targets_a[0], *a)), len(self.written(targets_b[0], *b))
        products_nm = self.b_dec.new_zeros(n, m)
        for t in targets_a:
            if t in targets_b:
                products_nm += self.written(t, *a) @ self.written(t, *b).T
        return products_nm

    def lengths(self, source: int) -> Tensor:
        """The norm of each feature's concatenated vectors for all targets: [F]."""
        squares_F = self.b_dec.new_zeros(())
        for t in self.reaches(source):
            squares_F = squares_F + self.written(t, source, slice(None)).square().sum(1)
        return squares_F.sqrt()

    @abstractmethod
    def norms(self) -> Tensor:
        """The norm of each feature's vectors for all targets together: [S, F], S sources of the code."""

    @torch.no_grad()
    def norms_by_target(self) -> Tensor:
        """The mean norm of the vectors from source s to target t: [S, T], 0 if t doesn't read s."""
        n_targets = len(self.b_dec)
        n_sources = max(self.reads(t).stop for t in range(n_targets))
        table_ST = torch.zeros(n_sources, n_targets, dtype=self.b_dec.dtype)
        for t in range(n_targets):
            for s in self.reads(t):
                table_ST[s, t] = self.written(t, s, slice(None)).norm(dim=-1).mean().cpu()
        return table_ST

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets random vectors of norm 1 with unit_norm, else of norm 0.1."""
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 2]
        for matrix in matrices:
            nn.init.normal_(matrix)
        self.normalise()
        if not self.unit_norm:
            for matrix in matrices:
                matrix.mul_(START_NORM)

    def features(self) -> list[FeatureRows]:
        """The parameters' rows that belong to each feature, for the fused optimiser; may be empty."""
        return []

    @abstractmethod
    def project_gradient(self) -> None:
        """Removes the component of the gradient that changes a feature's norm."""

    @abstractmethod
    def normalise(self) -> None:
        """Divides every feature's vectors by its norm."""

    def costs(self, k: float) -> Costs:
        """The costs of decoding k features per token and source, for `dictlearn plan`.

        Raises:
            ValueError: the decoder doesn't have this method.
        """
        raise ValueError(
            f"{type(self).__name__} does not state its costs: a plan needs a method costs(k) that "
            "returns dictlearn.dicts.decoder.Costs"
        )

    @abstractmethod
    def rescale(self, code_scale_S: Tensor, output_scale_T: Tensor) -> None:
        """Adapts the parameters to codes divided by code_scale and outputs divided by output_scale."""

    def forward(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        """The reconstruction, [N, T, D]."""
        return self.without_bias(code, x_NSD) + self.b_dec

    @torch.no_grad()
    def after_step(self) -> None:
        if self.unit_norm:
            self.normalise()


def row_dots(a_SFD: Tensor, b_SFD: Tensor, rows: int = 1024) -> Tensor:
    """<a_sf, b_sf> [S, F], a few rows at a time, so that the products stay in the cache."""
    pairs = zip(a_SFD.flatten(0, 1).split(rows), b_SFD.flatten(0, 1).split(rows), strict=True)
    return torch.cat([(a * b).sum(-1) for a, b in pairs]).view(a_SFD.shape[:2])


def bag_costs(decoder: Decoder, k: float) -> Costs:
    """The costs if a target is a sum of decoder rows, k for every source that it reads."""
    n_targets, width = decoder.b_dec.shape
    numbers = k * sum(len(decoder.reads(t)) for t in range(n_targets)) * width
    return Costs(numbers, gathered=numbers, in_factors=matrices(decoder))


def matrices(module: nn.Module) -> int:
    """The number of elements of all parameters with more than two dimensions."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 2)
