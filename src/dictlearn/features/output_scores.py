"""The output score of a feature: how much its own promoted tokens gain when it is strong.

A feature's vectors are added to the sites that it writes, times its largest activation, on every
token of a few short texts. The score is the gain in probability of the tokens that it promotes most
through the unembedding, summed over these tokens and averaged over positions: from -1 to 1. Features
with high scores steer, and many whose examples are clear have none (Arad et al. 2025,
arXiv 2505.20063, who select features for steering by such a score).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.language_model import OTHER, LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.store.features import FeatureStore
from dictlearn.store.records import Feature

TEXTS, TOKENS = 4, 8  # short texts, and their tokens
OWN = 10  # promoted tokens that count
LOGITS = 1 << 24  # in memory


def passes_tokens(store: FeatureStore) -> int:
    """The tokens that the model reads for the scores of all features: what they cost."""
    return int((~store.statistics["dead"]).sum()) * TEXTS * TOKENS


@torch.no_grad()
def output_scores(
    lm: LanguageModel,
    dictionary: Dictionary,
    store: FeatureStore,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tensor:
    """The scores of all features, float32 [S, F]; NaN where there is none.

    Features that never fired have none, nor have those without promoted tokens: a MOLT's, and those
    of a model without an unembedding.
    """
    scores_SF = torch.full((store.info.code_sources, store.info.n_features), torch.nan)
    if not dictionary.decoder.writes_directions or store.info.promoted == 0:
        return scores_SF
    tokens_BP = _texts(store).to(lm.device)
    counts_BP = ~torch.isin(tokens_BP, torch.tensor(sorted(lm.special_ids), device=lm.device))
    before_BPV = lm.logits(tokens_BP).float().softmax(-1)
    n_at_once = max(1, LOGITS // before_BPV.numel())
    live = (~store.statistics["dead"]).nonzero().tolist()
    for first in range(0, len(live), n_at_once):
        chosen = [store.feature(source, index) for source, index in live[first : first + n_at_once]]
        chosen = [feature for feature in chosen if feature.promoted]
        if chosen:
            gains = _gains(lm, dictionary, chosen, tokens_BP, counts_BP, before_BPV)
            for feature, gain in zip(chosen, gains.tolist(), strict=True):
                scores_SF[feature.source, feature.index] = max(-1.0, min(1.0, gain))
        progress(min(first + n_at_once, len(live)), len(live))
    return scores_SF


def _texts(store: FeatureStore) -> Tensor:
    """The beginnings of windows that are evenly spread over the store's text: int64 [B, P]."""
    n = min(TEXTS, len(store.windows.tokens))
    rows = torch.linspace(0, len(store.windows.tokens) - 1, n).long()
    return store.windows.tokens[rows, :TOKENS].long()


def _gains(
    lm: LanguageModel,
    dictionary: Dictionary,
    features: list[Feature],
    tokens_BP: Tensor,
    counts_BP: Tensor,
    before_BPV: Tensor,
) -> Tensor:
    """The gain of each feature, from one pass over the texts for every one of them: [n]."""
    n, n_texts = len(features), len(tokens_BP)
    counts_mP = counts_BP.repeat(n, 1)  # feature by feature, m = n * B rows
    with patched(lm, _additions(dictionary, features, n_texts), mask_BP=counts_mP):
        after_mPV = lm.logits(tokens_BP.repeat(n, 1)).float().softmax(-1)
    after_nBPV = after_mPV.view(n, *before_BPV.shape)
    gains = []
    for number, feature in enumerate(features):
        own = torch.tensor(_own_tokens(feature), device=tokens_BP.device)
        gain_BP = (after_nBPV[number][..., own] - before_BPV[..., own]).sum(-1)
        gains.append(gain_BP[counts_BP].mean())
    return torch.stack(gains).cpu()


def _own_tokens(feature: Feature) -> list[int]:
    """The tokens that the feature promotes most, over all sites that it writes."""
    effects: dict[int, float] = {}
    for scores in feature.promoted.values():
        for token, effect in scores:
            effects[token] = max(effect, effects.get(token, effect))
    return sorted(effects, key=lambda token: -effects[token])[:OWN]


def _additions(
    dictionary: Dictionary, features: list[Feature], n_texts: int
) -> dict[str, Replacement]:
    """For each site that any of the features writes, what is added to it: a row's own feature."""

    def addition(change_mD: Tensor) -> Replacement:
        return lambda _, value_BPD: value_BPD + change_mD[:, None].to(value_BPD)

    additions: dict[str, Replacement] = {}
    for t, site in enumerate(dictionary.targets):
        reading = dictionary.reads(t)
        if site.startswith(OTHER) or not any(one.source in reading for one in features):
            continue
        rows = []
        for one in features:
            if one.source in reading:
                vector_1D = dictionary.decoder.written(
                    t, one.source, slice(one.index, one.index + 1)
                )
                rows.append(vector_1D[0] * one.maximum)
            else:
                rows.append(torch.zeros(dictionary.width, device=dictionary.decoder.b_dec.device))
        additions[site] = addition(torch.stack(rows).repeat_interleave(n_texts, 0))
    return additions
