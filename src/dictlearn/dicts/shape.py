"""The shape of a dictionary: its sites and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.link import Link


@dataclass(frozen=True)
class Shape:
    """The sites and sizes of a dictionary. Shape and sparsity suffice to rebuild it."""

    kind: str
    sources: tuple[str, ...]  # names of the sites that it reads
    targets: tuple[str, ...]  # names of the sites that it reconstructs
    width: int  # D, the same for every site
    n_features: int  # F, per source
    k: float  # active features per token and source, a budget or a target
    centre: bool = False  # subtract b_dec from the input (autoencoders)
    skip: bool = False  # a linear path from source to target beside the features
    unit_norm: bool = True  # decoder rows are kept at norm 1 during training
    encoder_scale: float = 1.0  # factor on the initial encoder rows
    prefixes: tuple[int, ...] = ()  # features in each nested dictionary, the last F
    link: Link = Diagonal()  # how sources and targets are connected

    @property
    def code_sources(self) -> int:
        """The number of the code's sources: one for each site, or one that all share."""
        return self.link.code_sources(len(self.sources))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the link's options, for `description.shape_from_json`."""
        own = {key: value for key, value in vars(self).items() if key != "link"}
        return {**own, **self.link.to_json()}

    def check(self) -> None:
        """Raises ValueError, with the keys' names, if no dictionary can have this shape."""
        if not 0 < self.k <= self.n_features:
            raise ValueError(
                f"dict.k={self.k}: want more than 0 and at most dict.n_features={self.n_features}"
            )
        widths = self.prefixes
        ascending = all(a < b for a, b in zip((0, *widths), widths, strict=False))
        if widths and not (ascending and widths[-1] == self.n_features):
            raise ValueError(
                f"dict.prefixes={list(widths)}: want ascending widths, or fractions of the features, "
                f"that end with all dict.n_features={self.n_features}"
            )
        for name in self.link.options():
            if name in vars(self):
                raise ValueError(f"link={self.link.name}: {name} is an option of every dictionary")
        if self.skip and self.link.one_code:
            raise ValueError("dict.skip=true: sites that share a code have no source of their own")
        self.link.check(self)
