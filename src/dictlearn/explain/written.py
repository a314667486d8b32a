"""Descriptions written by a language model, and scored by asking it where features fire.

With best_of=n it writes n descriptions; the one that scores best on an unseen third of the "explain"
documents is taken. Reported scores come from the "score" documents alone, so the choice doesn't bias
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np

from dictlearn.explain.answers import description
from dictlearn.explain.cache import Cache
from dictlearn.explain.client import (
    STAND_IN,
    Asker,
    Client,
    Estimator,
    NoAnswer,
    Sender,
    Tally,
    prompt_hash,
)
from dictlearn.explain.contexts import Contexts
from dictlearn.explain.prompt import Messages, Prompt
from dictlearn.explain.protocol import Explained, Explainer, Feature, Keep, Material
from dictlearn.explain.sample import Firings
from dictlearn.explain.scorers import Score, Scorer
from dictlearn.explain.scores import derangement, rounded
from dictlearn.explain.wording import quoted
from dictlearn.store.explanations import Explanation
from dictlearn.types import NamedProgress
from dictlearn.words import counted

FIELDS = ("strongest", "by_interval", "near_misses", "promoted", "suppressed")
UNKNOWN = "(not known)"
STRONGEST, BY_INTERVAL, NEAR_MISSES = 10, 10, 6
LISTED = 10  # promoted or suppressed tokens of a target
ESTIMATED = 64  # features whose prompts are made for an estimate


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A feature of the dictionary, or of the random one, and who is asked about it."""

    feature: Feature
    material: Material
    firings: Firings
    asker: Asker

    @property
    def trained(self) -> bool:
        return self.firings is self.material.firings

    def contexts(self, half: str, part: str | None) -> Contexts:
        """Its contexts; those of a random feature have no known neighbours."""
        material, feature = self.material, self.feature
        neighbours = material.neighbours(*feature) if self.trained else []
        texts = material.sample, self.firings, feature, material.pieces
        return Contexts(*texts, half, part, material.seed, neighbours)


