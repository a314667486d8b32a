"""Warnings on a finished run: that it diverged, or missed its L0."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.train.trainee import Trainee

DIVERGED = 2.0  # factor on the FVU of the start, or on 1, the FVU of writing the mean
FAR = 0.2  # the distance from the target L0, as a share of it

Figures = Mapping[str, float | None]


def diverged(trainee: Trainee, figures: Figures) -> bool:
    """Whether the dictionary is much worse than where it began, and than no dictionary at all.

    An objective without squared error, such as a KL alone, may let the FVU rise for its own goal.
    """
    if "fvu" not in figures:  # no eval measures it
        return False
    fvu = figures["fvu"]
    if fvu is None or not math.isfinite(fvu):
        return True
    terms = [term for _, term in trainee.objective.named_terms()]
    return any(isinstance(t, Reconstruction) for t in terms) and fvu > DIVERGED * max(
        1.0, float(trainee.start_fvu)
    )


def sentences(trainee: Trainee, figures: Figures) -> list[str]:
    """The warnings, with what to do, one sentence each."""
    warnings = [_missed(trainee, figures)]
    if diverged(trainee, figures):
        fvu = figures.get("fvu")
        value = "not a number" if fvu is None or not math.isfinite(fvu) else f"{fvu:.3g}"
        warnings = [
            f"The run diverged: its FVU on unseen text is {value}, {float(trainee.start_fvu):.3g} at "
            "its first step, and 1 for writing the mean. A smaller optim.lr is the usual cure"
        ]
    return [warning for warning in warnings if warning]


def _missed(trainee: Trainee, figures: Figures) -> str | None:
    """A sentence if L0 is far from dict.k, with the coefficient that moves it; for penalties on L0."""
    dictionary, l0 = trainee.dictionary, figures.get("l0")
    steering = [(n, term) for n, term in trainee.objective.named_terms() if term.steers_l0]
    if not steering or l0 is None:
        return None
    target = dictionary.shape.k * dictionary.code_sources
    if abs(l0 - target) <= FAR * target:
        return None
    name, term = steering[0]
    key, now = f"objective.terms.{name}.coefficient", f"{term.coefficient:.3g}"
    if term.steers_l0 == "to a target":
        cure = f"more steps, or a larger {key} than {now}, bring it nearer"
    else:
        cure = f"a {'larger' if l0 > target else 'smaller'} {key} than {now} brings it nearer"
    sources = dictionary.code_sources
    of_each = f" (dict.k={dictionary.shape.k:g} for each of {sources} sources)"
    return (
        f"L0 is {l0:.3g} active features per token, {abs(l0 / target - 1):.0%} "
        f"{'above' if l0 > target else 'below'} {target:g}, which dict.k asks for"
        f"{of_each if sources > 1 else ''}: {cure}"
    )
