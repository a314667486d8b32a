"""Annotations for ranges of numbers: the key of such a parameter takes no other numbers.

`dictlearn.schema` reads them from signatures. An annotation may end in a note that the refusal of
another value shows: `Annotated[Count, "batchtopk takes fractions"]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `above` leaves out `least` itself, `below` leaves out `most`."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        low = self.least < number if self.above else self.least <= number
        return low and (number < self.most if self.below else number <= self.most)

    def __str__(self) -> str:
        least, most = f"{self.least:.12g}", f"{'below ' * self.below}{self.most:.12g}"
        if self.most == math.inf:
            return f" above {least}" if self.above else f" of at least {least}"
        if self.above:
            return f" above {least} and {most if self.below else f'at most {most}'}"
        return f" from {least} to {most}"


Count = Annotated[int, Range(1)]
Several = Annotated[int, Range(2)]
FourOrMore = Annotated[int, Range(4)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, above=True)]
Decay = Annotated[float, Range(0, 1, below=True)]
ProperFraction = Annotated[float, Range(0, 1, above=True, below=True)]
