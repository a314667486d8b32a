"""What the store says of one feature, as plain frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TokenScores = tuple[tuple[int, float], ...]  # (token id, score), the strongest first


@dataclass(frozen=True)
class Example:
    """A stretch of held-out text, and where in it the feature fires."""

    tokens: tuple[int, ...]  # ids of the context shown
    activations: tuple[float, ...]  # this feature's, one per token; 0 where silent; a MOLT's gate
    peak: int  # index in tokens of the token it was picked for
    document: int  # number of that token's document in the held-out stream: splits go by it
    window: int  # held-out window, and the position in it of tokens[0]
    start: int
    interval: int | None  # None: one of the strongest; q: drawn from the q-th interval, 0 weakest

    @property
    def activation(self) -> float:
        """At the token it was picked for."""
        return self.activations[self.peak]


@dataclass(frozen=True)
class Direction:
    """One singular direction of a transform: sigma * written * (read . x)."""

    strength: float  # the singular value
    reads: TokenScores  # token embeddings most aligned with what it reads
    reads_opposite: TokenScores  # and least
    promotes: TokenScores  # tokens raised by what it writes where it reads something positive
    suppresses: TokenScores


@dataclass(frozen=True)
class Transform:
    """What a feature of a MOLT is: a linear map of low rank, opened by its gate."""

    rank: int
    directions: tuple[Direction, ...]  # the leading ones, strongest first


@dataclass(frozen=True)
class Feature:
    """Everything that one pass over held-out text, and the weights, say of a feature."""

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
    norms: Mapping[
        str, float
    ]  # by target site: of what one unit of activation writes there, in the
    # target's standard deviations; empty of a MOLT's, and in stores of an earlier version
    promoted: Mapping[str, TokenScores]  # by target in the residual: (token id, logit effect)
    suppressed: Mapping[str, TokenScores]
    neighbours: tuple[tuple[int, int, float], ...]  # (source, index, cosine of decoder vectors)
    cofiring: tuple[tuple[int, int, float], ...]  # (source, index, Jaccard), strongest first
    transform: Transform | None  # of a MOLT

    @property
    def examples(self) -> tuple[Example, ...]:
        """All of them: the strongest, then those of the intervals from the weakest up."""
        return self.top + tuple(example for drawn in self.by_interval for example in drawn)
