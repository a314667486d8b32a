"""Descriptions that a language model writes, and their scores by scorers that ask it back.

With best_of=n it writes n; the one that scores best on a third of the "explain" documents, which
were kept from it, is taken. What is reported comes from the "score" documents alone, so choosing
doesn't flatter it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
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

FIELDS = ("strongest", "by_interval", "near_misses", "promoted", "suppressed")
UNKNOWN = "(not known)"
STRONGEST, BY_INTERVAL, NEAR_MISSES = 10, 10, 6
ESTIMATED = 64  # features whose prompts are made for an estimate, which speaks for all


@final
class Written(Explainer):
    """See conf/explainer/openai.yaml for the arguments."""

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
        sizes = {"concurrency": concurrency, "max_tokens": max_tokens, "best_of": best_of}
        if score_tokens is not None:
            sizes["score_tokens"] = score_tokens
        for key, value in sizes.items():
            if value < 1:
                raise ValueError(f"explainer.{key}={value}: want at least 1")
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
        """The prompts of some features are made, counted for all, and none is sent."""
        tally = asyncio.run(self._estimate(material, features))
        cached = f" ({tally.cached:,} of them answered in the cache)" if tally.cached else ""
        cost = tally.cost(self.price_in, self.price_out)
        priced = f", {cost:,.2f} at the given prices" if self.price_in or self.price_out else ""
        return (
            f"{len(features):,} features: about {tally.prompts:,} prompts{cached}, "
            f"{tally.tokens_in:,} tokens in and {tally.tokens_out:,} out{priced}"
        )

    async def _estimate(self, material: Material, features: Sequence[Feature]) -> Tally:
        asker = Estimator(self.client, Cache(material.folder), self.max_tokens, self.score_tokens)

        async def one(firings: Firings, feature: Feature) -> None:
            await self._one(material, firings, feature, asker)

        async def swapped(pair: tuple[Feature, Feature]) -> None:
            feature, other = pair
            before = replace(asker.tally)
            _, text = await self._described(material, material.firings, other, asker)
            asker.tally = before  # the other's own prompts are counted where it is described
            await self._scores(text or STAND_IN, material, material.firings, feature, asker)

        stages = (
            (features, partial(one, material.firings)),
            (self._swapped(features, material), swapped),
            (self._untrained(material, len(features)), partial(one, material.untrained)),
        )
        total = Tally()
        for work, ask in stages:
            some = [work[i] for i in range(0, len(work), -(-len(work) // ESTIMATED) or 1)]
            asker.tally = Tally()
            for item in some:
                await ask(item)  # type: ignore[arg-type]
            total.add(asker.tally, len(work) / max(len(some), 1))
        return total

    def explain(
        self, material: Material, features: Sequence[Feature], progress: NamedProgress, keep: Keep
    ) -> Explained:
        """Raises NoAnswer where nothing was answered, or nothing more is."""

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
        async def kept(feature: Feature) -> Explanation:
            one = await self._one(material, material.firings, feature, asker)
            if one.text:
                keep(one)
            return one

        found = await self._all(
            [partial(kept, feature) for feature in features], "explaining and scoring", progress
        )
        text = {(one.source, one.feature): one.text for one in found}
        swapped = await self._all(
            [
                partial(self._scores, text[other], material, material.firings, feature, asker)
                for feature, other in self._swapped(features, material)
                if text[other]
            ],
            "scoring shuffled descriptions",
            progress,
        )
        drawn = self._untrained(material, len(features))
        random = await self._all(
            [partial(self._one, material, material.untrained, f, asker) for f in drawn],
            "a random dictionary",
            progress,
        )
        _refuse_nothing(found, asker, keep)
        baselines = {
            "shuffled": [v for v in map(self._accuracy, swapped) if v is not None],
            "random_dictionary": [
                e.scores["balanced_accuracy"] for e in random if "balanced_accuracy" in e.scores
            ],
        }
        means = {name: round(float(np.mean(b)), 4) for name, b in baselines.items() if b}
        explanations = [replace(one, baselines=means) for one in found]
        figures: dict[str, Any] = {
            "model": self.client.model,
            "best_of": self.best_of,
            "unscored": sum("balanced_accuracy" not in e.scores for e in found),
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
        """As many at a time as there may be prompts; the results in order."""
        slots, done = asyncio.Semaphore(self.concurrency), 0

        async def one(task: Callable[[], Awaitable[Any]]) -> Any:
            nonlocal done
            async with slots:
                result = await task()
            done += 1
            progress(what, done, len(work))
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(task)) for task in work]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors  # the first stopped the others
        return [task.result() for task in tasks]

    async def _one(
        self, material: Material, firings: Firings, feature: Feature, asker: Asker
    ) -> Explanation:
        messages, text = await self._described(material, firings, feature, asker)
        scores = await self._scores(text, material, firings, feature, asker) if text else {}
        accuracy = self._accuracy(scores)
        values = {name: one.value for name, one in scores.items() if one.value is not None}
        if accuracy is not None:
            values = {"balanced_accuracy": accuracy, **values}
        return Explanation(
            *feature,
            text=text,
            explainer=self.name,
            model=self.client.model,
            prompt_hash=prompt_hash(messages),
            scores=rounded(values),
            n_examples=sum(one.n for one in scores.values()),
            reliable=accuracy is not None and accuracy >= material.threshold,
            failing=tuple(failure for one in scores.values() for failure in one.failing),
        )

    async def _described(
        self, material: Material, firings: Firings, feature: Feature, asker: Asker
    ) -> tuple[Messages, str]:
        """What was asked, and the description; "" where none came."""
        part = "shown" if self.best_of > 1 else None
        shown = _contexts(material, firings, feature, "explain", part)
        messages = self._messages(shown, material, feature if firings is material.firings else None)
        texts = []
        for number in range(self.best_of):
            answer = await asker.describe(messages, number)
            texts.append("" if answer is None else description(answer.text, answer.whole))
        return messages, await self._best(texts, material, firings, feature, asker)

    async def _best(
        self,
        texts: Sequence[str],
        material: Material,
        firings: Firings,
        feature: Feature,
        asker: Asker,
    ) -> str:
        """The text that scores best on documents kept for choosing; of one text, that one."""
        different = [text for text in dict.fromkeys(texts) if text]
        if len(different) < 2:
            return different[0] if different else ""
        ranked = []
        for text in different:
            scores = await self._scores(text, material, firings, feature, asker, choosing=True)
            ranked.append((self._accuracy(scores) or 0.0, text))
        return max(ranked, key=lambda pair: pair[0])[1]

    async def _scores(
        self,
        text: str,
        material: Material,
        firings: Firings,
        feature: Feature,
        asker: Asker,
        choosing: bool = False,
    ) -> dict[str, Score]:
        half, part = ("explain", "chosen") if choosing else ("score", None)
        found = {}
        for name, scorer in self.scorers.items():
            contexts = _contexts(material, firings, feature, half, part)
            found[name] = await scorer.score(text, contexts, asker)
        return found

    def _accuracy(self, scores: Mapping[str, Score]) -> float | None:
        """The mean over the scorers that give a balanced accuracy; None where none could."""
        values = [
            one.value
            for name, one in scores.items()
            if self.scorers[name].balanced and one.value is not None
        ]
        return float(np.mean(values)) if values else None

    def _messages(
        self, contexts: Contexts, material: Material, feature: Feature | None
    ) -> Messages:
        promoted = suppressed = UNKNOWN
        if feature is not None and material.store is not None:
            known = material.store.feature(*feature)
            promoted = _tokens(known.promoted, material.pieces)
            suppressed = _tokens(known.suppressed, material.pieces)
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
        """Of the shuffled baseline: a feature to score on, and the one whose description is taken."""
        if len(features) < 2:
            return []
        other = derangement(len(features), material.seed)
        some = range(min(len(features), material.baseline_features))
        return [(features[i], features[other[i]]) for i in some]

    def _untrained(self, material: Material, most: int) -> list[Feature]:
        firings = material.untrained
        everything = [divmod(i, firings.n_features) for i in range(len(firings.starts) - 1)]
        drawn = np.random.default_rng(material.seed).permutation(len(everything))
        n = min(most, material.baseline_features)
        some = [everything[i] for i in drawn[: 4 * n]]
        return material.explainable(some, firings)[:n]


def _contexts(
    material: Material, firings: Firings, feature: Feature, half: str, part: str | None
) -> Contexts:
    """Of a random dictionary no neighbours are known."""
    known = material.neighbours(*feature) if firings is material.firings else []
    sample, pieces = material.sample, material.pieces
    return Contexts(sample, firings, feature, pieces, half, part, material.seed, known)


def _refuse_nothing(found: Sequence[Explanation], asker: Sender, keep: Keep) -> None:
    """Raises NoAnswer where a run has nothing to show for what it asked."""
    tally = asker.tally
    if not found or any(one.text for one in found):
        return
    if tally.failed == tally.prompts:
        raise NoAnswer(f"explainer: nothing was answered ({tally}); the last: {asker.last_failure}")
    for one in found:
        keep(one)  # that there is none was paid for, too
    more = "; a higher explainer.max_tokens leaves room behind thoughts" if tally.cut else ""
    raise NoAnswer(f"explainer: no answer holds a description ({tally}){more}")


def _tokens(
    by_site: Mapping[str, Sequence[tuple[int, float]]], pieces: Sequence[str], most: int = 10
) -> str:
    lines = [
        f"{site}: {', '.join(quoted(pieces[i]) for i, _ in scores[:most])}"
        for site, scores in by_site.items()
        if scores
    ]
    return "\n".join(lines) or UNKNOWN
