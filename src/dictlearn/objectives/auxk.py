"""AuxK (Gao et al. 2024, section 3.1 and A.2): dead features learn to predict the residual error."""

from __future__ import annotations

from typing import final

import torch
from dictlearn_kernels.selection import Selection, interleaved
from dictlearn_kernels.topk_encode import topk_encode
from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term, zero
from dictlearn.ranges import Count, Fraction, NonNegative
from dictlearn.types import Code, TrainedDictionary


@final
class AuxK(Term):
    """|| (y - y_hat) - e_hat ||^2 with e_hat decoded from the k_aux strongest dead features.

    The residual is a constant target and e_hat has no bias (the residual has none left). The error
    is reduced like the reconstruction, and fades in with the share of k_aux that dead features can
    fill. In that unit a coefficient of 1 does what 1/32 does in the paper, which divides by the
    residual's own variance. Only the dead rows of encoder and decoder are gathered, so the cost is
    in proportion to the dead features. `k_aux` counts per token and source; null means half the
    width, shared by the sources.
    """

    def __init__(
        self, coefficient: NonNegative = 1.0, warmup: Fraction = 0.0, k_aux: Count | None = None
    ):
        super().__init__(coefficient, warmup)
        self.k_aux = k_aux

    def value(self, forward: Forward) -> Tensor:
        k_aux = self._wanted(forward.dictionary)
        n_dead = int(forward.dead_SF.sum())
        if n_dead == 0:
            return zero(forward)
        code = self._from_dead(forward, k_aux)
        return forward.features_error(code, weight=min(1.0, n_dead / k_aux))

    def _wanted(self, dictionary: TrainedDictionary) -> int:
        return self.k_aux or dictionary.width // 2 // dictionary.code_sources or 1

    def revived(self, dictionary: TrainedDictionary, dead: float) -> float:
        """Half of the dead features are positive."""
        return min(self._wanted(dictionary), dead * dictionary.n_features / 2)

    def _from_dead(self, forward: Forward, k_aux: int) -> Code:
        """The k_aux strongest dead features of every token and source, as a code with gradients."""
        x_NSD, encoder = forward.dictionary.encoding_of(forward.x_NSD)

        def select(source: int) -> Selection:
            dead = forward.dead_SF[source].nonzero().squeeze(1)
            W_enc, b_enc = encoder.W_enc[source][dead], encoder.b_enc[source][dead]
            row_starts, columns, values = topk_encode(
                x_NSD[:, source], W_enc, b_enc, min(k_aux, len(dead))
            )
            return row_starts, dead[columns], values

        with torch.no_grad():
            selections = [select(source) for source in range(encoder.n_sources)]
            selection = interleaved(selections)
        return encoder.at(x_NSD, selection)
