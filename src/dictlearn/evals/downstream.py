"""Measures the model's loss with reconstructions in place of activations (maths 4.2-4.3, 5.3).

The reconstruction replaces the target sites on valid tokens; special and padding positions keep
the clean value. With several targets the reconstructions come from clean activations (teacher
forced); `replacement` also lets them read the patched run. CE and KL are pooled, in nats per token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dictlearn.evals.comparison import Comparison, Run, Turn, Turns, share_for
from dictlearn.evals.context import (
    DICTIONARY,
    ZERO_ABLATION,
    EvalContext,
    EvalResult,
    Meter,
    Metric,
    Observation,
)
from dictlearn.evals.passes import OWN, Key, Passes, digest
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.lm.readout import has_head
from dictlearn.ranges import Count

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Downstream(Metric):
    """CE, KL(clean || patched) and top-1 agreement.

    Args:
        max_tokens: positions to run the model on, spread over the evaluated windows; it runs once
            for the clean figures and once more for every row. null: all.
        chunk_tokens: positions whose logits exist at once; few fit into a CPU's cache.

    An encoder model predicts no next token: it gets a warning and no figures.
    """

    needs_model: ClassVar[bool] = True
    max_tokens: Count | None = None
    chunk_tokens: Count = 128

    def begin(self, context: EvalContext) -> DownstreamMeter:
        assert context.lm is not None, "downstream figures need the language model"
        if not has_head(context.lm):
            name = context.lm.info.name
            log.warning("eval.downstream: %s has no next-token head: no CE, no KL", name)
        share = share_for(context, self.max_tokens)
        targets = context.dictionary.targets
        return DownstreamMeter(context.lm, targets, share, self.chunk_tokens, context.passes)


@final
class DownstreamMeter(Meter):
    """Sums over the scored positions of a `share` of the windows."""

    def __init__(
        self,
        lm: LanguageModel,
        targets: tuple[str, ...],
        share: float = 1.0,
        chunk_tokens: Count = 128,
        passes: Passes = OWN,
    ) -> None:
        self.lm = lm
        self.targets = targets
        self.turns = Turns(share)
        self.comparison = Comparison(lm, chunk_tokens, passes)

    def update(self, seen: Observation) -> None:
        turn = self.turns.take(seen)
        if turn is None or not has_head(self.lm):
            return
        runs = {row: self._stand_in(turn, y_hat) for row, y_hat in seen.y_hat_NTD.items()}
        # A baseline's values may be another run's too. The dictionary's own are nobody else's.
        values = {row: y for row, y in seen.y_hat_NTD.items() if row != DICTIONARY}
        self.comparison.update(turn, runs, {row: self._key(y) for row, y in values.items()})

    def _key(self, y_hat_NTD: Tensor) -> Key:
        return lambda: (self.targets, digest(y_hat_NTD))

    def _stand_in(self, turn: Turn, y_hat_NTD: Tensor) -> Run:
        """A run of the model with the reconstruction in place of every target site."""

        def replacement(y_hat_BPD: Tensor) -> Replacement:
            return lambda _, clean_BPD: y_hat_BPD.to(clean_BPD.dtype)

        def run(states: Callable[[], Tensor]) -> Tensor:
            y_hat_TBPD = turn.placed(y_hat_NTD).unbind(2)
            replacements = {
                target: replacement(y_hat)
                for target, y_hat in zip(self.targets, y_hat_TBPD, strict=True)
                if self.lm.at(target)[0] is self.lm
            }
            with patched(self.lm, replacements, mask_BP=turn.valid_BP):
                return states()

        return run

    def result(self) -> EvalResult:
        n = self.comparison.n
        if n == 0:
            return EvalResult()
        rows = {row: self.comparison.figures(row) for row in self.comparison.sums}
        figures = rows.pop(DICTIONARY)
        figures |= {"ce_clean": self.comparison.ce_clean / n, "scored_tokens": float(n)}
        if ZERO_ABLATION in rows and rows[ZERO_ABLATION]["ce_increase"] > 0:
            lost = figures["ce_increase"] / rows[ZERO_ABLATION]["ce_increase"]
            figures["ce_recovered"] = 1.0 - lost
        return EvalResult(figures=figures, rows=rows, series=self._by_position())

    def _by_position(self) -> dict[str, Tensor]:
        """`ce_by_position` [3, P]: mean increase of the dictionary, of zero ablation, and tokens."""
        sums, (clean_P, count_P) = self.comparison.sums, self.comparison.clean_2P
        if ZERO_ABLATION not in sums:
            return {}
        increases = [
            (sums[row].ce_P - clean_P) / count_P.clamp(min=1) for row in (DICTIONARY, ZERO_ABLATION)
        ]
        return {"ce_by_position": torch.stack([*increases, count_P])}