@final
class Written(Explainer):
    """The arguments are explained in conf/explainer/openai.yaml."""

    def __init__(
        self,
        name: str,
        client: Client,
        prompt: Prompt,
        scorers: Mapping[str, Scorer],
        concurrency: int,
        max_tokens: int,
        score_tokens: int | None = None,
        best_of: int = 1,
        price_in: float = 0.0,
        price_out: float = 0.0,
    ):
        if best_of > 1 and client.temperature == 0:
            raise ValueError(f"explainer.best_of={best_of}: want explainer.temperature above 0")
        if not any(scorer.balanced for scorer in scorers.values()):
            raise ValueError("scorer: none gives a balanced accuracy; want detection or fuzzing")
        prompt.check(FIELDS)
        self.name, self.client, self.prompt = name, client, prompt
        self.scorers, self.concurrency = scorers, concurrency
        self.max_tokens, self.score_tokens = max_tokens, score_tokens
        self.best_of, self.price_in, self.price_out = best_of, price_in, price_out

    def estimate(self, material: Material, features: Sequence[Feature]) -> str:
        """A sentence on prompts, tokens and cost, extrapolated from some features; sends nothing."""
        tally = asyncio.run(self._estimate(material, features))
        cached = f" ({tally.cached:,} of them answered in the cache)" if tally.cached else ""
        cost = tally.cost(self.price_in, self.price_out)
        priced = f", {cost:,.2f} at the given prices" if self.price_in or self.price_out else ""
        return (
            f"{counted(len(features), 'feature')}: about {counted(tally.prompts, 'prompt')}{cached}, "
            f"{tally.tokens_in:,} tokens in and {tally.tokens_out:,} out{priced}"
        )

    async def _estimate(self, material: Material, features: Sequence[Feature]) -> Tally:
        asker = Estimator(self.client, Cache(material.folder), self.max_tokens, self.score_tokens)

        async def explain(firings: Firings, feature: Feature) -> None:
            await self._explanation(Subject(feature, material, firings, asker))

        async def score_swapped(pair: tuple[Feature, Feature]) -> None:
            feature, other = (Subject(key, material, material.firings, asker) for key in pair)
            before = replace(asker.tally)
            _, text = await self._described(other)
            asker.tally = before  # the other's own prompts are counted where it is described
            await self._scores(text or STAND_IN, feature)

        n_untrained = min(len(features), material.baseline_features)
        untrained = material.drawn_untrained(n_untrained)
        stages = (
            (features, partial(explain, material.firings)),
            (self._swapped(features, material), score_swapped),
            (untrained, partial(explain, material.untrained)),
        )
        total = Tally()
        for work, ask in stages:
            sampled = [work[i] for i in range(0, len(work), -(-len(work) // ESTIMATED) or 1)]
            asker.tally = Tally()
            for item in sampled:
                await ask(item)  # type: ignore[arg-type]
            total.add(asker.tally, len(work) / max(len(sampled), 1))
        return total

    def explain(
        self, material: Material, features: Sequence[Feature], progress: NamedProgress, keep: Keep
    ) -> Explained:
        """Explains features. Raises NoAnswer if no prompt is answered, or none any more."""

        async def run() -> Explained:
            cache = Cache(material.folder)
            asker = Sender(self.client, cache, self.max_tokens, self.score_tokens, self.concurrency)
            try:
                return await self._explain(material, features, progress, keep, asker)
            finally:
                await self.client.close()

        return asyncio.run(run())

    async def _explain(
        self,
        material: Material,
        features: Sequence[Feature],
        progress: NamedProgress,
        keep: Keep,
        asker: Sender,
    ) -> Explained:
        def trained(feature: Feature) -> Subject:
            return Subject(feature, material, material.firings, asker)

        async def kept(feature: Feature) -> Explanation:
            explanation = await self._explanation(trained(feature))
            if explanation.text:
                keep(explanation)
            return explanation

        explained = await self._all(
            [partial(kept, feature) for feature in features], "explaining and scoring", progress
        )
        text = {(e.source, e.feature): e.text for e in explained}
        swapped = await self._all(
            [
                partial(self._scores, text[other], trained(feature))
                for feature, other in self._swapped(features, material)
                if text[other]
            ],
            "scoring shuffled descriptions",
            progress,
        )
        n_untrained = min(len(features), material.baseline_features)
        drawn = [
            Subject(feature, material, material.untrained, asker)
            for feature in material.drawn_untrained(n_untrained)
        ]
        random = await self._all(
            [partial(self._explanation, subject) for subject in drawn],
            "a random dictionary",
            progress,
        )
        _check_described(explained, asker, keep)
        baselines = {
            "shuffled": [v for v in map(self._accuracy, swapped) if v is not None],
            "random_dictionary": [
                e.scores["balanced_accuracy"] for e in random if "balanced_accuracy" in e.scores
            ],
        }
        means = {name: round(float(np.mean(b)), 4) for name, b in baselines.items() if b}
        explanations = [replace(e, baselines=means) for e in explained]
        figures: dict[str, Any] = {
            "model": self.client.model,
            "best_of": self.best_of,
            "unscored": sum("balanced_accuracy" not in e.scores for e in explained),
            "asked": vars(asker.tally),
            "cost": round(asker.tally.cost(self.price_in, self.price_out), 4),
        }
        return Explained(explanations, baselines, figures, self._told(asker))

    def _told(self, asker: Sender) -> tuple[str, ...]:
        tally = asker.tally
        told = [
            f"{tally}; {tally.tokens_in:,} tokens in, {tally.tokens_out:,} out by the server's count"
        ]
        if tally.failed:
            told.append(f"the last failure: {asker.last_failure}")
        if tally.cut:
            told.append(
                "explainer.max_tokens and explainer.score_tokens limit answers, thoughts too"
            )
        return (*told, *filter(None, [self.client.remark()]))

    async def _all(
        self, work: Sequence[Callable[[], Awaitable[Any]]], what: str, progress: NamedProgress
    ) -> list[Any]:
        """Results of the tasks in order; `concurrency` of them run at a time."""
        slots, done = asyncio.Semaphore(self.concurrency), 0

        async def run(task: Callable[[], Awaitable[Any]]) -> Any:
            nonlocal done
            async with slots:
                result = await task()
            done += 1
            progress(what, done, len(work))
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(task)) for task in work]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors  # the first stopped the others
        return [task.result() for task in tasks]

    async def _explanation(self, subject: Subject) -> Explanation:
        messages, text = await self._described(subject)
        scores = await self._scores(text, subject) if text else {}
        accuracy = self._accuracy(scores)
        values = {name: score.value for name, score in scores.items() if score.value is not None}
        if accuracy is not None:
            values = {"balanced_accuracy": accuracy, **values}
        return Explanation(
            *subject.feature,
            text=text,
            explainer=self.name,
            model=self.client.model,
            prompt_hash=prompt_hash(messages),
            scores=rounded(values),
            n_examples=sum(score.n for score in scores.values()),
            reliable=accuracy is not None and accuracy >= subject.material.threshold,
            failing=tuple(failure for score in scores.values() for failure in score.failing),
        )

    async def _described(self, subject: Subject) -> tuple[Messages, str]:
        """(the prompt, the description); the description is "" where none came."""
        messages = self._messages(subject)
        texts = []
        for number in range(self.best_of):
            answer = await subject.asker.describe(messages, number)
            texts.append("" if answer is None else description(answer.text, answer.whole))
        return messages, await self._best(texts, subject)

    async def _best(self, texts: Sequence[str], subject: Subject) -> str:
        """The text with the best score on the documents for choosing; a single text is not scored."""
        different = [text for text in dict.fromkeys(texts) if text]
        if len(different) < 2:
            return different[0] if different else ""
        ranked = []
        for text in different:
            scores = await self._scores(text, subject, choosing=True)
            ranked.append((self._accuracy(scores) or 0.0, text))
        return max(ranked, key=lambda pair: pair[0])[1]

    async def _scores(
        self, text: str, subject: Subject, choosing: bool = False
    ) -> dict[str, Score]:
        half, part = ("explain", "chosen") if choosing else ("score", None)
        return {
            name: await scorer.score(text, subject.contexts(half, part), subject.asker)
            for name, scorer in self.scorers.items()
        }

    def _accuracy(self, scores: Mapping[str, Score]) -> float | None:
        """Mean of the balanced accuracies; None where no scorer has one."""
        values = [
            score.value
            for name, score in scores.items()
            if self.scorers[name].balanced and score.value is not None
        ]
        return float(np.mean(values)) if values else None

    def _messages(self, subject: Subject) -> Messages:
        material, promoted, suppressed = subject.material, UNKNOWN, UNKNOWN
        if subject.trained and material.store is not None:
            record = material.store.feature(*subject.feature)
            promoted = _tokens(record.promoted, material.pieces)
            suppressed = _tokens(record.suppressed, material.pieces)
        contexts = subject.contexts("explain", "shown" if self.best_of > 1 else None)
        listed = {
            "strongest": [c.marked() for c in contexts.strongest(STRONGEST)],
            "by_interval": [c.marked() for c in contexts.by_interval(BY_INTERVAL)],
            "near_misses": [c.text for c in contexts.near_misses(NEAR_MISSES)],
        }
        fields = {name: "\n---\n".join(texts) or "(none)" for name, texts in listed.items()}
        return self.prompt.filled(**fields, promoted=promoted, suppressed=suppressed)

    def _swapped(
        self, features: Sequence[Feature], material: Material
    ) -> list[tuple[Feature, Feature]]:
        """Pairs for the shuffled baseline: a feature, and another one whose description it gets."""
        if len(features) < 2:
            return []
        other = derangement(len(features), material.seed)
        n = min(len(features), material.baseline_features)
        return [(features[i], features[other[i]]) for i in range(n)]


def _check_described(explained: Sequence[Explanation], asker: Sender, keep: Keep) -> None:
    """Raises NoAnswer if a run asked for descriptions and has none."""
    tally = asker.tally
    if not explained or any(e.text for e in explained):
        return
    if tally.failed == tally.prompts:
        raise NoAnswer(f"explainer: nothing was answered ({tally}); the last: {asker.last_failure}")
    for explanation in explained:
        keep(explanation)  # a missing description was paid for, too
    more = "; a higher explainer.max_tokens leaves room behind thoughts" if tally.cut else ""
    raise NoAnswer(f"explainer: no answer holds a description ({tally}){more}")


def _tokens(by_site: Mapping[str, Sequence[tuple[int, float]]], pieces: Sequence[str]) -> str:
    lines = [
        f"{site}: {', '.join(quoted(pieces[i]) for i, _ in scores[:LISTED])}"
        for site, scores in by_site.items()
        if scores
    ]
    return "\n".join(lines) or UNKNOWN
