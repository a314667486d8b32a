"""Scores the replacement model: the model with a dictionary in place of its layers.

Some or all reconstructions of a dictionary with several targets (per-layer and cross-layer
transcoders) replace the targets, on valid tokens; special and padding positions keep the clean value.

    teacher forced   encoders read the clean run: every layer's own error, without the others'
    free running     encoders read the patched run: errors compound, as they do in a circuit

The score is 1 - KL_patched / KL_zero, both KL(clean || .) pooled over valid tokens; KL_zero has
the same targets zero-ablated. 1 is the model itself, 0 no better than zero ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dictlearn.evals.comparison import Comparison, Run, Turn, Turns, share_for
from dictlearn.evals.context import (
    DICTIONARY,
    EvalContext,
    EvalResult,
    Meter,
    Metric,
    Observation,
)
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.lm.readout import has_head
from dictlearn.objectives.stand_in import FreeRunning
from dictlearn.ranges import Count
from dictlearn.types import DictionaryLike

FORCED, FREE, ZERO = "forced", "free", "zero"
# setting -> (layers, mode); a single layer reads nothing patched, so both modes are the same
SETTINGS = {
    "one": ("one", FORCED),
    "half_forced": ("half", FORCED),
    "half_free": ("half", FREE),
    "all_forced": ("all", FORCED),
    "all_free": ("all", FREE),
}
FIGURES = ("kl", "top1_agreement", "ce_increase", "score")


@final
@dataclass(frozen=True)
class ReplacementModel(Metric):
    """KL, top-1 agreement, CE increase and score with one layer, half, or all of them replaced.

    Figures are `replacement/<setting>/<figure>`. `one`: each single layer in turn, averaged.
    `half_forced` and `half_free`: every other layer, the even ones and the odd ones, averaged.
    `all_forced` and `all_free`: every layer.

    Args:
        max_tokens: positions to run the model on, spread over the evaluated windows; for L targets
            it runs 2 L + 10 times on them. null: all.
        chunk_tokens: positions whose logits exist at once.

    There are no figures for one target (`downstream` has them), for a code shared by all sources
    (it is known only after the last of them), or for a model without a next-token head.
    """

    needs_model: ClassVar[bool] = True
    max_tokens: Count | None = None
    chunk_tokens: Count = 128

    def begin(self, context: EvalContext) -> ReplacementMeter:
        assert context.lm is not None, "a replacement model needs the language model"
        share = share_for(context, self.max_tokens)
        return ReplacementMeter(context.lm, context.dictionary, share, self.chunk_tokens)


@final
class ReplacementMeter(Meter):
    """Sums over the scored positions of a `share` of the windows."""

    def __init__(
        self,
        lm: LanguageModel,
        dictionary: DictionaryLike,
        share: float = 1.0,
        chunk_tokens: Count = 128,
    ) -> None:
        self.lm = lm
        self.dictionary = dictionary
        self.subsets = subsets(len(dictionary.targets))
        self.applies = len(dictionary.targets) > 1 and dictionary.layerwise and has_head(lm)
        self.turns = Turns(share)
        self.comparison = Comparison(lm, chunk_tokens)

    def update(self, seen: Observation) -> None:
        turn = self.turns.take(seen) if self.applies else None
        if turn is not None:
            self.comparison.update(turn, self._runs(turn, seen.y_hat_NTD[DICTIONARY]))

    def _runs(self, turn: Turn, y_hat_NTD: Tensor) -> dict[str, Run]:
        modes = {FORCED: _forced(turn.placed(y_hat_NTD)), ZERO: lambda _: torch.zeros_like}
        wanted = set(SETTINGS.values()) | {(layers, ZERO) for layers in self.subsets}
        runs: dict[str, Run] = {}
        for layers, mode in sorted(wanted):
            for subset in self.subsets[layers]:
                runs[_name(mode, subset)] = self._run(turn, subset, modes.get(mode))
        return runs

    def _run(self, turn: Turn, subset: Sequence[int], value: Callable[[int], Value] | None) -> Run:
        """A run of the model with the subset's targets replaced by `value`; free running for None."""
        targets = self.dictionary.targets

        def run(states: Callable[[], Tensor]) -> Tensor:
            if value is None:
                running = FreeRunning(self.dictionary, turn.valid_BP)
                replacements, reads = running.replacements(subset), running.reads(subset)
            else:
                replacements = {targets[t]: _fixed(value(t)) for t in subset}
                reads = []
            with torch.no_grad(), patched(self.lm, replacements, reads, turn.valid_BP):
                return states()

        return run

    def result(self) -> EvalResult:
        if self.comparison.n == 0:
            return EvalResult()
        figures: dict[str, float] = {}
        for setting, (layers, mode) in SETTINGS.items():
            means = self._mean(layers, mode)
            zero = self._mean(layers, ZERO)["kl"]
            means["score"] = 1.0 - means["kl"] / zero if zero > 0 else float("nan")
            figures |= {f"replacement/{setting}/{name}": means[name] for name in FIGURES}
        figures["replacement/scored_tokens"] = float(self.comparison.n)
        return EvalResult(figures=figures)

    def _mean(self, layers: str, mode: str) -> dict[str, float]:
        return self.comparison.figures(*(_name(mode, s) for s in self.subsets[layers]))


Value = Callable[[Tensor], Tensor]  # the clean value [B, P, D] -> its replacement


def _forced(y_hat_BPTD: Tensor) -> Callable[[int], Value]:
    """Reconstructions from clean activations."""
    return lambda t: lambda clean_BPD: y_hat_BPTD[:, :, t].to(clean_BPD.dtype)


def _fixed(value: Value) -> Replacement:
    return lambda _, clean_BPD: value(clean_BPD)


def subsets(n_targets: int) -> dict[str, list[tuple[int, ...]]]:
    """Which targets are replaced together: each alone, every other one, all of them."""
    every = tuple(range(n_targets))
    return {"one": [(t,) for t in every], "half": [every[::2], every[1::2]], "all": [every]}


def _name(mode: str, subset: Sequence[int]) -> str:
    return f"{mode} {','.join(map(str, subset))}"
