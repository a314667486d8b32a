"""Small dictionaries of every kind, and models of every decoder family, for tests of interventions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dictlearn.dicts.clt import clt
from dictlearn.dicts.crosscoder import crosscoder
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.molt import molt
from dictlearn.dicts.plt import plt
from dictlearn.dicts.sae import sae
from dictlearn.dicts.transcoder import transcoder
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.topk import TopK
from dictlearn.types import ModelInfo

F = 24
SILENT = F - 1  # a feature that never fires
four = partial(TopK, k=4)
KINDS: dict[str, Callable[[ModelInfo], Dictionary]] = {
    "sae": lambda info: sae(info, four, n_features=F, k=4, layer=1),
    "jumprelu": lambda info: sae(
        info, partial(JumpReLU, init_threshold=0.5), n_features=F, k=4, layer=1
    ),
    "transcoder": lambda info: transcoder(info, four, n_features=F, k=4, layer=1),
    "skip_transcoder": lambda info: transcoder(info, four, n_features=F, k=4, layer=1, skip=True),
    "plt": lambda info: plt(info, four, n_features=F, k=4),
    "clt": lambda info: clt(info, four, n_features=F, k=4),
    "clt, tied, window": lambda info: clt(info, four, n_features=F, k=4, tied=True, window=2),
    "crosscoder": lambda info: crosscoder(info, four, n_features=F, k=4),
    "molt": lambda info: molt(info, four, ranks=(2,) * F, k=4, layer=1),
}


def made(kind: str, info: ModelInfo) -> Dictionary:
    """Random, with biases; the last feature of every source never fires."""
    torch.manual_seed(3)
    dictionary = KINDS[kind](info).eval()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.endswith(("b_enc", "b_dec", "W_skip")):
                parameter.normal_(std=0.2)
        dictionary.encoder.b_enc[:, SILENT] = -1e4
    return dictionary.requires_grad_(False)
