"""`dictlearn.attribute`: the attribution graph of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dictlearn.api.model import OpenModel
from dictlearn.api.placed import Placeable, as_dictionaries
from dictlearn.attribution import files
from dictlearn.attribution.attribute import Settings
from dictlearn.attribution.attribute import attribute as traced
from dictlearn.attribution.graph import Graph
from dictlearn.attribution.targets import Target
from dictlearn.lm.language_model import LanguageModel
from dictlearn.words import a


def attribute(
    model: OpenModel | LanguageModel,
    dictionary: Placeable | Sequence[Placeable],
    prompt: str | Tensor | Sequence[int],
    targets: Sequence[Target] | None = None,
    *,
    nodes: int | None = None,
    logits: int = 10,
    probability: float = 0.95,
    rank_every: int = 2048,
    held: int = 1,
) -> Graph:
    """The direct effects of a prompt's features, errors and tokens on each other and on `targets`.

    Args:
        model: of `open_model`, or a `LanguageModel` in memory.
        dictionary: transcoders or a CLT, or several of them for different layers.
        prompt: a text, which the start-of-document token is put before, or token ids [positions].
        targets: token ids or texts of one token, `Difference`, `FeatureTarget`, `Direction`; None:
            the likeliest next tokens, at most `logits`, and no more than have `probability`.
        nodes: features with edges of their own, those that most influence arrives at; None: all.
        rank_every: rows between two rankings; circuit-tracer's batch_size times update_interval.
        held: positions at the start whose features and errors are constants, not nodes.

    Raises:
        ValueError: a graph is not defined for these, or a value is out of range.
    """
    if isinstance(model, LanguageModel):
        model = OpenModel(model)
    if not isinstance(model, OpenModel):
        raise ValueError(f"attribute: want a model of open_model, not {a(type(model).__name__)}")
    tokens = model.read(prompt)
    if tokens.ndim != 1:
        raise ValueError("attribute: want one prompt, [positions]; call it once for each")
    settings = Settings(nodes, logits, probability, rank_every, held)
    dictionaries = [d.to(model.lm.device) for d in as_dictionaries("attribute", dictionary)]
    return traced(model.lm, dictionaries, tokens, targets, settings)


def load_graph(folder: str | Path) -> Graph:
    """A graph that `Graph.save` or `dictlearn attribute` wrote. Raises ValueError if it is damaged."""
    return files.load(Path(folder))
