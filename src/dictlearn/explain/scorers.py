"""Scores descriptions by asking a language model where the described feature fires.

Detection and fuzzing follow Paulo et al. 2024 (arXiv 2410.13928), simulation Bills et al. 2023. A
malformed answer gives no score: it is counted, and its examples are left out.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from dictlearn.explain.answers import numbers
from dictlearn.explain.client import Asker
from dictlearn.explain.contexts import Contexts
from dictlearn.explain.prompt import Prompt
from dictlearn.explain.scores import Confusion
from dictlearn.ranges import Count, FourOrMore
from dictlearn.store.explanations import Failure

SHOWN_FAILURES = 3  # of each kind


@dataclass(frozen=True)
class Score:
    """A score; `value` is None where no answer could be read."""

    value: float | None
    n: int  # examples with an answer
    failing: tuple[Failure, ...] = field(default=())


class Scorer(ABC):
    """A scorer with a yaml in conf/scorer. If `balanced`, its value is a balanced accuracy."""

    balanced: bool

    @abstractmethod
    async def score(self, description: str, contexts: Contexts, asker: Asker) -> Score: ...


@dataclass(frozen=True)
class _Item:
    """A text, and whether its right answer is 1."""

    text: str
    fires: bool


@final
class Detection(Scorer):
    """Asks if the feature fires in a text; half of the texts are silent, half of these near misses."""

    balanced = True

    def __init__(self, prompt: Prompt, examples: FourOrMore = 20, per_prompt: Count = 5):
        prompt.check(("description", "examples", "n"))
        self.prompt, self.examples, self.per_prompt = prompt, examples, per_prompt

    async def score(self, description: str, contexts: Contexts, asker: Asker) -> Score:
        half = self.examples // 2
        fires = contexts.by_interval(half)[:half]
        near = contexts.near_misses(len(fires) // 2)
        silent = near + contexts.silent(len(fires) - len(near))
        items = [_Item(c.text, True) for c in fires] + [_Item(c.text, False) for c in silent]
        return await _answered(self.prompt, description, items, contexts, asker, self.per_prompt)


@final
class Fuzzing(Scorer):
    """Asks whether the feature fires on the marked tokens; in half of the texts others are marked."""

    balanced = True

    def __init__(self, prompt: Prompt, examples: FourOrMore = 20, per_prompt: Count = 5):
        prompt.check(("description", "examples", "n"))
        self.prompt, self.examples, self.per_prompt = prompt, examples, per_prompt

    async def score(self, description: str, contexts: Contexts, asker: Asker) -> Score:
        items = []
        for number, context in enumerate(contexts.by_interval(self.examples)[: self.examples]):
            right = number % 2 == 0
            count = sum(value > 0 for value in context.activations)
            wrong = contexts.silent_indices(context, count)
            if right or wrong:
                items.append(_Item(context.marked(None if right else wrong), right))
        return await _answered(self.prompt, description, items, contexts, asker, self.per_prompt)


@final
class Simulation(Scorer):
    """Asks for the activation on each token, 0 to 10; the score is the correlation over all tokens."""

    balanced = False

    def __init__(self, prompt: Prompt, examples: FourOrMore = 6):
        prompt.check(("description", "tokens"))
        self.prompt, self.examples = prompt, examples

    async def score(self, description: str, contexts: Contexts, asker: Asker) -> Score:
        drawn = contexts.by_interval(self.examples)[: self.examples - 1] + contexts.silent(1)
        answered = 0
        simulated: list[float] = []
        true: list[float] = []
        for context in drawn:
            tokens = "\n".join(json.dumps(p, ensure_ascii=False) for p in context.pieces)
            messages = self.prompt.filled(description=description, tokens=tokens)
            answer = await asker.score(messages, len(context.pieces))
            if answer is None:
                continue
            values = numbers(answer.text, len(context.pieces), 0, 10, answer.whole)
            if values is None:
                asker.tally.malformed += 1
                continue
            answered += 1
            simulated += values
            true += context.activations
        if len(simulated) < 2 or np.std(true) == 0:
            return Score(None, 0)
        if np.std(simulated) == 0:
            return Score(0.0, answered)
        return Score(float(np.corrcoef(simulated, true)[0, 1]), answered)


async def _answered(
    prompt: Prompt,
    description: str,
    items: Sequence[_Item],
    contexts: Contexts,
    asker: Asker,
    per_prompt: int,
) -> Score:
    """Balanced accuracy over the prompts whose answers can be read."""
    order = contexts.shuffled(len(items))
    answers: list[tuple[_Item, bool]] = []
    for start in range(0, len(order), per_prompt):
        batch = [items[i] for i in order[start : start + per_prompt]]
        texts = "\n\n".join(f"Example {n}:\n{item.text}" for n, item in enumerate(batch, start=1))
        messages = prompt.filled(description=description, examples=texts, n=str(len(batch)))
        answer = await asker.score(messages, len(batch))
        if answer is None:
            continue
        values = numbers(answer.text, len(batch), 0, 1, answer.whole)
        if values is None or not {0, 1} >= set(values):
            asker.tally.malformed += 1
            continue
        answers += [(item, value == 1) for item, value in zip(batch, values, strict=True)]
    counts = Confusion(
        tp=sum(item.fires and yes for item, yes in answers),
        fp=sum(not item.fires and yes for item, yes in answers),
        fn=sum(item.fires and not yes for item, yes in answers),
        tn=sum(not item.fires and not yes for item, yes in answers),
    )
    if not (counts.tp + counts.fn and counts.fp + counts.tn):
        return Score(None, len(answers))
    wrong = [Failure(item.text, item.fires, yes) for item, yes in answers if item.fires != yes]
    shown = [f for f in wrong if f.fired][:SHOWN_FAILURES]
    shown += [f for f in wrong if not f.fired][:SHOWN_FAILURES]
    return Score(counts.balanced_accuracy, len(answers), tuple(shown))
