"""How strongly each layer's features write to each layer: the heat map of a cross-layer decoder."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from dictlearn.evals.context import EvalContext, EvalResult, Links, Meter, Metric, Observation
from dictlearn.evals.moments import Spread


@final
class DecoderNorms(Metric):
    """Series `decoder_norms` [S, T], for dictionaries whose sources have features of their own.

    Mean decoder norm from source s to target t, times the mean value of an active feature of s,
    over the target's standard deviation: how much of t one active feature of s writes. A norm alone
    depends on the units of code and target; this does not.
    """

    def begin(self, context: EvalContext) -> DecoderNormsMeter:
        dictionary = context.dictionary
        applies = len(dictionary.targets) > 1 and dictionary.code_sources > 1
        return DecoderNormsMeter(dictionary.decoder if applies else None, dictionary.code_sources)


@final
class DecoderNormsMeter(Meter):
    def __init__(self, decoder: Links | None, n_sources: int) -> None:
        self.decoder = decoder
        self.value_S = torch.zeros(n_sources, dtype=torch.float64)
        self.count_S = torch.zeros(n_sources, dtype=torch.float64)
        self.spread = Spread()

    def update(self, seen: Observation) -> None:
        if self.decoder is None:
            return
        code = seen.code
        keep = seen.valid_N[code.rows // code.n_sources]
        source, values = (code.rows % code.n_sources)[keep].cpu(), code.values[keep].double().cpu()
        self.value_S.index_add_(0, source, values)
        self.count_S.index_add_(0, source, torch.ones_like(values))
        self.spread.update(seen.batch.y_NTD[seen.valid_N])

    def merge(self, other: Self) -> None:
        self.value_S += other.value_S
        self.count_S += other.count_S
        self.spread.merge(other.spread)

    def result(self) -> EvalResult:
        if self.decoder is None or self.spread.n == 0:
            return EvalResult()
        active_S = self.value_S / self.count_S.clamp(min=1)
        deviation_T = (self.spread.squares_T.cpu() / self.spread.n).sqrt()
        norms_ST: Tensor = self.decoder.norms_by_target().detach().cpu().double()
        table_ST = norms_ST * active_S[:, None] / deviation_T.clamp(min=1e-300)
        return EvalResult(series={"decoder_norms": table_ST})
