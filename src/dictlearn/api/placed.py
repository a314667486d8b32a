"""What a notebook passes to a model with dictionaries in it, checked; and which features fire where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

from dictlearn.api.results import Run, place_of
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.interventions.directions import resolved
from dictlearn.interventions.edits import Edit, Push, as_edit
from dictlearn.interventions.passes import Setting
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import blocks
from dictlearn.names import code_names, feature_name
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import has_store, open_store
from dictlearn.types import Code

SHOWN = 40  # rows of a printed table
Placeable = Dictionary | Run | str | Path


@dataclass(frozen=True)
class Firing:
    """A feature that is active on a token. `description` is empty where `explain` has given none."""

    position: int
    token: str
    feature: str  # its name, such as resid_post.1/266
    source: int
    index: int
    value: float
    description: str


@final
class Firings(Sequence[Firing]):
    """Which features fire on which token, strongest first within a token."""

    def __init__(self, firings: Sequence[Firing]):
        self._firings = list(firings)

    def __len__(self) -> int:
        return len(self._firings)

    def __getitem__(self, key: Any) -> Any:
        return self._firings[key]

    def rows(self) -> list[dict[str, Any]]:
        """A plain dictionary for each."""
        return [asdict(firing) for firing in self._firings]

    def to_pandas(self) -> Any:
        """`rows` as a pandas.DataFrame. Raises ImportError if pandas is not installed."""
        return import_module("pandas").DataFrame(self.rows())

    def __repr__(self) -> str:
        lines = [
            f"{firing.position:>5}  {firing.token!r:<16} {firing.feature:<22} "
            f"{firing.value:>8.3f}  {firing.description}".rstrip()
            for firing in self._firings[:SHOWN]
        ]
        more = len(self) - len(lines)
        return "\n".join([*lines, *([f"and {more:,} more"] if more > 0 else [])])


def as_dictionaries(function: str, values: Placeable | Sequence[Placeable]) -> list[Dictionary]:
    """Dictionaries from one or several, or from runs, folders and hub ids of them."""
    listed = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(value, Edit | Push) for value in listed):
        raise ValueError(
            f"{function}: the dictionaries come before the edits; [] if there are none"
        )
    return [
        value if isinstance(value, Dictionary) else load_dictionary(place_of(function, value))
        for value in listed
    ]


def as_edits(lm: LanguageModel, values: Any) -> list[Edit | Push]:
    """Edits from one or several, also in circuit-tracer's form (source, position, feature, value).

    A `Push` may have a concept vector, or the path of one. Raises ValueError if that was made for
    another model.
    """
    if isinstance(values, tuple) and len(values) == 4 and not isinstance(values[0], Edit | Push):
        return [as_edit(values)]
    if not isinstance(values, list | tuple):
        values = [values]
    values = [resolved(value, lm.info) if isinstance(value, Push) else value for value in values]
    return [as_edit(value) for value in values]


def setting(
    lm: LanguageModel, error: bool, constrained: bool | range, freeze_attention: bool
) -> Setting:
    """The setting of a pass from a user's arguments; `constrained=True` means every block."""
    if not isinstance(constrained, bool | range):
        raise ValueError(f"constrained={constrained!r}: want True, False or a range of blocks")
    every = range(len(blocks(lm.model)[1]))
    if isinstance(constrained, range) and not set(constrained) <= set(every):
        raise ValueError(f"constrained={constrained}: want blocks from 0 to {len(every) - 1}")
    layers = every if constrained is True else constrained if constrained else None
    return Setting(error, layers, freeze_attention or layers is not None)


def descriptions(place: Any, dictionary: Dictionary) -> dict[tuple[int, int], str]:
    """What `dictlearn explain` wrote in a run, by (source, index); empty if there is nothing."""
    folder = place.path if isinstance(place, Run) else place
    if isinstance(folder, Dictionary) or not has_store(folder):
        return {}
    digest = sha256_of(dictionary)
    found = read_explanations(open_store(folder, digest).folder, digest)
    return {key: explanation.text for key, explanation in found.items()}


def firings(
    dictionary: Dictionary, code: Code, pieces: list[str], said: dict[tuple[int, int], str]
) -> Firings:
    names = code_names(dictionary.sources, dictionary.code_sources)
    tokens, sources = code.rows // code.n_sources, code.rows % code.n_sources
    entries = zip(
        tokens.tolist(), sources.tolist(), code.features.tolist(), code.values.tolist(), strict=True
    )
    found: list[Firing] = []
    for token, s, index, value in sorted(entries, key=lambda entry: (entry[0], -entry[3])):
        name, description = feature_name(names, s, index), said.get((s, index), "")
        found.append(Firing(token, pieces[token], name, s, index, value, description))
    return Firings(found)
