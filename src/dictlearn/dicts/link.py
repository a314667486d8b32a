"""How the sources of a dictionary are connected to its targets: what a kind chooses.

A `Link` checks itself against the rest of a dictionary, chooses encoder and decoder, and has options
that a saved dictionary says beside it. A new one is a frozen dataclass in a file of this package, or in
a module of a user's own.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dictlearn.dicts.decoder import Decoder
from dictlearn.dicts.encoder import LinearEncoder

if TYPE_CHECKING:
    from dictlearn.dicts.shape import Shape

# What every description says beside the link's name, whether that link has it or not: dictionaries are
# known by the hash of their description, and those of earlier versions said all of it.
ALWAYS_SAID: Mapping[str, Any] = {"window": None, "tied": False, "norm": "concat", "ranks": ()}


class Link(ABC):
    """Abstract. One frozen dataclass for each way of connecting sources and targets.

    Its fields are its options, in plain JSON: their annotations say what a file may hold
    (`description.py`), so a wrong type or range never gets here.
    """

    name: ClassVar[str]  # how a saved dictionary refers to it
    one_code: ClassVar[bool] = False  # of all sources, put side by side; else each has its own
    cross_layer: ClassVar[bool] = False  # features write to targets of later layers too

    def check(self, shape: Shape) -> None:  # noqa: B027 some go with every shape
        """Raises ValueError, with the keys' names, where a dictionary can't be so connected."""

    def encoder(self, shape: Shape) -> LinearEncoder:
        """Untrained, for what a row of the code reads."""
        n_codes = self.code_sources(len(shape.sources))
        return LinearEncoder(n_codes, shape.n_features, self.read_width(shape))

    @abstractmethod
    def decoder(self, shape: Shape) -> Decoder:
        """Untrained, with memory for its parameters on the current device only."""

    def code_sources(self, n_sources: int) -> int:
        """Rows of a code per token."""
        return 1 if self.one_code else n_sources

    def read_width(self, shape: Shape) -> int:
        """Numbers that a row of the encoder reads."""
        return shape.width * len(shape.sources) // self.code_sources(len(shape.sources))

    def options(self) -> dict[str, Any]:
        """The link's own options, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The link's part of a dictionary's description."""
        return {"link": self.name, **ALWAYS_SAID, **self.options()}

    @property
    def least_tensors(self) -> int:
        """How many tensors the decoder has at least: a file of fewer says more than it holds."""
        return 0

    def economies(self, n_targets: int) -> dict[str, Sequence[Any]]:
        """Options that need less memory, each by itself: their values, from the least memory on."""
        return {}


def check_pairs(link: Link, shape: Shape) -> None:
    """ValueError where there are not as many targets as sources."""
    n_sources, n_targets = len(shape.sources), len(shape.targets)
    if n_sources != n_targets:
        raise ValueError(
            f"targets: {n_targets} of them, and link={link.name} has as many as sources, {n_sources}"
        )


def links() -> dict[str, type[Link]]:
    """name -> class: of every module of this package, no list to keep, and of those that a user's own
    program has imported; never an arbitrary import path.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    found: dict[str, type[Link]] = {}
    for kind in _below(Link):
        other = found.setdefault(kind.name, kind)
        if other.__module__ != kind.__module__:
            raise ValueError(
                f"{kind.__module__}.{kind.__name__}: its name {kind.name!r} is that of "
                f"{other.__module__}.{other.__name__}; want another"
            )
        found[kind.name] = kind  # of a module that was loaded again, the latest
    return found


def _below(parent: type[Link]) -> Iterator[type[Link]]:
    for kind in parent.__subclasses__():
        if hasattr(kind, "name"):
            yield kind
        yield from _below(kind)
