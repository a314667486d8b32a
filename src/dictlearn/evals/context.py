"""The inputs and results of evals.

An entry of the `eval` config group is one of three things, told apart by type:

- a `Metric`: shares the one pass over held-out activations with every other metric;
- a `RowSource`: fits reconstructions that stand beside the dictionary in every metric's table;
- any other callable taking an `EvalContext` and returning an `EvalResult`: makes its own pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dictlearn.evals.passes import OWN, Passes
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sources.protocol import RowsOf
from dictlearn.types import Batch, Code, DictionaryLike, TextWindows

# Names of rows that several evals know.
DICTIONARY = "dictionary"  # the row that is being evaluated; all others are baselines
MEAN_ABLATION = "mean ablation"
ZERO_ABLATION = "zero ablation"

Row = Callable[[Tensor, Tensor], Tensor]
"""(x_NSD, y_NTD) -> y_hat_NTD, all in the model's own units."""


@dataclass(frozen=True, eq=False)
class EvalContext:
    """Everything a run of evals shares.

    `rows` holds the baselines fitted so far; metrics see it complete. `n_tokens` counts positions
    of held-out text, special ones included, padding not. Activations without a model and a text are
    `held_out_rows` and `train_rows`; entries with `needs_model` are then left out.
    """

    dictionary: DictionaryLike
    lm: LanguageModel | None = None
    windows: TextWindows | None = None  # held-out split
    train_windows: TextWindows | None = None  # baselines are fitted on them
    n_tokens: int = 65_536
    batch_windows: int = 8
    seed: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    passes: Passes = OWN
    held_out_rows: RowsOf | None = None
    train_rows: RowsOf | None = None


@dataclass(frozen=True, eq=False)
class Observation:
    """One batch of windows, computed once and read by every metric.

    N runs over the batch's text positions in reading order: special tokens are among them,
    padding is not. `text_BP` marks their positions in the windows, `valid_N` those that a dictionary
    is trained on.
    """

    tokens_BP: Tensor  # int64
    text_BP: Tensor  # bool, N of them true
    valid_N: Tensor  # bool
    batch: Batch
    code: Code
    y_hat_NTD: Mapping[str, Tensor]  # by row: the dictionary and every baseline


@dataclass(frozen=True, eq=False)
class EvalResult:
    """Named figures of the dictionary, the same figures of the baselines, and series to plot."""

    figures: dict[str, float] = field(default_factory=dict)
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    series: dict[str, Tensor] = field(default_factory=dict)


class Meter(ABC):
    """Accumulates one metric family in float64 and int64, so that the order hardly matters."""

    @abstractmethod
    def update(self, seen: Observation) -> None: ...

    @abstractmethod
    def result(self) -> EvalResult: ...


class Metric(ABC):
    """One metric family's settings; a yaml of the `eval` group instantiates it."""

    needs_model: ClassVar[bool] = False  # whether it reads more than the observations

    @abstractmethod
    def begin(self, context: EvalContext) -> Meter: ...


class RowSource(ABC):
    """Fits reconstructions to compare with, on the training split."""

    needs_model: ClassVar[bool] = False

    @abstractmethod
    def fit(self, context: EvalContext) -> dict[str, Row]: ...
