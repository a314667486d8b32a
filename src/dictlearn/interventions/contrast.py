"""Fits concept vectors to texts with a concept and texts without, and tests them on held-out ones."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dictlearn.interventions.fits import METHODS, Method, fit, scaled
from dictlearn.interventions.made_for import made_for
from dictlearn.interventions.vectors import SIGN, ConceptVector, Separation
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, bos_id, pad_id
from dictlearn.lm.sites import SITES, blocks, resolve, site_names
from dictlearn.sources.documents import with_whole_characters
from dictlearn.words import counted

Pool = Literal["last", "mean"]
Text = str | Sequence[int]  # or token ids, as they are read

POOLS: dict[str, str] = {"last": "last token", "mean": "mean of tokens"}
LEAST = 4  # texts of a side, for a held-out accuracy
RANGE = re.compile(r"([a-z_]+)\.(\d+)-(\d+)")


@dataclass(frozen=True)
class Fitting:
    """How a vector is fitted and tested.

    Args:
        method: `mean`, the difference of means; `pca`, the first principal component of the pairs'
            differences; `logistic`, the weights of a logistic probe.
        pool: which activation stands for a text, its last token's or the mean of its tokens'.
        held_out: share of the pairs (or of each side's texts) that a test holds out; 0: no test.
        seeds: number of splits that are tested, with seeds 0, 1, ...
        batch: texts in one forward pass.
    """

    method: Method = "mean"
    pool: Pool = "last"
    held_out: float = 0.25
    seeds: int = 5
    batch: int = 16

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: want one of {', '.join(METHODS)}")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}: want one of {', '.join(POOLS)}")
        if not isinstance(self.held_out, int | float) or not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out!r}: want a share from 0 to below 1")
        for key in ("seeds", "batch"):
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)!r}: want a whole number of at least 1")


def concept_vector(
    lm: LanguageModel,
    pos: Sequence[Text],
    neg: Sequence[Text],
    sites: str | Sequence[str] = "resid_post",
    fitting: Fitting | None = None,
) -> ConceptVector:
    """The vector from the texts of `neg` to those of `pos`, at one or several sites.

    Equal numbers of texts are pairs: the first of `pos` belongs to the first of `neg`.

    Args:
        sites: `resid_post.8`, `resid_post.4-12`, `resid_post` (every layer), or a list of these.

    Raises:
        ValueError: there are too few texts, one side or a pair has nothing to tell apart, a text is
            longer than the model reads, or there is no such site.
    """
    fitting = fitting or Fitting()
    check_texts(pos, neg, fitting)
    names = sites_named(lm, sites)
    ids = [text_ids(lm, text) for text in (*pos, *neg)]
    pooled = pool_texts(lm, ids, names, fitting.pool, fitting.batch)
    vectors: dict[str, Tensor] = {}
    scores: dict[str, Separation] = {}
    for site in names:
        acts_ND = pooled[site].double()
        pos_ND, neg_ND = acts_ND[: len(pos)], acts_ND[len(pos) :]
        try:
            vectors[site] = scaled(fit(pos_ND, neg_ND, fitting.method), pos_ND, neg_ND).float()
            tested = _tested(pos_ND, neg_ND, fitting)
        except ValueError as error:
            raise ValueError(f"site={site}: {error}") from None
        scores[site] = Separation(*tested, norm=float(vectors[site].norm()))
    return ConceptVector(vectors, scores, _provenance(lm, pos, neg, fitting))


def check_texts(pos: Sequence[Text], neg: Sequence[Text], fitting: Fitting) -> None:
    """Raises ValueError for texts that no vector, or no held-out accuracy, can come from."""
    for key, texts in (("pos", pos), ("neg", neg)):
        if not texts:
            raise ValueError(f"{key}: has no texts; want at least one, with {_ROLE[key]}")
        if empty := [i for i, text in enumerate(texts, 1) if not _said(text)]:
            raise ValueError(f"{key}: text {empty[0]} is empty")
        if len(texts) > 1 and len({_said(text) for text in texts}) == 1:
            raise ValueError(f"{key}: all {len(texts)} texts are the same")
        if fitting.held_out and len(texts) < LEAST:
            raise ValueError(
                f"{key}: {counted(len(texts), 'text')}; a held-out accuracy wants at least {LEAST} on "
                "each side, and held_out=0 goes without"
            )
    ours, theirs = [_said(text) for text in pos], [_said(text) for text in neg]
    if both := set(ours) & set(theirs):
        raise ValueError(f"pos and neg: both have the text {min(both)[:60]!r}")
    if len(pos) == len(neg):
        units = list(zip(ours, theirs, strict=True))
        if len(set(units)) < len(units):
            raise ValueError("pos and neg: the same pair twice; a split would test on what it fits")
    elif fitting.method == "pca":
        raise ValueError(
            f"method=pca: takes differences of pairs, and pos has {len(pos)} texts, neg {len(neg)}"
        )


_ROLE = {"pos": "the concept", "neg": "texts without it"}


def sites_named(lm: LanguageModel, sites: str | Sequence[str]) -> list[str]:
    """Names of sites, in the order of the model: one name, a range of layers, every layer, or a list.

    Raises ValueError for a site that the model doesn't have.
    """
    names: list[str] = []
    for name in [sites] if isinstance(sites, str) else sites:
        if name in SITES:
            names += [f"{name}.{layer}" for layer in range(len(blocks(lm.model)[1]))]
        elif match := RANGE.fullmatch(name):
            first, last = int(match[2]), int(match[3])
            if first > last:
                raise ValueError(f"site={name}: the first layer comes first")
            names += [f"{match[1]}.{layer}" for layer in range(first, last + 1)]
        else:
            names.append(name)
    if not names:
        raise ValueError("site: want at least one")
    for name in names:
        resolve(lm.model, name, lm.info)
    order = {name: i for i, name in enumerate(site_names(lm.model))}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order)))


@torch.no_grad()
def pool_texts(
    lm: LanguageModel, ids: Sequence[Sequence[int]], sites: Sequence[str], pool: Pool, batch: int
) -> dict[str, Tensor]:
    """One activation per text and site, float32 [N, D] on the CPU, in the order of `ids`.

    Special tokens don't count in a mean. Texts of one pass are padded at the end, where no text sees
    the padding.
    """
    longest_first = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    rows: dict[str, list[Tensor]] = {site: [torch.empty(0)] * len(ids) for site in sites}
    pad = pad_id(lm) or 0
    for start in range(0, len(ids), batch):
        chosen = longest_first[start : start + batch]
        lengths = torch.tensor([len(ids[i]) for i in chosen])
        width = int(lengths.max())
        tokens_BP = torch.tensor([[*ids[i], *[pad] * (width - len(ids[i]))] for i in chosen])
        real_BP = torch.arange(width) < lengths[:, None]
        mask_BP = None if bool(real_BP.all()) else real_BP.long()
        special = torch.tensor(sorted(lm.special_ids), dtype=torch.int64)
        counts_BP = real_BP & ~torch.isin(tokens_BP, special)
        if pool == "last":
            counts_BP = torch.arange(width) == lengths[:, None] - 1
        weights_BP = counts_BP / counts_BP.sum(1, keepdim=True)
        values = capture(lm, tokens_BP, sites, mask_BP)
        for site in sites:
            x_BPD = values[site].float()
            mean_BD = torch.einsum("bp,bpd->bd", weights_BP.to(x_BPD), x_BPD).cpu()
            for i, row_D in zip(chosen, mean_BD, strict=True):
                rows[site][i] = row_D
    return {site: torch.stack(values) for site, values in rows.items()}


def text_ids(lm: LanguageModel, text: Text) -> list[int]:
    """The ids of a text after BOS, if the model has one; ids are taken as they are."""
    if isinstance(text, str):
        if lm.tokenizer is None:
            raise ValueError(f"model.path={lm.info.name}: has no tokenizer; pass token ids")
        whole = with_whole_characters(text)
        encoded = lm.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        start = bos_id(lm)
        ids = [*([] if start is None else [start]), *encoded]  # type: ignore[misc]
    else:
        ids = list(text)
    if all(token in lm.special_ids for token in ids):
        raise ValueError(f"{_said(text)[:60]!r}: has no tokens but special ones")
    most = lm.info.context_length
    if most and len(ids) > most:
        raise ValueError(
            f"{_said(text)[:60]!r}: has {len(ids)} tokens; {lm.info.name} reads at most {most}"
        )
    return ids


def _tested(pos_ND: Tensor, neg_ND: Tensor, fitting: Fitting) -> tuple[float | None, ...]:
    """(accuracy over held-out texts, each side counting half; its std between seeds; d')."""
    if not fitting.held_out:
        return None, None, None
    accuracies, pos_scores, neg_scores = [], [], []
    for seed in range(fitting.seeds):
        (pos_fit, pos_out), (neg_fit, neg_out) = _split(
            len(pos_ND), len(neg_ND), fitting.held_out, seed
        )
        fitted = fit(pos_ND[pos_fit], neg_ND[neg_fit], fitting.method)
        pos_N, neg_N = fitted.scores(pos_ND[pos_out]), fitted.scores(neg_ND[neg_out])
        accuracies.append(float((pos_N > 0).double().mean() + (neg_N < 0).double().mean()) / 2)
        pos_scores.append(pos_N)
        neg_scores.append(neg_N)
    over = torch.tensor(accuracies, dtype=torch.float64)
    std = float(over.std()) if len(over) > 1 else None
    return float(over.mean()), std, _d_prime(pos_scores, neg_scores)


def _split(n_pos: int, n_neg: int, share: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(fitted, held out) texts of each side; equal numbers are pairs, which stay together."""
    generator = torch.Generator().manual_seed(seed)
    order = None
    for n in (n_pos, n_neg):
        if order is None or n_pos != n_neg:
            order = torch.randperm(n, generator=generator)
        out = min(max(1, round(share * n)), n - 2)
        yield order[out:], order[:out]


def _d_prime(pos: Sequence[Tensor], neg: Sequence[Tensor]) -> float | None:
    pos_N, neg_N = torch.cat(list(pos)), torch.cat(list(neg))
    if min(len(pos_N), len(neg_N)) < 2:
        return None
    spread = float(((pos_N.var() + neg_N.var()) / 2).sqrt())
    return float(pos_N.mean() - neg_N.mean()) / spread if spread > 0 else None


def _provenance(
    lm: LanguageModel, pos: Sequence[Text], neg: Sequence[Text], fitting: Fitting
) -> Mapping[str, object]:
    dtype = str(lm.model.dtype).removeprefix("torch.")
    return {
        **made_for(lm.info),
        "dtype": dtype,
        "method": fitting.method,
        "pool": POOLS[fitting.pool],
        "n_pos": len(pos),
        "n_neg": len(neg),
        "pairs": len(pos) == len(neg),
        "held_out": fitting.held_out,
        "seeds": fitting.seeds,
        "pos_sha256": _digest(pos),
        "neg_sha256": _digest(neg),
        "sign": SIGN,
    }


def _digest(texts: Sequence[Text]) -> str:
    listed = [text if isinstance(text, str) else list(text) for text in texts]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _said(text: Text) -> str:
    return text.strip() if isinstance(text, str) else " ".join(map(str, text))
