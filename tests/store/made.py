"""A small store made by plain loops: what the harvest must equal, and what readers are tested on.

from tests.store.made import made_store
store = made_store(tmp_path)        # the features of RULES over a little Python, on pico's tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dictlearn.ckpt.dictionary import saved_sha256
from dictlearn.lm.load import load_model
from dictlearn.store.features import FeatureStore
from dictlearn.store.layout import Info
from dictlearn.store.text import token_text
from dictlearn.store.windows import StoredWindows
from dictlearn.store.writer import Block, Sample, scaled, write_store

CONTEXT, BEFORE, AFTER = 32, 8, 4
TOP, INTERVALS, PER_INTERVAL, BINS, PROMOTED, OTHERS = 6, 3, 4, 8, 5, 4
LEVELS = (0.1, 0.5, 0.9)
BOS = 1

DOCUMENTS = [
    f"class Shape{i}(Base):\n    def area(self, x={i}):\n        return self.side * {i + 2} + x\n\n"
    f"    def name(self):\n        # the name of SHAPE {i}\n        return 'shape {i}'.upper()\n"
    for i in range(24)
]

Rule = Callable[[str, str], float]  # (the token before, this token) -> activation
RULES: list[Rule] = [
    lambda before, now: 2.0 * (now.strip() == "self"),
    lambda before, now: 1.0 * sum(letter.isdigit() for letter in now),
    lambda before, now: 0.5 * sum(letter.isupper() for letter in now),
    lambda before, now: 0.0,  # dead
    lambda before, now: 3.0 * before.endswith("("),
    lambda before, now: 0.1 * len(now),  # fires everywhere
]


@cache
def pico_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = load_model("pico").tokenizer
    assert tokenizer is not None
    return tokenizer


def made_windows(tokenizer: PreTrainedTokenizerBase) -> StoredWindows:
    """DOCUMENTS one after another, each behind BOS, cut into windows; what fills none is left."""
    ids: list[int] = []
    documents: list[int] = []
    for number, text in enumerate(DOCUMENTS):
        added = [BOS, *tokenizer(text, add_special_tokens=False)["input_ids"]]  # type: ignore[list-item]
        ids += added
        documents += [number] * len(added)
    whole = len(ids) // CONTEXT * CONTEXT
    tokens, numbers = (
        torch.tensor(one[:whole], dtype=torch.int32).view(-1, CONTEXT) for one in (ids, documents)
    )
    return StoredWindows(tokens, numbers, 3 * torch.arange(len(tokens)))


def made_activations(windows: StoredWindows, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """[W, P, rules]: 0 on BOS."""
    activations = torch.zeros(*windows.tokens.shape, len(RULES))
    for w, ids in enumerate(windows.tokens.tolist()):
        pieces = token_text(tokenizer, ids)
        for p, piece in enumerate(pieces):
            if ids[p] != BOS:
                before = pieces[p - 1] if p else ""
                for f, rule in enumerate(RULES):
                    activations[w, p, f] = rule(before, piece)
    return activations


def made_store(
    folder: Path, sources: Sequence[str] = ("resid_post.1",), targets: Sequence[str] | None = None
) -> FeatureStore:
    """The features of RULES for every source; with targets other than the sources a CLT.

    Logits, neighbours and cosines are made up; all else is what the activations say.
    """
    tokenizer = pico_tokenizer()
    windows = made_windows(tokenizer)
    activations = made_activations(windows, tokenizer).unsqueeze(2)
    return store_of(
        folder, windows, activations.expand(-1, -1, len(sources), -1), sources, targets or sources
    )


def store_of(
    folder: Path,
    windows: StoredWindows,
    activations_WPSF: Tensor,
    sources: Sequence[str],
    targets: Sequence[str],
) -> FeatureStore:
    """Harvested with loops."""
    n_sources, n_features = activations_WPSF.shape[2:]
    flat_NC = activations_WPSF.flatten(0, 1).flatten(1)
    reaches = tuple(tuple(range(s, len(targets))) for s in range(n_sources))
    if tuple(sources) == tuple(targets):
        reaches = tuple((s,) for s in range(n_sources))
    valid = int((windows.tokens != BOS).sum())
    info = Info(
        kind="sae" if len(sources) == 1 else "clt",
        sources=tuple(sources),
        targets=tuple(targets),
        code_sources=n_sources,
        n_features=n_features,
        reaches=reaches,
        ranks=(),
        model="pico",
        revision=None,
        data={"_target_": "dictlearn.sources.tokens.stdlib_windows", "context": CONTEXT},
        dictionary_sha256=saved_sha256(folder) or "0" * 64,
        windows=len(windows),
        context=CONTEXT,
        documents=len(windows.documents.unique()),
        tokens=valid,
        sampled_tokens=valid,
        examples=TOP,
        intervals=INTERVALS,
        per_interval=PER_INTERVAL,
        before=BEFORE,
        after=AFTER,
        bins=BINS,
        quantile_levels=LEVELS,
        promoted=PROMOTED,
        unembedding="made up",
        neighbours=OTHERS,
        cofiring="jaccard",
        directions=0,
        rows=4,
        versions={"dictlearn": "test"},
    )
    fired = [flat_NC[:, c].nonzero()[:, 0] for c in range(flat_NC.shape[1])]
    sample = Sample(
        starts=torch.tensor([0, *map(len, fired)]).cumsum(0),
        places=torch.cat(fired),
        activations=torch.cat([flat_NC[places, c] for c, places in enumerate(fired)]),
        windows=torch.arange(len(windows)),
    )
    blocks = [
        _block(info, flat_NC, source, first)
        for source in range(n_sources)
        for first in range(0, n_features, info.rows)
    ]
    write_store(folder / "features", info, windows, sample, blocks)
    return FeatureStore(folder / "features")


def _block(info: Info, flat_NC: Tensor, source: int, first: int) -> Block:
    rows = []
    for index in range(first, min(first + info.rows, info.n_features)):
        rows.append(_row(info, flat_NC, source, index))
    return Block(
        source, first, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    )


def _row(info: Info, flat_NC: Tensor, source: int, index: int) -> dict[str, Tensor]:
    column = source * info.n_features + index
    values_N = flat_NC[:, column]
    places = values_N.nonzero()[:, 0]
    ordered = values_N[places].sort().values
    maximum = float(ordered[-1]) if len(places) else 0.0
    top: list[int] = []
    by_strength = sorted(places.tolist(), key=lambda place: (-float(values_N[place]), place))
    for place in by_strength:
        if len(top) < TOP and place // CONTEXT not in [other // CONTEXT for other in top]:
            top.append(place)
    slots = [(place, -1) for place in top] + [(-1, -1)] * (TOP - len(top))
    rest = [place for place in reversed(by_strength) if place not in top]
    for q in range(INTERVALS):
        low, high = q * len(rest) // INTERVALS, (q + 1) * len(rest) // INTERVALS
        drawn = rest[low:high][:PER_INTERVAL]
        slots += [(place, q) for place in drawn] + [(-1, q)] * (PER_INTERVAL - len(drawn))
    contexts = torch.zeros(len(slots), BEFORE + 1 + AFTER)
    for number, (place, _) in enumerate(slots):
        for offset in range(-BEFORE, AFTER + 1):
            if place >= 0 and (place + offset) // CONTEXT == place // CONTEXT:
                contexts[number, offset + BEFORE] = values_N[place + offset]
    scales, shares = scaled(contexts)
    n_targets = len(info.reaches[source])
    ids = torch.arange(2, 2 + PROMOTED, dtype=torch.int32).expand(n_targets, -1)
    effects = torch.linspace(1, 0.5, PROMOTED).expand(n_targets, -1)
    others = [c for c in range(flat_NC.shape[1]) if c != column][:OTHERS]
    fires = flat_NC > 0
    jaccard = [
        float(
            (fires[:, c] & fires[:, column]).sum() / (fires[:, c] | fires[:, column]).sum().clamp(1)
        )
        for c in others
    ]
    return {
        "count": torch.tensor(len(places)),
        "maximum": torch.tensor(maximum),
        "mean": torch.tensor(float(ordered.mean()) if len(places) else 0.0),
        "quantiles": torch.quantile(ordered, torch.tensor(LEVELS))
        if len(places)
        else torch.zeros(len(LEVELS)),
        "histogram": torch.histc(ordered, BINS, 0, maximum or 1.0).to(torch.int32),
        "examples": torch.tensor([place for place, _ in slots]),
        "example_intervals": torch.tensor([interval for _, interval in slots], dtype=torch.int8),
        "example_scales": scales,
        "example_activations": shares,
        "norms": torch.arange(n_targets, 0, -1) / 2.0,
        "promoted": ids,
        "promoted_effects": effects,
        "suppressed": ids + PROMOTED,
        "suppressed_effects": -effects,
        "neighbours": torch.tensor(others),
        "neighbour_cosines": torch.linspace(0.9, 0.1, len(others)),
        "cofiring": torch.tensor(others),
        "cofiring_jaccard": torch.tensor(jaccard),
    }
