"""A run's features as records: text, descriptions, and tables of them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final, overload

from transformers import PreTrainedTokenizerBase

from dictlearn.api import html
from dictlearn.api.record import FeatureRecord, Shown
from dictlearn.frames import data_frame
from dictlearn.names import feature_named
from dictlearn.store.explanations import Explanation, read_explanations
from dictlearn.store.features import open_store
from dictlearn.store.records import Example, Feature, TokenScores
from dictlearn.store.text import token_text
from dictlearn.verbs.trained_in import tokenizer_for

SHOWN = 20  # rows of a printed table


@final
class Features(Sequence[FeatureRecord]):
    """Every feature of a run, dead ones included, each read from the disk when it is asked for.

    `features[3]`, `features["resid_post.1/266"]`, `features[0:10]`; iteration goes through them in order.

    Args:
        run: the run's folder, or its features/.
    """

    def __init__(self, run: Path):
        self.store = open_store(run)
        self._n = self.store.info.n_features
        self._explanations = read_explanations(self.store.folder, self.store.info.dictionary_sha256)

    def __len__(self) -> int:
        return len(self.store)

    @overload
    def __getitem__(self, key: int | str) -> FeatureRecord: ...
    @overload
    def __getitem__(self, key: slice) -> list[FeatureRecord]: ...
    def __getitem__(self, key: int | str | slice) -> FeatureRecord | list[FeatureRecord]:
        if isinstance(key, slice):
            return [self._record(*self._split(number)) for number in range(len(self))[key]]
        if isinstance(key, str):
            return self._record(*feature_named(key, self.store.info.code_names, self._n))
        try:
            number = operator.index(key)
        except TypeError:
            example = self.name(0, 0)
            raise TypeError(
                f"features[{key!r}]: want a number, a name such as {example!r}, or a slice"
            ) from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"feature {number}: there are {len(self)}")
        return self._record(*self._split(number % len(self)))

    def __iter__(self) -> Iterator[FeatureRecord]:
        return (self[number] for number in range(len(self)))

    def search(self, words: str) -> list[FeatureRecord]:
        """The features whose description contains `words`, in upper or lower case."""
        if not isinstance(words, str):
            raise ValueError(f"search: want words as text, not {words!r}")
        keys = sorted(k for k, e in self._explanations.items() if _contains(words, e.text))
        return [self._record(*key) for key in keys]

    def rows(self, examples: int = 1) -> list[dict[str, Any]]:
        """A plain dictionary for each feature, with this many of its strongest examples in `text`.

        Without examples it reads only statistics: a hundred thousand features take a second.
        """
        if type(examples) is not int or examples < 0:
            raise ValueError(f"examples={examples!r}: want a whole number of at least 0")
        statistics = {name: t.flatten().tolist() for name, t in self.store.statistics.items()}
        rows = []
        for number in range(len(self)):
            source, index = self._split(number)
            explanation = self._explanations.get((source, index))
            row: dict[str, Any] = {"feature": self.name(source, index)}
            row |= {"site": self.store.site(source), "index": index}
            row |= {name: values[number] for name, values in statistics.items()}
            row |= {
                "description": explanation.text if explanation else "",
                "reliable": bool(explanation and explanation.reliable),
                "score": explanation.scores.get("balanced_accuracy") if explanation else None,
            }
            if examples:
                top = self.store.feature(source, index).top[:examples]
                row["text"] = "\n".join(self._shown(example).text for example in top)
            rows.append(row)
        return rows

    def to_pandas(self, examples: int = 1) -> Any:
        """`rows` as a pandas.DataFrame, indexed by the feature's name.

        Raises:
            ImportError: pandas is not installed; dictlearn does not require it.
        """
        return data_frame(self.rows(examples)).set_index("feature")

    def name(self, source: int, index: int) -> str:
        """The feature's name on the pages and in other commands: resid_post.1/266."""
        ends = {"source": (source, self.store.info.code_sources), "index": (index, self._n)}
        for what, (number, end) in ends.items():
            if type(number) is not int or not 0 <= number < end:
                raise ValueError(f"{what}={number!r}: want a whole number from 0 to {end - 1}")
        return self.store.name(source, index)

    def __repr__(self) -> str:
        info = self.store.info
        dead = int(self.store.statistics["dead"].sum())
        return (
            f"Features: {len(self):,} of {info.kind} at {', '.join(info.code_names)}, {dead:,} never "
            f"fired on {info.tokens:,} tokens, {len(self._explanations):,} described"
        )

    def _repr_html_(self) -> str:
        """The first `SHOWN` features, as a table."""
        return html.table(repr(self), self[:SHOWN])

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = tokenizer_for(self.store)
        if tokenizer is None:
            raise ValueError(f"{self.store.info.model}: has no tokenizer to show text with")
        return tokenizer

    def _split(self, number: int) -> tuple[int, int]:
        """(source, index) of a feature that is counted over all sources."""
        return divmod(number, self._n)

    def _record(self, source: int, index: int) -> FeatureRecord:
        feature = self.store.feature(source, index)
        explanation = self._explanations.get((source, index))
        return self._made(feature, explanation or Explanation(source, index, "", "none"))

    def _made(self, found: Feature, said: Explanation) -> FeatureRecord:
        return FeatureRecord(
            name=self.name(found.source, found.index),
            site=self.store.site(found.source),
            source=found.source,
            index=found.index,
            density=found.density,
            count=found.count,
            maximum=found.maximum,
            mean=found.mean,
            dead=found.dead,
            description=said.text,
            reliable=said.reliable,
            scores=dict(said.scores),
            examples=tuple(self._shown(example) for example in found.examples),
            promoted={site: self._words(s) for site, s in found.promoted.items()},
            suppressed={site: self._words(s) for site, s in found.suppressed.items()},
            neighbours=tuple((self.name(s, i), cosine) for s, i, cosine in found.neighbours),
            cofiring=tuple((self.name(s, i), jaccard) for s, i, jaccard in found.cofiring),
        )

    def _shown(self, example: Example) -> Shown:
        pieces = token_text(self._tokenizer, example.tokens)
        return Shown(tuple(pieces), example.activations, example.peak)

    def _words(self, scores: TokenScores) -> tuple[tuple[str, float], ...]:
        words = token_text(self._tokenizer, [token for token, _ in scores])
        return tuple(zip(words, (score for _, score in scores), strict=True))


def _contains(words: str, text: str) -> bool:
    return bool(text) and words.casefold() in text.casefold()
