"""The base class of links, which connect the sources of a dictionary to its targets.

A kind of dictionary chooses a link. A `Link` checks the dictionary's shape, makes the encoder and the
decoder, and has options that are saved with the dictionary. A new one is a frozen dataclass in a file
of this package or in a module of a user's own.
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

# Entries of every description, also for links without these options: earlier versions wrote all of
# them, and the hash of a dictionary includes its description.
ALWAYS_WRITTEN: Mapping[str, Any] = {"window": None, "tied": False, "norm": "concat", "ranks": ()}


class Link(ABC):
    """Abstract: a way of connecting sources and targets. Its subclasses are frozen dataclasses.

    Their fields are the options, in plain JSON; `description.py` checks the values in a file against
    the annotations.
    """

    name: ClassVar[str]  # of the link in a saved dictionary
    one_code: ClassVar[bool] = False  # whether all sources share a code; else each has its own
    cross_layer: ClassVar[bool] = False  # whether features write to later layers too

    def check(self, shape: Shape) -> None:  # noqa: B027 some accept every shape
        """Raises ValueError, with the keys' names, if the link can't connect these sites."""

    def encoder(self, shape: Shape) -> LinearEncoder:
        """An untrained encoder."""
        n_codes = self.code_sources(len(shape.sources))
        return LinearEncoder(n_codes, shape.n_features, self.read_width(shape))

    @abstractmethod
    def decoder(self, shape: Shape) -> Decoder:
        """An untrained decoder; it must create its parameters on the current default device."""

    def code_sources(self, n_sources: int) -> int:
        """The number of rows of a code per token."""
        return 1 if self.one_code else n_sources

    def read_width(self, shape: Shape) -> int:
        """The width of an encoder's row."""
        return shape.width * len(shape.sources) // self.code_sources(len(shape.sources))

    def options(self) -> dict[str, Any]:
        """The link's own options, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The link's part of a dictionary's description."""
        return {"link": self.name, **ALWAYS_WRITTEN, **self.options()}

    @property
    def least_tensors(self) -> int:
        """A lower bound of the number of the decoder's tensors, to refuse a file with fewer."""
        return 0

    def economies(self, n_targets: int) -> dict[str, Sequence[Any]]:
        """Values of options that need less memory, by option, from the least memory on."""
        return {}


def check_pairs(link: Link, shape: Shape) -> None:
    """Raises ValueError unless there are as many targets as sources."""
    n_sources, n_targets = len(shape.sources), len(shape.targets)
    if n_sources != n_targets:
        raise ValueError(
            f"targets: {n_targets} of them, and link={link.name} has as many as sources, {n_sources}"
        )


def links() -> dict[str, type[Link]]:
    """The classes of links by name, from the modules of this package and those already imported."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    classes: dict[str, type[Link]] = {}
    for kind in _subclasses(Link):
        other = classes.setdefault(kind.name, kind)
        if other.__module__ != kind.__module__:
            raise ValueError(
                f"{kind.__module__}.{kind.__name__}: its name {kind.name!r} is that of "
                f"{other.__module__}.{other.__name__}; want another"
            )
        classes[kind.name] = kind  # the latest, if a module was loaded again
    return classes


def _subclasses(parent: type[Link]) -> Iterator[type[Link]]:
    for kind in parent.__subclasses__():
        if hasattr(kind, "name"):
            yield kind
        yield from _subclasses(kind)
