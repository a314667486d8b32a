"""What the round trips share: dictionaries over pico's real activations, and what counts as equal."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.export.protocol import Exporter, Job
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model
from dictlearn.sparsity import registry

WIDTH, FEATURES, K = 256, 512, 16
SITES = {"sae": ("resid_post.1", "resid_post.1"), "transcoder": ("mlp_in.1", "mlp_out.1")}


@cache
def pico() -> LanguageModel:
    return load_model("pico")


@cache
def activations() -> dict[str, Tensor]:
    """site -> float32 [384, 256], on the standard library's source."""
    lm = pico()
    assert lm.tokenizer is not None
    text = inspect.getsource(argparse)
    ids = lm.tokenizer(text[:20_000])["input_ids"][:384]
    tokens_BP = torch.tensor(ids).view(3, 128)
    names = [name for pair in SITES.values() for name in pair]
    return {name: x.flatten(0, 1).float() for name, x in capture(lm, tokens_BP, names).items()}


def made(kind: str, sparsity: str, *, skip: bool = False, centre: bool | None = None) -> Dictionary:
    """Untrained, of decoder norms from 0.5 to 2; thresholds that about K features pass."""
    torch.manual_seed(1)
    source, target = SITES[kind]
    shape = Shape(
        kind=kind,
        sources=(source,),
        targets=(target,),
        width=WIDTH,
        n_features=FEATURES,
        k=K,
        centre=kind == "sae" if centre is None else centre,
        skip=skip,
        unit_norm=False,
    )
    options = {"k": K} if sparsity == "topk" else {}
    dictionary = Dictionary(shape, lambda **sizes: registry()[sparsity](**sizes, **options))
    with torch.no_grad():
        dictionary.encoder.b_enc.normal_(std=0.1)
        dictionary.decoder.b_dec.copy_(activations()[target].mean(0))
        dictionary.decoder.normalise()
        dictionary.decoder.W_dec.mul_(torch.linspace(0.5, 2, FEATURES)[:, None])
        pre = dictionary.encoder.pre(dictionary.read(activations()[source][:, None]))
        # Between two of them: an entry that is the threshold itself goes by how it was rounded.
        largest = pre.flatten().topk(384 * K + 1).values
        level = float(largest[-2:].mean())
        for name, parameter in dictionary.sparsity.named_parameters():
            parameter.fill_(level) if "threshold" in name else parameter.normal_(std=0.1)
        if sparsity == "gated":
            dictionary.encoder.b_enc.sub_(level)
        if dictionary.W_skip is not None:
            nn.init.normal_(dictionary.W_skip, std=0.05)
    return dictionary.eval().requires_grad_(False)


def written(exporter: Exporter, dictionary: Dictionary, folder: Path) -> Path:
    def samples() -> Iterator[Tensor]:
        yield activations()[dictionary.sources[0]][:, None]

    training = {"tokens": 1000, "data": {"_target_": "x.stdlib_windows", "context": 512}}
    lm = pico()
    exporter.write(Job(dictionary, training, lm.info, lm.tokenizer, samples), folder)
    return folder


def assert_same(ours: Dictionary, f_NF: Tensor, y_ND: Tensor) -> None:
    """A code and a reconstruction of theirs are ours, within 1e-5 of the largest value."""
    x_NSD = activations()[ours.sources[0]][:, None]
    code = ours.encode(x_NSD)
    assert 2 < float(code.l0_NS.double().mean()) < 300
    for a, b in ((code.dense()[:, 0], f_NF), (ours.decode(code, x_NSD)[:, 0], y_ND)):
        assert a.shape == b.shape
        assert float((a - b).abs().max() / a.abs().max()) < 1e-5
