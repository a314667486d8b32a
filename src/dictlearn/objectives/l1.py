"""L1 penalty on the code, weighted by decoder norms (Anthropic, April 2024 update)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term, strengths


@final
class L1(Term):
    """Mean over tokens of sum_i |f_i| ||W_dec,i||.

    The weight makes the penalty indifferent to how a feature splits its strength between code and
    decoder, so that free decoder norms can't escape it.
    """

    steers_l0 = "by its weight"

    def value(self, forward: Forward) -> Tensor:
        code = forward.encoding.support
        norms = forward.dictionary.decoder.norms().flatten()
        return (strengths(forward) * norms[code.pattern.columns]).sum() / code.n_tokens
