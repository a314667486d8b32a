"""One feature, as it is printed and shown in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dictlearn import escape, marks
from dictlearn.api import html
from dictlearn.evals.table import share


@dataclass(frozen=True)
class Shown:
    """A stretch of held-out text in which a feature fires."""

    pieces: tuple[str, ...]  # the text of each token; put together they are the text
    activations: tuple[float, ...]  # the feature's, one per piece; 0 where it is silent
    peak: int  # index of the peak: the piece that the example was picked for

    @property
    def text(self) -> str:
        """The text, with its peak between « and »."""
        before, after = "".join(self.pieces[: self.peak]), "".join(self.pieces[self.peak + 1 :])
        return f"{before}«{self.pieces[self.peak]}»{after}"

    @property
    def activation(self) -> float:
        """The activation at the peak."""
        return self.activations[self.peak]

    def _repr_html_(self) -> str:
        return html.example(self.pieces, self.activations)


@dataclass(frozen=True, repr=False)
class FeatureRecord:
    """A feature's statistics and examples on held-out text, its effects, and its description."""

    name: str  # resid_post.1/266, as on its page
    site: str  # the site that it reads; "all" if sites share a code
    source: int  # the source's number, as in `Code.dense()[:, source, index]`
    index: int  # the feature's number within its source
    density: float  # share of tokens on which it fires
    count: int  # tokens on which it fires
    maximum: float  # largest activation
    mean: float  # mean activation on tokens on which it fires
    dead: bool  # it never fired
    description: str  # with Markdown's code marks; empty if there is none
    reliable: bool  # the description's scores are above the thresholds of `dictlearn explain`
    scores: Mapping[str, float]  # the description's, on documents that its author never saw
    examples: tuple[Shown, ...]  # the strongest first, then from weak to strong
    promoted: Mapping[str, tuple[tuple[str, float], ...]]  # by target: (token, effect on its logit)
    suppressed: Mapping[str, tuple[tuple[str, float], ...]]
    neighbours: tuple[tuple[str, float], ...]  # (name, cosine of the vectors that the two write)
    cofiring: tuple[tuple[str, float], ...]  # (name, Jaccard's index of the tokens they fire on)

    @property
    def text(self) -> str:
        """The strongest example, with its peak between « and »."""
        return self.examples[0].text if self.examples else ""

    def said(self, shown: Callable[[str], str] = marks.plain) -> str:
        """The description with its reliability and score, or "no description".

        `shown` renders the description's code marks: `marks.html` for a page.
        """
        if not self.description:
            return "no description"
        score = self.scores.get("balanced_accuracy")
        scored = "" if score is None else f" (balanced accuracy {score:.2f})"
        return ("" if self.reliable else "unreliable: ") + shown(self.description) + scored

    def fires(self) -> str:
        if self.dead:
            return "never fired"
        return f"fires on {share(self.density)} of tokens, at most {self.maximum:.3g}"

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.said()}", f"  {self.fires()}"]
        lines += [f"  {example.text!r}" for example in self.examples[:3]]
        return "\n".join(escape.line(line) for line in lines)

    def _repr_html_(self) -> str:
        return html.feature(self)
