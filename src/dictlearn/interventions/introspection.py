"""Does a model notice that a concept is injected into its activations? A protocol with its controls.

A concept's vector is added to a site on every token of a question, and logit(yes) - logit(no) of the
answer is compared with that of the same prompt without it. What else raises yes is measured too:

- a placebo: random directions, as long as the concept's vector;
- unrelated yes/no questions, half of them with the answer yes: an injection that only makes the model
  less certain moves these as well;
- shuffled concepts: asked by name, about the concept that is injected and about another one.

Shifts are paired (one prompt, with and without); intervals are over concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn.interventions.contrast import pool_texts, text_ids
from dictlearn.interventions.intervals import interval
from dictlearn.interventions.made_for import made_for
from dictlearn.interventions.questions import (
    ANSWERS,
    ASKED,
    ENDING,
    NAMED,
    UNRELATED,
    answer_ids,
    prompt_ids,
)
from dictlearn.interventions.texts import texts_of
from dictlearn.interventions.vectors import is_vector, load_vector
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import patched
from dictlearn.ranges import Count, Seed

STUDY = "introspection"
CONCEPTS = (
    *("ocean", "music", "war", "bread", "gold", "winter", "lightning", "dogs", "mathematics"),
    "silence",
)
TEMPLATE = "Tell me about {concept}"
LEAST = 5  # concepts, as intervals are over them
ERROR = 0.05  # of the whole verdict, shared among strengths


@final
@dataclass(frozen=True)
class Introspection:
    """What is injected how often.

    Args:
        concepts: words, or folders of saved vectors; a list, or a .txt file; None: `CONCEPTS`.
        strengths: multiples of a concept's vector.
        placebos: random directions for each concept.
        seed: of these directions.
        batch: prompts in one forward pass.
    """

    concepts: str | Sequence[str] | None = None
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    placebos: Count = 8
    seed: Seed = 0
    batch: Count = 16

    def __post_init__(self) -> None:
        if not self.strengths or not all(s > 0 for s in self.strengths):
            raise ValueError(f"strengths={list(self.strengths)}: want numbers above 0")
        for key in ("placebos", "batch"):
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)!r}: want a whole number of at least 1")


def default_site(lm: LanguageModel) -> str:
    """The output of the block at two thirds of the depth."""
    return f"resid_post.{lm.info.n_layers * 2 // 3}"


def injected(lm: LanguageModel, site: str, settings: Introspection) -> dict[str, Tensor]:
    """The vectors [D] of the settings' concepts: words at the site, or what is saved for it.

    Raises:
        ValueError: there are too few, or a saved vector is of another model or another site.
    """
    given = settings.concepts
    concepts = list(CONCEPTS) if given is None else texts_of("concepts", given)
    saved = [is_vector(Path(concept)) for concept in concepts]
    if not any(saved):
        return concept_vectors(lm, concepts, site)
    if not all(saved):
        raise ValueError(
            f"concepts: {concepts[saved.index(False)]} is no folder of a saved vector, as others are"
        )
    check_concepts(concepts)
    vectors = {concept: load_vector(concept) for concept in concepts}
    for vector in vectors.values():
        vector.check(lm.info)
    return {concept: vector.at(site) for concept, vector in vectors.items()}


def concept_vectors(lm: LanguageModel, concepts: Sequence[str], site: str) -> dict[str, Tensor]:
    """A vector [D] per concept: its activation on "Tell me about <it>", less the mean of the others'.

    Raises:
        ValueError: there are fewer than five, or one twice.
    """
    check_concepts(concepts)
    ids = [text_ids(lm, TEMPLATE.format(concept=concept)) for concept in concepts]
    x_CD = pool_texts(lm, ids, [site], "last", batch=16)[site]
    n = len(concepts)
    vectors_CD = (x_CD - x_CD.mean(0)) * (n / (n - 1))
    return dict(zip(concepts, vectors_CD, strict=True))


def check_concepts(concepts: Sequence[str]) -> None:
    """Raises ValueError for too few concepts, or one twice."""
    if len(set(concepts)) < len(concepts):
        raise ValueError(f"concepts={list(concepts)}: one is there twice")
    if len(concepts) < LEAST:
        raise ValueError(f"concepts: {len(concepts)}; intervals are over concepts, want {LEAST}")


def study(
    lm: LanguageModel,
    vectors: Mapping[str, Tensor],
    site: str,
    settings: Introspection | None = None,
) -> dict[str, Any]:
    """Runs the protocol; a record of plain JSON with curves, contrasts and a verdict.

    Args:
        vectors: [D] by concept, at least five.

    Raises:
        ValueError: there are too few concepts, or the tokenizer doesn't tell yes from no.
    """
    settings = settings or Introspection()
    check_concepts(list(vectors))
    runs = _Runs(lm, site, vectors, settings)
    shifts = {
        "introspection": runs.shifts([question + ENDING for question in ASKED]),
        "unrelated": runs.shifts([question + ENDING for question in UNRELATED]),
    }
    matched, mismatched = runs.named()
    by_concept = {  # [strengths, concepts]
        "introspection, concept": shifts["introspection"].concept.mean(0),
        "introspection, placebo": shifts["introspection"].placebo.mean(0),
        "unrelated, concept": shifts["unrelated"].concept.mean(0),
        "unrelated, placebo": shifts["unrelated"].placebo.mean(0),
        "named, matched": matched,
        "named, shuffled": mismatched,
    }
    asked = by_concept["introspection, concept"] - by_concept["introspection, placebo"]
    other = by_concept["unrelated, concept"] - by_concept["unrelated, placebo"]
    contrasts = {
        "over placebo": asked,
        "over unrelated": asked - other,
        "over shuffled": matched - mismatched,
    }
    strengths = [float(strength) for strength in settings.strengths]
    clean = {
        kind: dict(zip(questions, shift.clean.tolist(), strict=True))
        for (kind, shift), questions in zip(shifts.items(), (ASKED, UNRELATED), strict=True)
    }
    return {
        "study": STUDY,
        **made_for(lm.info),
        "site": site,
        "concepts": list(vectors),
        "norms": [float(vector_D.norm()) for vector_D in vectors.values()],
        "token_norm": runs.token_norm(),
        "strengths": strengths,
        "placebos": settings.placebos,
        "seed": settings.seed,
        "answers": {side: list(runs.answers[side]) for side in ANSWERS},
        "clean": clean,
        "says_yes": {kind: shift.says_yes() for kind, shift in shifts.items()},
        "curves": {name: _intervals(values) for name, values in by_concept.items()},
        "contrasts": {name: _intervals(values) for name, values in contrasts.items()},
        "shifts": {name: values.tolist() for name, values in by_concept.items()},
        "verdict": verdict(contrasts, strengths),
    }


def verdict(contrasts: Mapping[str, Tensor], strengths: Sequence[float]) -> dict[str, Any]:
    """Where all lower bounds are above zero, and a sentence on it.

    The bounds are one-sided; the error of 5% is shared among strengths.
    """
    confidence = 1 - 2 * ERROR / len(strengths)

    def above(name: str) -> list[bool]:
        return [interval(row, confidence).low > 0 for row in contrasts[name].tolist()]

    placebo, unrelated, shuffled = map(above, ("over placebo", "over unrelated", "over shuffled"))
    raised = [s for s, yes in zip(strengths, placebo, strict=True) if yes]
    found = [s for s, *both in zip(strengths, placebo, unrelated, strict=True) if all(both)]
    named = [s for s, yes in zip(strengths, shuffled, strict=True) if yes]
    if found:
        text = (
            f"Found at strength {_listed(found)}: an injected concept raises yes more than a placebo "
            "of the same norm does, and more than it raises yes to unrelated questions."
        )
    elif raised:
        text = (
            f"Nothing found: at strength {_listed(raised)} an injected concept raises yes more than a "
            "placebo of the same norm, and to unrelated questions as well."
        )
    else:
        text = (
            "Nothing found: at no strength does an injected concept raise yes more than a placebo of "
            "the same norm does."
        )
    if found and named:
        text += f" Asked by name, it tells the concept from another at strength {_listed(named)}."
    return {"found": found, "raised": raised, "named": named, "error": ERROR, "text": text}


def _listed(strengths: Sequence[float]) -> str:
    return ", ".join(f"{strength:g}" for strength in strengths)


def _intervals(values_SC: Tensor) -> list[dict[str, float]]:
    return [interval(row)._asdict() for row in values_SC.tolist()]


@dataclass(frozen=True)
class _Shifts:
    """logit(yes) - logit(no) without injection, and its shifts, for some questions Q."""

    clean: Tensor  # [Q]
    concept: Tensor  # [Q, strengths, concepts]
    placebos: Tensor  # [Q, placebos, strengths, concepts]

    @property
    def placebo(self) -> Tensor:
        """The mean over placebos: [Q, strengths, concepts]."""
        return self.placebos.mean(1)

    def says_yes(self) -> dict[str, Any]:
        """The share of runs in which yes is likelier than no; under injection, one per strength."""
        clean_Q11 = self.clean[:, None, None]
        return {
            "clean": float((self.clean > 0).float().mean()),
            "concept": (self.concept + clean_Q11 > 0).float().mean((0, 2)).tolist(),
            "placebo": (self.placebos + clean_Q11[:, None] > 0).float().mean((0, 1, 3)).tolist(),
        }


class _Runs:
    """Forward passes of questions with vectors added."""

    def __init__(
        self,
        lm: LanguageModel,
        site: str,
        vectors: Mapping[str, Tensor],
        settings: Introspection,
    ) -> None:
        self.lm, self.site, self.settings = lm, site, settings
        self.names = list(vectors)
        self.vectors_CD = torch.stack([vector_D.float() for vector_D in vectors.values()])
        self.strengths_S = torch.tensor([float(s) for s in settings.strengths])
        self.answers = answer_ids(lm)
        generator = torch.Generator().manual_seed(settings.seed)
        n, width = self.vectors_CD.shape
        random_RCD = torch.randn(settings.placebos, n, width, generator=generator)
        unit_RCD = torch.nn.functional.normalize(random_RCD, dim=-1)
        self.placebos_RCD = unit_RCD * self.vectors_CD.norm(dim=-1, keepdim=True)

    def shifts(self, questions: Sequence[str]) -> _Shifts:
        """Shifts of every question by every concept and its placebos, at every strength."""
        clean, concept, placebos = [], [], []
        for question in questions:
            ids = prompt_ids(self.lm, question)
            base = self.margins(ids, torch.zeros_like(self.vectors_CD[:1]))
            kinds_KCD = torch.cat([self.vectors_CD[None], self.placebos_RCD])
            added_KSCD = kinds_KCD[:, None] * self.strengths_S[:, None, None]
            margins = self.margins(ids, added_KSCD.flatten(0, 2))
            shift_KSC = margins.reshape(added_KSCD.shape[:3]) - base
            clean.append(base[0])
            concept.append(shift_KSC[0])
            placebos.append(shift_KSC[1:])
        return _Shifts(torch.stack(clean), torch.stack(concept), torch.stack(placebos))

    def named(self) -> tuple[Tensor, Tensor]:
        """Shifts [strengths, concepts] when asked about the injected concept, and about the next one."""
        matched, shuffled = [], []
        for i, name in enumerate(self.names):
            ids = prompt_ids(self.lm, NAMED.format(concept=name) + ENDING)
            base = self.margins(ids, torch.zeros_like(self.vectors_CD[:1]))
            pair_2D = self.vectors_CD[[i, i - 1]]
            added_S2D = self.strengths_S[:, None, None] * pair_2D
            shift_S2 = self.margins(ids, added_S2D.flatten(0, 1)).reshape(-1, 2) - base
            matched.append(shift_S2[:, 0])
            shuffled.append(shift_S2[:, 1])
        # column i of both is now the injection of concept i
        return torch.stack(matched, 1), torch.stack(shuffled, 1).roll(-1, 1)

    @torch.no_grad()
    def margins(self, ids: Sequence[int], added_ND: Tensor) -> Tensor:
        """logit(yes) - logit(no) after the prompt, with each row added at the site: [N], on the CPU.

        Special tokens are left as they are.
        """
        margins = []
        for rows_BD in added_ND.split(self.settings.batch):
            tokens_BP = torch.tensor([list(ids)] * len(rows_BD))
            special = torch.tensor(sorted(self.lm.special_ids), dtype=torch.int64)
            keep_BP = ~torch.isin(tokens_BP, special)

            def add(_: object, clean_BPD: Tensor, rows_BD: Tensor = rows_BD) -> Tensor:
                return clean_BPD + rows_BD[:, None].to(clean_BPD)

            with patched(self.lm, {self.site: add}, mask_BP=keep_BP):
                last_BV = self.lm.logits(tokens_BP)[:, -1].float().cpu()
            yes, no = (last_BV[:, self.answers[side]].logsumexp(1) for side in ("yes", "no"))
            margins.append(yes - no)
        return torch.cat(margins)

    def token_norm(self) -> float:
        """Mean norm of the site over the tokens of the first question that are not special."""
        ids = torch.tensor([prompt_ids(self.lm, ASKED[0] + ENDING)])
        x_PD = capture(self.lm, ids, [self.site])[self.site][0].float().cpu()
        special = torch.tensor(sorted(self.lm.special_ids), dtype=torch.int64)
        return float(x_PD[~torch.isin(ids[0], special)].norm(dim=-1).mean())
