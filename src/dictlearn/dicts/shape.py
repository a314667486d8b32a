"""What a dictionary connects and how wide it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.link import Link


@dataclass(frozen=True)
class Shape:
    """What a dictionary connects and how wide it is; with its sparsity, all that rebuilds it."""

    kind: str
    sources: tuple[str, ...]  # site names, read
    targets: tuple[str, ...]  # site names, reconstructed
    width: int  # D, of every site
    n_features: int  # F, per source
    k: float  # active features per token and source asked for: a budget or a target
    centre: bool = False  # subtract b_dec from the input (autoencoders)
    skip: bool = False  # a linear path from source to target beside the features
    unit_norm: bool = True  # decoder rows are kept at norm 1 during training
    encoder_scale: float = 1.0  # on the encoder rows that training starts from
    prefixes: tuple[int, ...] = ()  # nested dictionaries: widths of the inner ones and F itself
    link: Link = Diagonal()  # how sources and targets are connected

    @property
    def code_sources(self) -> int:
        """Sources of the code: each site has its own features, or all share them."""
        return self.link.code_sources(len(self.sources))

    def to_json(self) -> dict[str, Any]:
        """Plain, the link's options among the rest: what `description.shape_from_json` reads."""
        own = {key: value for key, value in vars(self).items() if key != "link"}
        return {**own, **self.link.to_json()}

    def check(self) -> None:
        """Raises ValueError, with the keys' names, where no dictionary can have this shape."""
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
