"""What the model loses when the dictionary stands in for the activations (maths 4.2-4.3, 5.3).

The reconstruction replaces the target sites on valid tokens; special and padding positions keep
the clean value. With several targets the reconstructions come from clean activations (teacher
forced). CE and KL are pooled, in nats per token. A position counts when its token and the next
one, which it predicts, are both valid.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from dictlearn.evals.readout import Readout, has_head
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.objectives.kl_to_teacher import kl_of_log_probs

BYTES_PER_MB = 2**20
log = logging.getLogger(__name__)


@final
class Downstream(Metric):
    """CE, KL(clean || patched) and top-1 agreement. `chunk_mb`: memory for one chunk of logits.

    An encoder predicts no next token: for one there are no figures, and a warning says so.
    """

    def __init__(self, chunk_mb: int = 64) -> None:
        if chunk_mb < 1:
            raise ValueError(f"eval.downstream.chunk_mb={chunk_mb}: want at least 1 megabyte")
        self.chunk_mb = chunk_mb

    def begin(self, context: EvalContext) -> DownstreamMeter:
        assert context.lm is not None, "downstream figures need the language model"
        if not has_head(context.lm):
            name = context.lm.info.name
            log.warning("eval.downstream: %s has no next-token head: no CE, no KL", name)
        rows = (DICTIONARY, *context.rows)
        return DownstreamMeter(context.lm, context.dictionary.targets, rows, self.chunk_mb)


@final
class DownstreamMeter(Meter):
    def __init__(
        self, lm: LanguageModel, targets: tuple[str, ...], rows: tuple[str, ...], chunk_mb: int
    ) -> None:
        self.lm = lm
        self.targets = targets
        self.chunk_mb = chunk_mb
        self.readout: Readout | None = None
        self.n = 0
        self.ce_clean = 0.0
        self.sums = {row: dict.fromkeys(("ce", "kl", "agree"), 0.0) for row in rows}

    def update(self, seen: Observation) -> None:
        tokens_BP = seen.tokens_BP
        valid_BP = torch.zeros_like(seen.text_BP)
        valid_BP[seen.text_BP] = seen.valid_N
        scored_BP = valid_BP.clone()
        scored_BP[:, -1] = False
        scored_BP[:, :-1] &= valid_BP[:, 1:]
        if not (has_head(self.lm) and scored_BP.any()):
            return
        if self.readout is None:
            self.readout = Readout(self.lm, tokens_BP)
        readout = self.readout
        clean_ND = readout.states(tokens_BP)[scored_BP]
        patched_ND = {
            row: self._patched_states(readout, seen, y_hat_NTD, valid_BP)[scored_BP]
            for row, y_hat_NTD in seen.y_hat_NTD.items()
        }
        next_N = tokens_BP.roll(-1, dims=1)[scored_BP]
        bytes_per_token = 4 * self.lm.info.vocab_size
        chunk = max(1, self.chunk_mb * BYTES_PER_MB // bytes_per_token)
        for start in range(0, len(next_N), chunk):
            part = slice(start, start + chunk)
            self._compare(
                readout.logits(clean_ND[part]).log_softmax(-1),
                {row: states[part] for row, states in patched_ND.items()},
                next_N[part],
            )
        self.n += len(next_N)

    def _patched_states(
        self, readout: Readout, seen: Observation, y_hat_NTD: Tensor, valid_BP: Tensor
    ) -> Tensor:
        """The model's states with the row's reconstruction in place of every target site."""

        def stand_in(t: int) -> Replacement:
            def replace(_: Mapping[str, Tensor], clean_BPD: Tensor) -> Tensor:
                full_BPD = clean_BPD.clone()
                full_BPD[seen.text_BP] = y_hat_NTD[:, t].to(clean_BPD.dtype)
                return full_BPD

            return replace

        replacements = {target: stand_in(t) for t, target in enumerate(self.targets)}
        with patched(self.lm, replacements, reads=(), mask_BP=valid_BP):
            return readout.states(seen.tokens_BP)

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
