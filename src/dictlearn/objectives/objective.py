"""The loss: a sum of named terms under one reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

from torch import Tensor, nn

from dictlearn.lm.language_model import LanguageModel
from dictlearn.objectives.protocol import Forward, Term
from dictlearn.objectives.teacher import Teacher
from dictlearn.types import TrainedDictionary


@final
class Objective(nn.Module):
    """The sum of named terms. Terms that are null in the yaml are off.

    `reduction` fixes the unit of every squared error, so that a coefficient means the same in all
    terms: `sum` over the width, `mean` over it, or `fvu`: relative to the targets' variance. All are
    means over tokens and divide by a constant of the run, never by a batch statistic.
    """

    def __init__(
        self, terms: Mapping[str, Term | None], reduction: Literal["sum", "mean", "fvu"] = "sum"
    ):
        super().__init__()
        self.terms = nn.ModuleDict({n: term for n, term in terms.items() if term is not None})
        if not self.terms:
            raise ValueError("objective.terms: want at least one term, all are null")
        self.reduction = reduction

    def loss_scale(self, y_NTD: Tensor) -> float:
        """The divisor of squared errors, measured once on the targets the run begins with."""
        match self.reduction:
            case "sum":
                return 1.0
            case "mean":
                return float(y_NTD[0].numel())
        centred = y_NTD.double() - y_NTD.double().mean(0)
        return float(centred.square().sum() / len(y_NTD))

    def named_terms(self) -> list[tuple[str, Term]]:
        return list(self.terms.items())  # type: ignore[arg-type]

    @property
    def reads_windows(self) -> bool:
        """Whether a term needs batches of whole windows, the language model and a teacher."""
        return any(term.reads_windows for _, term in self.named_terms())

    def check(self, dictionary: TrainedDictionary) -> None:
        """Raises ValueError before any work if a term has no meaning for this dictionary."""
        sparsity = dictionary.sparsity.name
        for name, term in self.named_terms():
            if term.wants_sparsity not in (None, sparsity):
                raise ValueError(
                    f"objective.terms.{name}: wants sparsity={term.wants_sparsity}, not "
                    f"sparsity={sparsity}"
                )
            term.check(dictionary)

    def connect(self, lm: LanguageModel, teacher: Teacher, dictionary: TrainedDictionary) -> None:
        """Hands the model to the terms that read windows; it does not become a submodule of them."""
        for _, term in self.named_terms():
            term.connect(lm, teacher, dictionary)

    def forward(self, forward: Forward, beside: Forward | None = None) -> dict[str, Tensor]:
        """Each term's weighted value; the loss is their sum.

        `beside` is the pass over windows that came beside shuffled tokens, for terms that read them.
        """
        return {
            name: _weighted(term, beside if beside is not None and term.reads_windows else forward)
            for name, term in self.named_terms()
        }

    def after_step(self, accepted: bool) -> None:
        for _, term in self.named_terms():
            term.after_step(accepted)

    def figures(self) -> dict[str, float]:
        return {key: v for _, term in self.named_terms() for key, v in term.figures().items()}


def _weighted(term: Term, forward: Forward) -> Tensor:
    """The term's value, so weighted that the mean over processes is that over all their tokens."""
    value = term(forward)
    return value if forward.share is None or term.of_all else value * forward.share
