"""AuxK (Gao et al. 2024, section 3.1 and A.2): dead features learn to predict the residual error."""

from __future__ import annotations

from typing import final

import torch
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sparse_decode import sparse_decode
from dictlearn_kernels.sparse_encode import sparse_encode
from dictlearn_kernels.top_k import row_top_k
from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term, zero


@final
class AuxK(Term):
    """|| (y - y_hat) - e_hat ||^2 with e_hat decoded from the k_aux strongest dead features.

    The residual is a constant target and e_hat has no bias (the residual has none left). The error
    is reduced like the reconstruction, and fades in with the share of k_aux that dead features can
    fill. In that unit a coefficient of 1 does what 1/32 does in the paper, which divides by the
    residual's own variance. Only the dead rows of encoder and decoder are gathered, so it costs what
    is dead. `k_aux` null means half the width.
    """

    def __init__(self, coefficient: float = 1.0, warmup: float = 0.0, k_aux: int | None = None):
        super().__init__(coefficient, warmup)
        if k_aux is not None and k_aux < 1:
            raise ValueError(f"objective.terms.auxk.k_aux={k_aux}: want at least 1, or null")
        self.k_aux = k_aux

    def value(self, forward: Forward) -> Tensor:
        dictionary = forward.dictionary
        k_aux = self.k_aux or dictionary.width // 2 or 1
        n_dead = int(forward.dead_SF.sum())
        if n_dead == 0:
            return zero(forward)
        residual_NTD = (forward.y_NTD - forward.y_hat_NTD).detach()
        x_NSD = dictionary.centred(forward.x_NSD)
        predicted = [
            self._from_dead(dictionary, source, dead_F, x_NSD[:, source], k_aux)
            for source, dead_F in enumerate(forward.dead_SF)
        ]
        error_NTD = residual_NTD - torch.stack(predicted, dim=1)
        return min(1.0, n_dead / k_aux) * forward.reduce(error_NTD)

    def _from_dead(
        self, dictionary, source: int, dead_F: Tensor, x_ND: Tensor, k_aux: int
    ) -> Tensor:
        dead = dead_F.nonzero().squeeze(1)
        if len(dead) == 0:
            return torch.zeros_like(x_ND)
        W_enc = dictionary.encoder.W_enc[source][dead]
        b_enc = dictionary.encoder.b_enc[source][dead]
        with torch.no_grad():
            pre = torch.addmm(b_enc, x_ND, W_enc.T)
            row_starts, columns, values = row_top_k(pre, min(k_aux, len(dead)))
        pattern = Pattern(row_starts, columns, len(dead))
        values = sparse_encode(pattern, x_ND, W_enc, b_enc, values)
        return sparse_decode(pattern, values, dictionary.decoder.W_dec[source][dead])
