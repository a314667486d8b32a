"""The keys of a concept study, which conf/study/<name>.yaml sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dictlearn.interventions.edits import EDITS, GATES
from dictlearn.interventions.fits import METHODS
from dictlearn.interventions.steering import PLAIN, PUSHED
from dictlearn.ranges import Count, NonNegative, Positive, Several

NONE, PREFIX = "none", "prefix"
RANDOM = ("random_direction", "random_feature")
FITTED = tuple(METHODS)
ALONE = (NONE, PREFIX, *PLAIN)  # methods that take no strength


@dataclass(frozen=True)
class ConceptStudy:
    """What is asked of a model, and how it is steered.

    Args:
        pattern: regular expression (multiline) that finds the concept in what the model writes.
        slot, value: instead of a pattern, a literal of `explain`'s rules: a text has the concept if any
            of its tokens has this value in this slot, such as inside: a docstring.
        wanted: whether the concept should come more or less often.
        after: regular expression; prompts are held-out text up to the end of a match.
        prompts: these texts instead, to steer on; directions are still fitted where `after` matches.
        n_prompts: continued for each cell, one text each.
        context: tokens of a prompt at most.
        tokens, temperature: of what is generated.
        seeds: each draws prompts, samples and random controls anew.
        methods: an operation on the feature, with @token or @input for a gate on it (add, set@token,
            scale, zero, push, ...); a fitted direction (mean, pca, logistic); the controls
            random_direction, random_feature, prefix.
        strengths: 1 is as long as the feature's largest activation makes its decoder vector; `scale`
            multiplies activations by 1 + strength, or 1 - strength where fewer are wanted.
        prefix: text in front of a prompt, for the method of that name.
        check: dotted name of a function that takes a prompt with its continuation, and is true if that
            is whole, such as dictlearn.interventions.concept.outputs.parses_python; null: none.
        kl_windows, kl_tokens: the unrelated held-out text on which KL and CE are taken.
        kl_limit: nats per token up to which areas count.
    """

    after: str
    pattern: str | None = None
    slot: str | None = None
    value: str | None = None
    wanted: Literal["more", "fewer"] = "more"
    prompts: Sequence[str] | None = None
    n_prompts: Several = 48
    context: Count = 64
    tokens: Count = 24
    temperature: NonNegative = 0.8
    seeds: Several = 3
    methods: Sequence[str] = ("add", *FITTED, *RANDOM)
    strengths: Sequence[Positive] = (0.25, 0.5, 1.0, 2.0)
    prefix: str | None = None
    check: str | None = "dictlearn.interventions.concept.outputs.parses_python"
    kl_windows: Count = 12
    kl_tokens: Several = 128
    kl_limit: Positive = 0.5

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.slot is None or self.value is None):
            raise ValueError("study.pattern: want a pattern, or both study.slot and study.value")
        for key in ("pattern", "after"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                raise ValueError(f"study.{key}: no regular expression ({error})") from None
        for method in self.methods:
            check_method(method)
        if PREFIX in self.methods and not self.prefix:
            raise ValueError("study.prefix: the method prefix wants a text")

    def cells(self) -> list[tuple[str, float | None, int]]:
        """(method, strength, seed) of every cell, the unchanged model's first."""
        listed: list[tuple[str, float | None]] = [(NONE, None)]
        for method in self.methods:
            alone = method.partition("@")[0] in ALONE
            listed += [(method, None)] if alone else [(method, s) for s in self.strengths]
        return [(*one, seed) for seed in range(self.seeds) for one in listed]


def check_method(method: str) -> None:
    """Raises ValueError for a method that no study knows."""
    name, _, gate = method.partition("@")
    known = (*EDITS, *PUSHED, *FITTED, *RANDOM, PREFIX)
    if name not in known:
        raise ValueError(f"study.methods: {method}: want one of {', '.join(known)}")
    if gate and (gate not in GATES[1:] or name in (*RANDOM, PREFIX)):
        raise ValueError(
            f"study.methods: {method}: a gate is @token or @input, and controls have none"
        )
