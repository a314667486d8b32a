"""What an exporter is: a format that another tool reads, and which dictionaries it can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.export.calibrate import becomes_jumprelu
from dictlearn.types import ModelInfo


@dataclass(frozen=True, eq=False)
class Job:
    """One export: the dictionary, where it comes from, and what it reads."""

    dictionary: Dictionary  # raw activations in and out; its sparsity is one that the format holds
    training: Mapping[str, Any]  # plain JSON, as the dictionary's file says it
    info: ModelInfo
    tokenizer: PreTrainedTokenizerBase | None
    samples: Callable[[], Iterator[Tensor]]  # held-out activations x_NSD, a few windows at a time
    figures: Mapping[str, float] = field(default_factory=dict)  # of its evaluation, if it had one
    run: Path | None = None  # the run's folder, or that of the dictionary


class Exporter(ABC):
    """Abstract. One final class a file; conf/format/<name>.yaml holds its options."""

    name: str  # of the format, its yaml and its importer in ckpt/foreign

    @abstractmethod
    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        """The sparsities that the format has for such a dictionary.

        Where jumprelu is one of them, others are turned into it.
        """

    @abstractmethod
    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        """Why the format can't hold it, what follows `format=<name>: `; None where it can.

        Asked before the model is loaded. The sparsity has been looked at.
        """

    @abstractmethod
    def write(self, job: Job, folder: Path) -> None:
        """Fills an empty folder, which `dictlearn.load` then reads back to compare."""

    @abstractmethod
    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        """Python that loads it with the tool it is for, from the folder `inner` of a hub repository."""

    def finish(self, folder: Path) -> str | None:  # noqa: B027 most are done
        """Called with the folder in its place, read back and compared; returns what to say of it."""


def check_holds(exporter: Exporter, dictionary: Dictionary, info: ModelInfo) -> None:
    """Raises ValueError, in one sentence with the reason, where the format can't hold it."""
    reason = why_not(exporter, dictionary, info)
    if reason is not None:
        raise ValueError(f"format={exporter.name}: {reason}")


def why_not(exporter: Exporter, dictionary: Dictionary, info: ModelInfo) -> str | None:
    """The reason why the format can't hold it, not even with JumpReLU features; None where it can."""
    sparsity = dictionary.sparsity.name
    held = exporter.holds(dictionary)
    convertible = "jumprelu" in held and becomes_jumprelu(dictionary)
    reason = exporter.refusal(dictionary, info)
    if reason is None and sparsity not in held and not convertible:
        reason = f"it holds {' and '.join(sorted(held))} features, and these are {sparsity}"
    return reason
