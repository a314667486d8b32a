"""Sparse dictionaries over the activations of language models.

dictlearn.load(path)            a saved dictionary
dictlearn.train(...)            a run, as `dictlearn train ...`
dictlearn.evaluate(path, ...)   figures on held-out text, as `dictlearn evaluate ...`
dictlearn.features(run)         a run's features: examples, statistics, descriptions
dictlearn.open_model(name)      a language model: activations, interventions, generation
dictlearn.Edit, Push, Gate      what an intervention changes, and when
dictlearn.attribute(model, dictionary, prompt)   an attribution graph; load_graph(path) reads one
dictlearn.vector(model, pos, neg)   a concept's vector; load_vector(path) reads a saved one
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dictlearn.api import (
        ConceptVector,
        Edit,
        Gate,
        Push,
        attribute,
        evaluate,
        features,
        load,
        load_graph,
        load_vector,
        open_model,
        train,
        vector,
    )

__version__ = "0.1.0"
__all__ = [
    "ConceptVector",
    "Edit",
    "Gate",
    "Push",
    "__version__",
    "attribute",
    "evaluate",
    "features",
    "load",
    "load_graph",
    "load_vector",
    "open_model",
    "train",
    "vector",
]


def __getattr__(name: str) -> Any:
    """The functions above, from dictlearn.api: importing dictlearn stays instant."""
    if name in ("train", "features"):  # packages of that name, which can be called
        return import_module(f"dictlearn.{name}")
    if name in __all__:
        return getattr(import_module("dictlearn.api"), name)
    raise AttributeError(f"module 'dictlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class CallableRoom(ModuleType):
    """A package that can be called: it has the name of a function of dictlearn.api and calls it.

    When Python imports a package, it replaces any function of that name in dictlearn. So the
    package itself must be the function.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(import_module("dictlearn.api"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)
