"""The methods of a concept study: what each changes in the model, all at one scale of strength.

Strength 1 moves an activation as far as the feature's largest activation makes its decoder vector
long, along whichever direction. So methods differ in where they push, not in how far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.interventions import run as passes
from dictlearn.interventions.concept.settings import ALONE, NONE, PREFIX, RANDOM, ConceptStudy
from dictlearn.interventions.concept.texts import Texts, encoded
from dictlearn.interventions.contrast import pool_texts
from dictlearn.interventions.directions import Direction, of_feature
from dictlearn.interventions.edits import Edit, Push
from dictlearn.interventions.fits import METHODS, Method, fit
from dictlearn.interventions.steering import Op, Steered, When, steered_feature
from dictlearn.lm.language_model import LanguageModel
from dictlearn.store.features import FeatureStore

BATCH = 16
CANDIDATES = 20  # features that detect the concept, of which one is steered
TRIED, OPENING = 24, 4  # texts that each of these is tried on, and their first tokens
TURNED = (
    "add",
    "push",
    "scale",
    *METHODS,
    *RANDOM,
)  # their sign turns where the concept should come less


class Change(NamedTuple):
    """What a cell does to the model: interventions, and text in front of a prompt."""

    edits: list[Edit | Push]
    prefix: list[int]


@final
@dataclass(frozen=True, eq=False)
class Methods:
    """The feature, its length, and the fitted directions, for `change` of any cell."""

    lm: LanguageModel
    dictionary: Dictionary
    store: FeatureStore
    study: ConceptStudy
    feature: tuple[int, int]
    fitted: dict[str, Direction]

    @property
    def length(self) -> float:
        """The norm of the feature's decoder vector times its largest activation."""
        vector_D = of_feature(self.dictionary, *self.feature).vector
        return float(vector_D.norm()) * self.store.feature(*self.feature).maximum

    def change(self, method: str, strength: float | None, seed: int) -> Change:
        name, _, gate = method.partition("@")
        if name == NONE:
            return Change([], [])
        if name == PREFIX:
            return Change([], encoded(self.lm, self.study.prefix or ""))
        steered, op = self._steered(name, seed)
        sign = -1 if self.study.wanted == "fewer" and name in TURNED else 1
        number = sign * (1.0 if name in ALONE or strength is None else strength)
        if name == "scale":  # strength 0 is no change here too
            number += 1
        return Change(steered.interventions(op, number, cast(When, gate or "always")), [])

    def _steered(self, name: str, seed: int) -> tuple[Steered, Op]:
        if name in self.fitted:
            direction = self.fitted[name]
            return self._along(direction.unit, direction.site), "push"
        if name == "random_direction":
            generator = torch.Generator().manual_seed(seed)
            random_D = torch.randn(self.lm.info.width, generator=generator)
            site = of_feature(self.dictionary, *self.feature).site
            return self._along(random_D / random_D.norm(), site), "push"
        if name == "random_feature":
            other = self._random_feature(seed)
            length = float(of_feature(self.dictionary, *other).vector.norm())
            return steered_feature(self.dictionary, other, self.length / length, "add"), "add"
        op = cast(Op, name)
        size = self.store.feature(*self.feature).maximum
        return steered_feature(self.dictionary, self.feature, size, op), op

    def _along(self, unit_D: Tensor, site: str | None) -> Steered:
        """A direction of the feature's length, gated by the feature where there is a gate."""
        vector_D = unit_D * self.length
        return Steered(1.0, direction=Direction(vector_D, site), gate=self.feature)

    def _random_feature(self, seed: int) -> tuple[int, int]:
        """A live feature of the same source, drawn by the seed."""
        source = self.feature[0]
        live = (~self.store.statistics["dead"][source]).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed)
        drawn = live[torch.randperm(len(live), generator=generator)].tolist()
        return source, next(index for index in drawn if index != self.feature[1])


def fitted(lm: LanguageModel, texts: Texts, site: str, study: ConceptStudy) -> dict[str, Direction]:
    """The directions of the study's fitted methods, from the prompts of `pos` and `neg`."""
    names = dict.fromkeys(m.partition("@")[0] for m in study.methods)
    n = min(len(texts.pos), len(texts.neg))
    pos, neg = texts.pos[:n], texts.neg[:n]  # PCA takes differences of pairs
    pooled_ND = pool_texts(lm, [*pos, *neg], [site], "last", BATCH)[site].double()
    return {
        name: Direction(fit(pooled_ND[:n], pooled_ND[n:], cast(Method, name)).unit.float(), site)
        for name in names
        if name in METHODS
    }


def best_feature(
    lm: LanguageModel, dictionary: Dictionary, store: FeatureStore, texts: Texts
) -> tuple[int, int]:
    """The live feature that detects the concept and brings it about.

    Of the CANDIDATES features that tell the two kinds of prompts apart best, by d' of their
    activations, it is the one whose addition raises the likelihood of texts with the concept most:
    of the first tokens behind some of the prompts of `pos`, at its largest activation.

    Raises:
        ValueError: none fires more where the concept follows.
    """
    ids = [*texts.pos, *texts.neg]
    n_pos = len(texts.pos)
    pooled = pool_texts(lm, ids, dictionary.sources, "last", BATCH)
    x_NSD = torch.stack([pooled[site] for site in dictionary.sources], 1)
    device = dictionary.decoder.b_dec.device
    with torch.no_grad():
        dense = dictionary.encode(x_NSD.to(device)).dense().float().cpu()
    code_NSF = dense.view(len(ids), dictionary.code_sources, dictionary.n_features)
    pos_NSF, neg_NSF = code_NSF[:n_pos], code_NSF[n_pos:]
    spread_SF = ((pos_NSF.var(0) + neg_NSF.var(0)) / 2).sqrt()
    d_SF = (pos_NSF.mean(0) - neg_NSF.mean(0)) / spread_SF.clamp_min(1e-6)
    d_SF[store.statistics["dead"]] = -torch.inf
    best = d_SF.flatten().topk(min(CANDIDATES, d_SF.numel()))
    candidates = [
        divmod(column, dictionary.n_features)
        for column, d in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if d > 0
    ]
    if not candidates:
        raise ValueError("feature: none fires more where the concept follows; want feature=<one>")

    def likelihood(feature: tuple[int, int]) -> float:
        size = store.feature(*feature).maximum
        edits = steered_feature(dictionary, feature, size, "add").interventions("add", 1.0)
        pairs = list(zip(texts.pos, texts.follows, strict=True))[:TRIED]
        return sum(_log_likelihood(lm, dictionary, edits, *pair) for pair in pairs)

    return max(candidates, key=likelihood)


@torch.no_grad()
def _log_likelihood(
    lm: LanguageModel,
    dictionary: Dictionary,
    edits: list[Edit | Push],
    prompt: list[int],
    follows: list[int],
) -> float:
    """The log-probability of the first OPENING tokens behind a prompt, with edits in place."""
    behind = follows[:OPENING]
    tokens_1P = torch.tensor([[*prompt, *behind]], device=lm.device)
    logits_PV = passes.run(lm, tokens_1P, [dictionary], edits).logits[0].float()
    target = torch.tensor(behind, device=logits_PV.device)
    logp_PV = logits_PV[len(prompt) - 1 : -1].log_softmax(-1)
    return float(logp_PV.gather(1, target[:, None]).sum())


def described(methods: Methods) -> dict[str, Any]:
    """What the record of a study says of the methods."""
    return {
        "feature": methods.store.name(*methods.feature),
        "output_score": methods.store.output_score(*methods.feature),
        "length": methods.length,
    }
