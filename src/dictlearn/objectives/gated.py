"""The two terms that train a gate (Rajamanoharan et al. 2024, gated SAEs, equation 8)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term
from dictlearn.types import TrainedDictionary


@final
class GateL1(Term):
    """Mean over tokens of sum_i relu(pi_i): the gate's own sparsity penalty."""

    steers_l0 = "by its weight"

    def value(self, forward: Forward) -> Tensor:
        return forward.encoding.pre.sum() / forward.encoding.support.n_tokens

    def check(self, dictionary: TrainedDictionary) -> None:
        check_gated("gate_l1", dictionary)


@final
class GateReconstruction(Term):
    """Squared error of decoding relu(pi) with a frozen decoder. It makes the gate informative."""

    def value(self, forward: Forward) -> Tensor:
        gates = forward.encoding.support.with_values(forward.encoding.pre)
        y_hat_NTD = forward.dictionary.decode_constant(gates, forward.x_NSD)
        return forward.reduce(forward.y_NTD - y_hat_NTD)

    def check(self, dictionary: TrainedDictionary) -> None:
        check_gated("gate_reconstruction", dictionary)


def check_gated(term: str, dictionary: TrainedDictionary) -> None:
    if dictionary.sparsity.name != "gated":
        raise ValueError(
            f"objective.terms.{term}: wants sparsity=gated, not sparsity={dictionary.sparsity.name}"
        )
