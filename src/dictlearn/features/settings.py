"""Settings of a harvest: what it keeps, and how much memory it may use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The keys of conf/features.yaml that set what is kept. Raises ValueError for a bad value.

    Memory is bounded by `buffer` (about 50 bytes for each of its firings), `block` (features in
    memory at a time), `sample_firings` (about 40 bytes each) and a batch of windows.
    """

    tokens: int
    batch_windows: int
    examples: int
    intervals: int
    per_interval: int
    before: int
    after: int
    bins: int
    quantiles: tuple[float, ...]
    promoted: int
    neighbours: int
    cofiring: int
    sample_tokens: int
    sample_firings: int
    directions: int
    buffer: int
    block: int
    checkpoint_minutes: float

    def __post_init__(self) -> None:
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles={list(self.quantiles)}: want ascending numbers")

    @property
    def drawn(self) -> int:
        """Firings kept of each feature beside the strongest, a uniform sample of all."""
        return self.intervals * self.per_interval

    @property
    def length(self) -> int:
        """Tokens in an example's context."""
        return self.before + 1 + self.after

    def of_the_pass(self) -> dict[str, Any]:
        """The settings that a pass depends on; if they change, its state on disk is dropped."""
        later = ("quantiles", "bins", "promoted", "neighbours", "cofiring", "directions")
        free = (*later, "buffer", "checkpoint_minutes")
        return {key: value for key, value in asdict(self).items() if key not in free}
