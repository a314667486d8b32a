"""Compares the clean model with patched ones, token by token; all evals that patch use it.

A position counts when its token and the next one, which it predicts, are both valid. CE and KL are
sums over those positions, in nats; figures divide once, at the end (pooled, maths 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from dictlearn.evals.context import EvalContext, Observation
from dictlearn.evals.moments import add_padded, by_position
from dictlearn.evals.passes import OWN, Key, Passes, digest
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import Readout
from dictlearn.objectives.kl_to_teacher import kl_of_log_probs
from dictlearn.types import spread

TOGETHER = 8  # runs whose states exist at once


def scored_positions(valid_BP: Tensor) -> Tensor:
    """bool [B, P]: the token is valid and so is the next, which it predicts."""
    scored_BP = valid_BP.clone()
    scored_BP[:, -1] = False
    scored_BP[:, :-1] &= valid_BP[:, 1:]
    return scored_BP


def share_for(context: EvalContext, max_tokens: int | None) -> float:
    """The share of the evaluated windows that holds about `max_tokens`; 1 for None."""
    if max_tokens is None or context.windows is None:
        return 1.0
    n_windows = len(spread(context.windows, max_tokens))
    return min(n_windows / max(len(spread(context.windows, context.n_tokens)), 1), 1.0)


@final
class Turns:
    """Selects a `share` of the windows, evenly spaced, however they are batched."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.windows = 0

    def take(self, seen: Observation) -> Turn | None:
        """The selected windows of a batch, or None where no position of them is scored."""
        turn_B = torch.tensor([self._takes_next() for _ in seen.tokens_BP]).to(seen.text_BP.device)
        valid_BP = torch.zeros_like(seen.text_BP)
        valid_BP[seen.text_BP] = seen.valid_N
        valid_BP = valid_BP[turn_B]
        scored_BP = scored_positions(valid_BP)
        if not scored_BP.any():
            return None
        return Turn(seen.tokens_BP[turn_B], valid_BP, scored_BP, seen.text_BP, turn_B)

    def _takes_next(self) -> bool:
        self.windows += 1
        return int(self.windows * self.share) > int((self.windows - 1) * self.share)


@final
@dataclass(frozen=True, eq=False)
class Turn:
    """Windows that the model runs on, clean and patched."""

    tokens_BP: Tensor
    valid_BP: Tensor  # bool: where activations are replaced
    scored_BP: Tensor  # bool: where predictions are compared
    text_BP: Tensor  # of the whole observation
    turn_B: Tensor  # bool, of the whole observation

    def placed(self, y_NTD: Tensor) -> Tensor:
        """Scatters the observation's [N, T, D] to these windows' positions [B, P, T, D], else zero."""
        placed_BPTD = y_NTD.new_zeros(*self.text_BP.shape, *y_NTD.shape[1:])
        placed_BPTD[self.text_BP] = y_NTD
        return placed_BPTD[self.turn_B]


Run = Callable[[Callable[[], Tensor]], Tensor]
"""Calls the function that runs the model, with activations replaced, and returns its states."""


@final
@dataclass(eq=False)
class Sums:
    ce: float = 0.0
    kl: float = 0.0
    agree: float = 0.0
    ce_P: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # by position

    def add(self, other: Sums) -> None:
        self.ce += other.ce
        self.ce_P = add_padded(self.ce_P, other.ce_P)
        self.kl += other.kl
        self.agree += other.agree


@final
@dataclass(eq=False)
class Comparison:
    """Sums over scored positions, for the clean model and for every patched run by name."""

    lm: LanguageModel
    chunk_tokens: int = 128  # positions whose logits exist at once
    passes: Passes = OWN
    n: int = 0
    ce_clean: float = 0.0
    clean_2P: Tensor = field(
        default_factory=lambda: torch.zeros(2, 0, dtype=torch.float64)
    )  # CE, n
    sums: dict[str, Sums] = field(default_factory=dict)
    readout: Readout | None = None

    def update(
        self, turn: Turn, runs: Mapping[str, Run], keys: Mapping[str, Key] | None = None
    ) -> None:
        """Runs the model once clean and once for each of `runs`.

        Two comparisons that share passes run it once for both if the runs' `keys` are equal.
        """
        readout = self.readout = self.readout or Readout(self.lm, turn.tokens_BP)

        def states() -> Tensor:
            return readout.states(turn.tokens_BP)[turn.scored_BP]

        def keyed(*key: Hashable) -> Hashable:
            return key, self.chunk_tokens, digest(turn.tokens_BP, turn.valid_BP, turn.text_BP)

        clean_ND = self.passes.once(lambda: keyed("clean"), states)
        next_N = turn.tokens_BP.roll(-1, dims=1)[turn.scored_BP]
        position_N = turn.scored_BP.nonzero()[:, 1].cpu()
        context = turn.tokens_BP.shape[1]
        self.n += len(next_N)
        shared: dict[str, list[Sums]] = {}  # by row, for each part: filled by whoever is first
        for name, key in (keys or {}).items():
            shared[name] = self.passes.once(lambda key=key: keyed(key()), list[Sums])
        names = [name for name in runs if not shared.get(name)]
        own: dict[str, list[Sums]] = {name: [] for name in names}
        for start in range(0, len(names), TOGETHER):
            patched = {name: runs[name](states) for name in names[start : start + TOGETHER]}
            for part in self._parts(len(next_N)):
                clean_NV = readout.logits(clean_ND[part]).log_softmax(-1)
                if start == 0:
                    ce_N = _nats(clean_NV, next_N[part])
                    self.ce_clean += float(ce_N.sum())
                    clean_2P = torch.stack([ce_N, torch.ones_like(ce_N)])
                    clean_2P = by_position(clean_2P, position_N[part], context)
                    self.clean_2P = add_padded(self.clean_2P, clean_2P)
                best_N = clean_NV.argmax(-1)
                for name, states_ND in patched.items():
                    patched_NV = readout.logits(states_ND[part]).log_softmax(-1)
                    ce_N = _nats(patched_NV, next_N[part])
                    sums = Sums(
                        float(ce_N.sum()),
                        float(kl_of_log_probs(clean_NV, patched_NV).double().sum()),
                        float((patched_NV.argmax(-1) == best_N).sum()),
                        by_position(ce_N, position_N[part], context),
                    )
                    own[name].append(sums)
        for name, parts in own.items():
            shared.setdefault(name, []).extend(parts)
        for name in runs:
            for sums in shared[name]:
                self.sums.setdefault(name, Sums()).add(sums)

    def _parts(self, n: int) -> Iterator[slice]:
        return (slice(start, start + self.chunk_tokens) for start in range(0, n, self.chunk_tokens))

    def figures(self, *names: str) -> dict[str, float]:
        """Figures per token, averaged over the named runs: cross entropy, its increase, KL, agreement."""
        total = Sums()
        for name in names:
            total.add(self.sums[name])
        n = self.n * len(names)
        return {
            "ce": total.ce / n,
            "ce_increase": (total.ce - len(names) * self.ce_clean) / n,
            "kl": total.kl / n,
            "top1_agreement": total.agree / n,
        }


def _nats(log_probs_NV: Tensor, next_N: Tensor) -> Tensor:
    """-log p(next token) [N], float64, on the CPU."""
    return -log_probs_NV.gather(1, next_N[:, None])[:, 0].cpu().double()
