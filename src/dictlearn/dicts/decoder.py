"""What a decoder is: from a code to the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dictlearn_kernels.fused_adam import FeatureRows
from torch import Tensor, nn

from dictlearn.types import Code

START_NORM = 0.1  # of features whose norm is free (Anthropic, April 2024 update)


@dataclass(frozen=True)
class Costs:
    """What decoding takes, counted in numbers; those of a token are a forward pass's."""

    multiplied: float  # weights that a token's code is multiplied with
    gathered: float = 0.0  # of these, weights that every token reads for itself
    once: float = 0.0  # weights that are read once for all tokens of a batch
    per_entry: float = 0.0  # kept of every entry of a code for the backward pass, beside the entry
    indices: float = 0.0  # whole numbers kept of a token's code: patterns of its own for targets
    in_factors: int = 0  # in `features()`, those whose gradients are sums over a code
    dense: int = 0  # the others in `features()`: a CPU keeps the memory that their gradients are in


class Decoder(nn.Module, ABC):
    """Abstract. From a code to the targets; one final class for each way of doing it.

    With `unit_norm`, `norms()` stays at 1 during training: after the backward pass the gradient
    loses what would only change a norm, and after the optimiser's step the features are normalised
    (in this order: see Gao et al. 2024, A.3; momentum brings back a radial part, so both are needed).
    """

    W_dec: Any  # where there is one: a parameter [S, F, D], or a list of them, one for each target
    b_dec: nn.Parameter  # TD
    unit_norm: bool
    writes_directions: ClassVar[bool] = True  # `written` gives what a feature writes, whatever x is
    streams: ClassVar[bool] = False  # `squared_error` goes target by target, without y_hat

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

    def reaches(self, source: int) -> list[int]:
        """The targets that a source of the code writes to, in order."""
        return [t for t in range(len(self.b_dec)) if source in self.reads(t)]

    @abstractmethod
    def written(self, t: int, s: int, rows: slice) -> Tensor:
        """What features `rows` of source s, one of `reads(t)`, write to target t: [n, D].

        ValueError where features write no fixed direction (`writes_directions`).
        """

    def maps(self) -> Sequence[tuple[Tensor, Tensor]]:
        """(U, V), each [n, rank, D], of all features in order that write U^T V x instead; else none."""
        return ()

    def vectors(self) -> Any:
        """What `Dictionary.W_dec` shows a notebook: a tensor where every target reads one source,
        [T, F, D], or [F, D] of one; else a tuple of [the sources in `reads(t)`, F, D] for each target.

        Raises:
            ValueError: features write no fixed direction.
        """
        targets = tuple(
            torch.stack([self.written(t, s, slice(None)) for s in self.reads(t)])
            for t in range(len(self.b_dec))
        )
        if any(len(W_SFD) > 1 for W_SFD in targets):
            return targets
        return targets[0].squeeze(0) if len(targets) == 1 else torch.cat(targets)

    def inner(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        """Inner products of all that features write: [n, m], of (source, rows) and (source, rows)."""
        ours, theirs = self.reaches(a[0]), self.reaches(b[0])
        n, m = len(self.written(ours[0], *a)), len(self.written(theirs[0], *b))
        products_nm = self.b_dec.new_zeros(n, m)
        for t in ours:
            if t in theirs:
                products_nm += self.written(t, *a) @ self.written(t, *b).T
        return products_nm

    def lengths(self, source: int) -> Tensor:
        """Root of the sum of squares of all that each feature of a source writes: [F]."""
        squares_F = self.b_dec.new_zeros(())
        for t in self.reaches(source):
            squares_F = squares_F + self.written(t, source, slice(None)).square().sum(1)
        return squares_F.sqrt()

    @abstractmethod
    def norms(self) -> Tensor:
        """Norm of everything a feature writes: [S, F], over the code's sources."""

    @torch.no_grad()
    def norms_by_target(self) -> Tensor:
        """Mean over features of the norm that a source writes to a target: [S, T], 0 without a link."""
        n_targets = len(self.b_dec)
        n_sources = max(self.reads(t).stop for t in range(n_targets))
        table_ST = torch.zeros(n_sources, n_targets, dtype=self.b_dec.dtype)
        for t in range(n_targets):
            for s in self.reads(t):
                table_ST[s, t] = self.written(t, s, slice(None)).norm(dim=-1).mean().cpu()
        return table_ST

    @abstractmethod
    def reset_parameters(self) -> None:
        """Random directions: of norm 1, or 0.1 where norms are free."""

    def features(self) -> list[FeatureRows]:
        """Which rows of which parameters make a feature, for the fused optimiser; maybe none."""
        return []

    @abstractmethod
    def project_gradient(self) -> None:
        """Removes from the gradient what would only change a feature's norm."""

    @abstractmethod
    def normalise(self) -> None:
        """Brings every feature's norm to 1."""

    def costs(self, k: float) -> Costs:
        """What it takes to decode k features of every token and source, for `dictlearn plan`.

        Raises:
            ValueError: the decoder doesn't say.
        """
        raise ValueError(
            f"{type(self).__name__}: does not say what it takes; a plan wants its method costs(k), which "
            "gives dictlearn.dicts.decoder.Costs"
        )

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


def bag_costs(decoder: Decoder, k: float) -> Costs:
    """Costs where a target is a sum of decoder rows: k of every source that it reads."""
    n_targets, width = decoder.b_dec.shape
    numbers = k * sum(len(decoder.reads(t)) for t in range(n_targets)) * width
    return Costs(numbers, gathered=numbers, in_factors=matrices(decoder))


def matrices(module: nn.Module) -> int:
    """Numbers in parameters that are stacks of matrices."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 2)
