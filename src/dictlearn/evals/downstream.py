"""What the model loses when the dictionary stands in for the activations (maths 4.2-4.3, 5.3).

The reconstruction replaces the target sites on valid tokens; special and padding positions keep
the clean value. With several targets the reconstructions come from clean activations (teacher
forced). CE and KL are pooled, in nats per token. A position counts when its token and the next
one, which it predicts, are both valid.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Self, final

import torch
from torch import Tensor

from dictlearn.evals.context import (
    DICTIONARY,
    ZERO_ABLATION,
    EvalContext,
    EvalResult,
    Meter,
    Metric,
    Observation,
)
from dictlearn.evals.observe import windows_read
from dictlearn.evals.readout import Readout, has_head
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.objectives.kl_to_teacher import kl_of_log_probs

log = logging.getLogger(__name__)


@final
class Downstream(Metric):
    """CE, KL(clean || patched) and top-1 agreement.

    Args:
        max_tokens: positions to run the model on, spread over the evaluated windows; it runs once
            for the clean figures and once more for every row. null: all.
        chunk_tokens: positions whose logits exist at once. Few fit a CPU's cache, which is faster.

    An encoder predicts no next token: for one there are no figures, and a warning says so.
    """

    def __init__(self, max_tokens: int | None = None, chunk_tokens: int = 128) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(
                f"eval.downstream.max_tokens={max_tokens}: want at least 1, or null for all"
            )
        if chunk_tokens < 1:
            raise ValueError(f"eval.downstream.chunk_tokens={chunk_tokens}: want at least 1")
        self.max_tokens = max_tokens
        self.chunk_tokens = chunk_tokens

    def begin(self, context: EvalContext) -> DownstreamMeter:
        assert context.lm is not None, "downstream figures need the language model"
        if not has_head(context.lm):
            name = context.lm.info.name
            log.warning("eval.downstream: %s has no next-token head: no CE, no KL", name)
        share = 1.0
        if self.max_tokens is not None and context.windows is not None:
            some = windows_read(context.windows, self.max_tokens)
            share = some / max(windows_read(context.windows, context.n_tokens), 1)
        rows = (DICTIONARY, *context.rows)
        return DownstreamMeter(
            context.lm, context.dictionary.targets, rows, share, self.chunk_tokens
        )


@final
class DownstreamMeter(Meter):
    """Sums over scored positions of every window whose turn it is: a `share` of them."""

    def __init__(
        self,
        lm: LanguageModel,
        targets: tuple[str, ...],
        rows: tuple[str, ...],
        share: float = 1.0,
        chunk_tokens: int = 128,
    ) -> None:
        self.lm = lm
        self.targets = targets
        self.share = min(share, 1.0)
        self.chunk_tokens = chunk_tokens
        self.readout: Readout | None = None
        self.windows = 0
        self.n = 0
        self.ce_clean = 0.0
        self.sums = {row: {"ce": 0.0, "kl": 0.0, "agree": 0.0} for row in rows}

    def update(self, seen: Observation) -> None:
        turn_B = torch.tensor([self._takes_next() for _ in seen.tokens_BP]).to(seen.text_BP.device)
        valid_BP = torch.zeros_like(seen.text_BP)
        valid_BP[seen.text_BP] = seen.valid_N
        tokens_BP, valid_BP = seen.tokens_BP[turn_B], valid_BP[turn_B]
        scored_BP = valid_BP.clone()
        scored_BP[:, -1] = False
        scored_BP[:, :-1] &= valid_BP[:, 1:]
        if not (has_head(self.lm) and scored_BP.any()):
            return
        if self.readout is None:
            self.readout = Readout(self.lm, tokens_BP)
        clean_ND = self.readout.states(tokens_BP)[scored_BP]
        patched_ND = {}
        for row, y_hat_NTD in seen.y_hat_NTD.items():
            placed_BPTD = y_hat_NTD.new_zeros(*seen.text_BP.shape, *y_hat_NTD.shape[1:])
            placed_BPTD[seen.text_BP] = y_hat_NTD
            with self._stand_in(placed_BPTD[turn_B], valid_BP):
                patched_ND[row] = self.readout.states(tokens_BP)[scored_BP]
        next_N = tokens_BP.roll(-1, dims=1)[scored_BP]
        for start in range(0, len(next_N), self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            self._compare(
                self.readout.logits(clean_ND[part]).log_softmax(-1),
                {row: states[part] for row, states in patched_ND.items()},
                next_N[part],
            )
        self.n += len(next_N)

    def _takes_next(self) -> bool:
        """Whether it is the next window's turn; turns are evenly spaced, whatever the batches."""
        self.windows += 1
        return int(self.windows * self.share) > int((self.windows - 1) * self.share)

    def _stand_in(
        self, y_hat_BPTD: Tensor, valid_BP: Tensor
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Inside, the model runs with the reconstruction in place of every target site."""

        def replacement(t: int) -> Replacement:
            return lambda _, clean_BPD: y_hat_BPTD[:, :, t].to(clean_BPD.dtype)

        replacements = {target: replacement(t) for t, target in enumerate(self.targets)}
        return patched(self.lm, replacements, reads=(), mask_BP=valid_BP)

    def _compare(self, clean_NV: Tensor, states: dict[str, Tensor], next_N: Tensor) -> None:
        assert self.readout is not None
        self.ce_clean += _nats(clean_NV, next_N)
        best_N = clean_NV.argmax(-1)
        for row, states_ND in states.items():
            patched_NV = self.readout.logits(states_ND).log_softmax(-1)
            sums = self.sums[row]
            sums["ce"] += _nats(patched_NV, next_N)
            sums["kl"] += float(kl_of_log_probs(clean_NV, patched_NV).double().sum())
            sums["agree"] += float((patched_NV.argmax(-1) == best_N).sum())

    def merge(self, other: Self) -> None:
        assert self.sums.keys() == other.sums.keys()
        self.n += other.n
        self.ce_clean += other.ce_clean
        for row, sums in other.sums.items():
            for name, value in sums.items():
                self.sums[row][name] += value

    def result(self) -> EvalResult:
        if self.n == 0:
            return EvalResult()
        rows = {row: self._figures(sums) for row, sums in self.sums.items()}
        figures = rows.pop(DICTIONARY)
        figures |= {"ce_clean": self.ce_clean / self.n, "scored_tokens": float(self.n)}
        if ZERO_ABLATION in rows and rows[ZERO_ABLATION]["ce_increase"] > 0:
            lost = figures["ce_increase"] / rows[ZERO_ABLATION]["ce_increase"]
            figures["ce_recovered"] = 1.0 - lost
        return EvalResult(figures=figures, rows=rows)

    def _figures(self, sums: dict[str, float]) -> dict[str, float]:
        return {
            "ce": sums["ce"] / self.n,
            "ce_increase": (sums["ce"] - self.ce_clean) / self.n,
            "kl": sums["kl"] / self.n,
            "top1_agreement": sums["agree"] / self.n,
        }


def _nats(log_probs_NV: Tensor, next_N: Tensor) -> float:
    """Sum over tokens of -log p(next token)."""
    return -float(log_probs_NV.gather(1, next_N[:, None]).double().sum())
