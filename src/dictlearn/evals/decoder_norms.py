"""Decoder norms from each source to each target, such as of a cross-layer transcoder."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.evals.context import EvalContext, EvalResult, Meter, Metric, Observation
from dictlearn.evals.geometry import Live, histogram
from dictlearn.evals.moments import Spread
from dictlearn.types import DictionaryLike


@final
class DecoderNorms(Metric):
    """How much features write to each of several targets; nothing for one target.

    Series over live features, in units of each target's standard deviation:

    - `relative_norm_histogram` [2, bins], for two targets: the second one's share of the norms;
    - `largest_share_histogram` [2, bins], for more: the share of a feature's strongest target;
    - `strongest_target` [T], for more: the number of features that write most to each target.

    `decoder_norms` [S, T], for dictionaries whose sources have features of their own, is the mean
    decoder norm from source s to target t, times the mean size of an active feature of s, over the
    target's standard deviation. Unlike a norm alone, it does not depend on the units of code and
    target.
    """

    def begin(self, context: EvalContext) -> DecoderNormsMeter:
        return DecoderNormsMeter(context.dictionary)


@final
class DecoderNormsMeter(Meter):
    def __init__(self, dictionary: DictionaryLike) -> None:
        self.dictionary = dictionary
        self.live = Live()
        self.value_S = torch.zeros(dictionary.code_sources, dtype=torch.float64)
        self.count_S = torch.zeros(dictionary.code_sources, dtype=torch.float64)
        self.spread = Spread()

    def update(self, seen: Observation) -> None:
        if self.dictionary.n_targets == 1:
            return
        self.live.update(seen)
        code = seen.code
        keep = seen.valid_N[code.rows // code.n_sources]
        source, values = (
            (code.rows % code.n_sources)[keep].cpu(),
            code.values[keep].double().abs().cpu(),
        )
        self.value_S.index_add_(0, source, values)
        self.count_S.index_add_(0, source, torch.ones_like(values))
        self.spread.update(seen.batch.y_NTD[seen.valid_N])

    def result(self) -> EvalResult:
        if self.spread.n == 0:
            return EvalResult()
        deviation_T = (self.spread.squares_T.cpu() / self.spread.n).sqrt()
        series = self._over_targets(deviation_T)
        if self.dictionary.code_sources == 1:
            return EvalResult(series=series)
        active_S = self.value_S / self.count_S.clamp(min=1)
        norms_ST: Tensor = self.dictionary.decoder.norms_by_target().detach().cpu().double()
        table_ST = norms_ST * active_S[:, None] / deviation_T.clamp(min=1e-300)
        return EvalResult(series=series | {"decoder_norms": table_ST})

    @torch.no_grad()
    def _over_targets(self, deviation_T: Tensor) -> dict[str, Tensor]:
        """Series of how live features' norms are shared among the targets that they reach."""
        dictionary, n_targets = self.dictionary, self.dictionary.n_targets
        live_SF = self.live.fired.view(dictionary.code_sources, -1)
        shares = []
        for s in range(dictionary.code_sources):
            norms_FT = torch.zeros(dictionary.n_features, n_targets, dtype=torch.float64)
            reached = [t for t in range(n_targets) if s in dictionary.reads(t)]
            for t in reached:
                written_FD = dictionary.decoder.written(t, s, slice(0, dictionary.n_features))
                norms_FT[:, t] = written_FD.norm(dim=-1).cpu().double() / deviation_T[t]
            if len(reached) > 1:
                norms_FT = norms_FT[live_SF[s]]
                shares.append(norms_FT / norms_FT.sum(1, keepdim=True).clamp(min=1e-300))
        if not shares or not len(share_FT := torch.cat(shares)):
            return {}
        if n_targets == 2:
            return {"relative_norm_histogram": histogram(share_FT[:, 1])}
        largest_F, target_F = share_FT.max(1)
        return {
            "largest_share_histogram": histogram(largest_F),
            "strongest_target": torch.bincount(target_F, minlength=n_targets),
        }
