"""The base class of exporters of dictionaries, to formats that other tools read."""

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
    """One export: the dictionary, its provenance, and activations to compare with."""

    dictionary: Dictionary  # reads and writes raw activations; the format supports its sparsity
    training: Mapping[str, Any]  # the dictionary's provenance
    info: ModelInfo
    tokenizer: PreTrainedTokenizerBase | None
    samples: Callable[[], Iterator[Tensor]]  # held-out activations x_NSD, a few windows at a time
    figures: Mapping[str, float] = field(default_factory=dict)  # of its evaluation, if any
    run: Path | None = None  # the run's folder, or the dictionary's


class Exporter(ABC):
    """Abstract: a format. There is one final class per file, with options in conf/format/<name>.yaml."""

    name: str  # of the format, its yaml and its importer in ckpt/foreign

    @abstractmethod
    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        """The sparsities that the format has for such a dictionary.

        If jumprelu is one of them, others are converted to it.
        """

    @abstractmethod
    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        """The reason why the format can't hold it, to follow `format=<name>: `, or None.

        It is called before the model is loaded. The sparsity is checked elsewhere.
        """

    @abstractmethod
    def write(self, job: Job, folder: Path) -> None:
        """Writes into an empty folder, which is then read back and compared."""

    @abstractmethod
    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        """Python that loads it with the format's tool, from the folder `inner` of a hub repository."""

    def finish(self, folder: Path) -> str | None:  # noqa: B027 few do more
        """Called when the folder has been compared and moved to its place; returns a message."""


def check_holds(exporter: Exporter, dictionary: Dictionary, info: ModelInfo) -> None:
    """Raises ValueError, in one sentence with the reason, if the format can't hold it."""
    reason = why_not(exporter, dictionary, info)
    if reason is not None:
        raise ValueError(f"format={exporter.name}: {reason}")


def why_not(exporter: Exporter, dictionary: Dictionary, info: ModelInfo) -> str | None:
    """The reason why the format can't hold it, even with JumpReLU features, or None."""
    sparsity = dictionary.sparsity.name
    supported = exporter.holds(dictionary)
    convertible = "jumprelu" in supported and becomes_jumprelu(dictionary)
    reason = exporter.refusal(dictionary, info)
    if reason is None and sparsity not in supported and not convertible:
        reason = f"it holds {' and '.join(sorted(supported))} features, and these are {sparsity}"
    return reason
