"""The store's records of one feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TokenScores = tuple[tuple[int, float], ...]  # (token id, score), the strongest first


@dataclass(frozen=True)
class Example:
    """A context of held-out text with the feature's activations."""

    tokens: tuple[int, ...]  # ids of the context shown
    activations: tuple[float, ...]  # the feature's, or a MOLT's gate, per token; 0 where silent
    peak: int  # index in tokens of the token that the example was chosen for
    document: int  # number of that token's document in the held-out stream, for `split_of`
    window: int  # number of the held-out window
    start: int  # position of tokens[0] in the window
    interval: int | None  # None: one of the strongest; q: drawn from the q-th interval, 0 weakest

    @property
    def activation(self) -> float:
        """The activation at the peak."""
        return self.activations[self.peak]


@dataclass(frozen=True)
class Direction:
    """One singular direction of a transform: sigma * written * (read . x)."""

    strength: float  # the singular value
    reads: TokenScores  # token embeddings most aligned with the direction it reads
    reads_opposite: TokenScores  # token embeddings most opposed to it
    promotes: TokenScores  # tokens that it promotes where its reading is positive
    suppresses: TokenScores


@dataclass(frozen=True)
class Transform:
    """A MOLT feature's linear map of low rank, scaled by its gate."""

    rank: int
    directions: tuple[Direction, ...]  # the leading ones, strongest first


@dataclass(frozen=True)
class Feature:
    """A feature's statistics and examples from held-out text, and its effects from the weights."""

    source: int  # row of the code: 0..code_sources-1
    index: int  # 0..n_features-1
    density: float  # share of valid tokens on which it fires
    count: int
    maximum: float
    mean: float  # over firings
    quantiles: tuple[float, ...]  # of the positive activations, at info.quantile_levels
    histogram: tuple[int, ...]  # counts of positive activations in equal bins of [0, maximum]
    dead: bool  # never fired in the pass
    top: tuple[Example, ...]  # the strongest firings, at most one of a window; strongest first
    by_interval: tuple[tuple[Example, ...], ...]  # none of them is in `top`
    # By target site, the norm of one unit of activation in the target's standard deviations; empty
    # for a MOLT, and in stores of an earlier version.
    norms: Mapping[str, float]
    promoted: Mapping[str, TokenScores]  # by target in the residual: (token id, logit effect)
    suppressed: Mapping[str, TokenScores]
    neighbours: tuple[tuple[int, int, float], ...]  # (source, index, cosine of decoder vectors)
    cofiring: tuple[tuple[int, int, float], ...]  # (source, index, Jaccard), strongest first
    transform: Transform | None  # only for a MOLT

    @property
    def examples(self) -> tuple[Example, ...]:
        """The strongest examples, then those of the intervals from the weakest up."""
        return self.top + tuple(example for drawn in self.by_interval for example in drawn)
