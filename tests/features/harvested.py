"""A little text and small dictionaries over pico, for harvests that take a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from dictlearn.dicts.clt import clt
from dictlearn.dicts.crosscoder import crosscoder
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.molt import molt
from dictlearn.dicts.plt import plt
from dictlearn.dicts.sae import sae
from dictlearn.dicts.transcoder import transcoder
from dictlearn.features.harvest import Harvest
from dictlearn.features.settings import Settings
from dictlearn.features.text import Text
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model
from dictlearn.sources.tokens import TokenWindows
from dictlearn.sparsity.topk import TopK

CONTEXT, F = 32, 48
SETTINGS = Settings(
    tokens=10_000,
    batch_windows=4,
    examples=6,
    intervals=3,
    per_interval=4,
    before=8,
    after=4,
    bins=8,
    quantiles=(0.1, 0.5, 0.9),
    promoted=5,
    neighbours=4,
    cofiring=4,
    sample_tokens=400,
    sample_firings=100_000,
    directions=2,
    buffer=3_000,
    block=20,
    checkpoint_minutes=5,
)


@cache
def pico() -> LanguageModel:
    return load_model("pico")


@cache
def windows() -> TokenWindows:
    lm = pico()
    assert lm.tokenizer is not None
    stream: list[int] = []
    starts: list[int] = []
    for i in range(40):
        starts.append(len(stream))
        text = f"def f{i}(x, y={i}):\n    # The {i}th function\n    return x[{i}] + 'a{i}' * y\n"
        stream += [1, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]  # type: ignore[misc]
    tokens = torch.tensor(stream, dtype=torch.int32)
    return TokenWindows(tokens, CONTEXT, lm.special_ids, 0, torch.tensor(starts))


topk = partial(TopK, k=4)
KINDS: dict[str, Callable[..., Dictionary]] = {
    "sae": partial(sae, site="resid_post.1", n_features=F),
    "transcoder": partial(transcoder, layer=2, n_features=F),
    "skip transcoder": partial(transcoder, layer=2, n_features=F, skip=True),
    "plt": partial(plt, layers=[1, 3], n_features=F),
    "clt": partial(clt, layers=[0, 1, 3], n_features=F),
    "windowed clt": partial(clt, layers=[0, 1, 3], n_features=F, window=2),
    "tied clt": partial(clt, layers=[0, 1, 3], n_features=F, tied=True),
    "crosscoder": partial(crosscoder, sites=["resid_post.0", "resid_post.2"], n_features=F),
    "molt": partial(molt, layer=1, ranks=[5, 5, 3, 1, 1, 1]),
}


def dictionary_of(kind: str) -> Dictionary:
    torch.manual_seed(0)
    dictionary = KINDS[kind](info=pico().info, sparsity=topk, k=4)
    with torch.no_grad():  # one feature that never fires
        dictionary.encoder.b_enc[:, 1] = -1e6
    return dictionary.eval().requires_grad_(False)


def harvest_of(kind: str, folder: Path, settings: Settings = SETTINGS) -> Harvest:
    text = Text(windows(), settings)
    return Harvest(dictionary_of(kind), pico(), text, settings, folder / "features", {"x": [1]})
