"""The text that a dictionary's repr prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dictlearn import escape
from dictlearn.types import DictionaryLike


class Summarised(DictionaryLike, Protocol):
    """A dictionary with its provenance and its evaluation's figures."""

    provenance: dict[str, Any]
    figures: dict[str, float]

    @property
    def shape(self) -> Any: ...
    @property
    def sparsity(self) -> Any: ...


FIGURES = {  # entries of figures.json and their formats
    "fvu": "FVU {:.4f}",
    "ce_increase": "CE increase {:+.4f} nats per token",
    "dead": "{:.2%} of features never fired",
}


def summary(dictionary: Summarised) -> str:
    """Several short lines: kind, model, sites, features, sparsity with L0, and held-out figures.

    Strings from files are escaped, so that no control character reaches the terminal.
    """
    provenance = dictionary.provenance
    model = provenance.get("model")
    lines = {
        "reads": sites(dictionary.sources),
        "writes": sites(dictionary.targets),
        "features": _features(dictionary),
        "sparsity": _sparsity(dictionary),
        "held out": _held_out(dictionary.figures),
    }
    if isinstance(tokens := provenance.get("tokens"), int):
        lines["trained on"] = f"{tokens:,} tokens"
    suffix = f" of {escape.line(model)}" if isinstance(model, str) else ""
    head = f"Dictionary: {escape.line(dictionary.kind)}{suffix}"
    return "\n".join([head, *(f"  {name:<11}{line}" for name, line in lines.items())])


def sites(names: Sequence[str]) -> str:
    """All names if there are up to three, else the first, the last and their number."""
    if len(names) <= 3:
        return escape.line(", ".join(names))
    return escape.line(f"{names[0]} ... {names[-1]} ({len(names)})")


def _features(dictionary: Summarised) -> str:
    n = dictionary.code_sources
    per_source = f" for each of {n} sources" if n > 1 else ""
    return f"{dictionary.n_features:,}{per_source}, width {dictionary.width:,}"


def _sparsity(dictionary: Summarised) -> str:
    name, k = dictionary.sparsity.name, dictionary.shape.k
    trained = dictionary.provenance.get("sparsity")
    if isinstance(trained, Mapping) and isinstance(target := trained.get("_target_"), str):
        before = escape.line(target.rpartition(".")[2].lower())
        name += f" (trained as {before})" if before != name else ""
    l0 = dictionary.figures.get("l0")
    objective = dictionary.provenance.get("objective")
    aims = aims_at_k(dictionary.sparsity.options()) or aims_at_k(trained, objective)
    measured = [] if l0 is None else [f"L0 {l0:.2f} per token"]
    return ", ".join([name, *measured, *([f"k = {k:g}"] if aims else [])])


def aims_at_k(sparsity: Any, objective: Any = None) -> bool:
    """Whether settings of a sparsity, or a term of an objective's, hold L0 at dict.k.

    ReLU and Gated have no k: there the penalty's coefficient decides.
    """
    terms = objective.get("terms") if isinstance(objective, Mapping) else None
    parts = [sparsity, *(terms.values() if isinstance(terms, Mapping) else [])]
    return any(isinstance(part, Mapping) and "k" in part for part in parts)


def _held_out(figures: Mapping[str, float]) -> str:
    texts = [form.format(figures[key]) for key, form in FIGURES.items() if key in figures]
    if not texts:
        return "no figures were saved with it; dictlearn.evaluate() computes them"
    tokens = f" ({figures['tokens']:,.0f} tokens)" if "tokens" in figures else ""
    return ", ".join(texts) + tokens
