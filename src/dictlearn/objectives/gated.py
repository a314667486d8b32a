"""The two terms that train a gate (Rajamanoharan et al. 2024, gated SAEs, equation 8)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term


@final
class GateL1(Term):
    """Mean over tokens of sum_i relu(pi_i): the gate's own sparsity penalty."""

    wants_sparsity = "gated"
    steers_l0 = "by its weight"

    def value(self, forward: Forward) -> Tensor:
        return forward.encoding.pre.sum() / forward.encoding.support.n_tokens


@final
class GateReconstruction(Term):
    """Squared error of decoding relu(pi) with a frozen decoder. It makes the gate informative."""

    wants_sparsity = "gated"

    def value(self, forward: Forward) -> Tensor:
        gates = forward.encoding.support.with_values(forward.encoding.pre)
        y_hat_NTD = forward.dictionary.decode_constant(gates, forward.x_NSD)
        return forward.reduce(forward.y_NTD - y_hat_NTD)
