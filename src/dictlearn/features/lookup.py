"""Finds the features that read or write a direction in the model's activations.

A concept vector at a site is compared, by cosine, with the encoder row of each feature that reads the
site and with the decoder vector of each feature that writes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.sources.documents import with_whole_characters

ROWS = 1 << 14  # features compared at a time
ENCODER, DECODER = "encoder", "decoder"


@dataclass(frozen=True)
class Match:
    """A feature, and the cosine of its encoder or decoder vector with a concept vector."""

    source: int
    index: int
    side: str  # encoder: it reads the direction; decoder: it writes it
    cosine: float


def matches(dictionary: Dictionary, vector_D: Tensor, site: str, k: int) -> list[Match]:
    """The k features with the largest |cosine|, for each side, encoder or decoder, at the site.

    Raises:
        ValueError: the dictionary neither reads nor writes the site, or the vector doesn't fit.
    """
    if site not in (*dictionary.sources, *dictionary.targets):
        known = dict.fromkeys((*dictionary.sources, *dictionary.targets))
        raise ValueError(f"site={site}: this {dictionary.kind} has {', '.join(known)}")
    if vector_D.shape != (dictionary.width,):
        raise ValueError(
            f"vector: of shape {tuple(vector_D.shape)}; want {dictionary.width} numbers, as {site} has"
        )
    if not bool(vector_D.isfinite().all()) or not bool(vector_D.any()):
        raise ValueError("vector: want finite numbers, not all of them zero")
    unit_D = torch.nn.functional.normalize(vector_D.float(), dim=0)
    strongest = [
        Match(*divmod(column, dictionary.n_features), side, cosine)
        for side in (ENCODER, DECODER)
        for column, cosine in _strongest(_cosines(dictionary, unit_D, site, side), k)
    ]
    return sorted(strongest, key=lambda match: -abs(match.cosine))


def _cosines(dictionary: Dictionary, unit_D: Tensor, site: str, side: str) -> Tensor:
    """Cosines [S * F]; 0 for features that don't read (encoder) or write (decoder) the site."""
    n, width = dictionary.n_features, dictionary.width
    cosines = torch.zeros(dictionary.code_sources, n)
    unit_D = unit_D.to(dictionary.decoder.b_dec)
    for s in range(dictionary.code_sources):
        for low in range(0, n, ROWS):
            rows = slice(low, min(low + ROWS, n))
            if side == ENCODER:
                vectors = _read(dictionary, s, rows, site, width)
            else:
                vectors = _written(dictionary, s, rows, site)
            if vectors is not None:
                cosine = torch.nn.functional.normalize(vectors, dim=-1) @ unit_D
                cosines[s, rows] = cosine.float().cpu()
    return cosines.flatten()


def _read(dictionary: Dictionary, s: int, rows: slice, site: str, width: int) -> Tensor | None:
    """Encoder rows [n, D], for a shared code only the part that reads this site; None if none does."""
    if site not in dictionary.sources:
        return None
    source = dictionary.sources.index(site)
    shared = dictionary.code_sources < len(dictionary.sources)
    if not shared and source != s:
        return None
    columns = slice(source * width, (source + 1) * width) if shared else slice(0, width)
    return dictionary.encoder.W_enc[s, rows, columns]


def _written(dictionary: Dictionary, s: int, rows: slice, site: str) -> Tensor | None:
    """Decoder vectors [n, D] at the site; None where features write no fixed direction there."""
    if site not in dictionary.targets or not dictionary.decoder.writes_directions:
        return None
    target = dictionary.targets.index(site)
    if s not in dictionary.reads(target):
        return None
    return dictionary.decoder.written(target, s, rows)


def _strongest(cosines: Tensor, k: int) -> list[tuple[int, float]]:
    order = cosines.abs().argsort(descending=True, stable=True)[:k]
    return [(int(i), float(cosines[i])) for i in order if cosines[i] != 0]


def difference_of_means(
    lm: LanguageModel, pos: Sequence[str], neg: Sequence[str], site: str
) -> Tensor:
    """Mean activation at the site over the tokens of `pos`, less that of `neg`: [D].

    Each text is preceded by BOS, if the model has one; special tokens don't count. All other tokens
    of all texts have the same weight.
    """
    means = []
    for key, texts in (("pos", pos), ("neg", neg)):
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"{key}={list(texts)}: want at least one text, and none that is empty")
        acts_ND = torch.cat([_activations(lm, text, site) for text in texts])
        means.append(acts_ND.double().mean(0))
    return (means[0] - means[1]).float()


def _activations(lm: LanguageModel, text: str, site: str) -> Tensor:
    assert lm.tokenizer is not None, "checked where the model was loaded"
    text = with_whole_characters(text)
    ids = list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
    first = bos_id(lm)
    ids = ids if first is None else [first, *ids]
    ids = ids[: lm.info.context_length or len(ids)]
    tokens_BP = torch.tensor([ids])
    keep_P = torch.tensor([token not in lm.special_ids for token in ids])
    return capture(lm, tokens_BP, (site,))[site][0, keep_P.to(lm.device)].float().cpu()
