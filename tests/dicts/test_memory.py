"""What a training step of a cross-layer transcoder holds at once, in bytes of tensors."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dictlearn.dicts.clt import clt
from dictlearn.objectives.protocol import Forward
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.types import ModelInfo
from tests.dictionaries import SPARSITIES

N, D, F = 1024, 512, 8
ONE_TARGET = N * D * 4


class Peak(TorchDispatchMode):
    """The most bytes alive at once in storages that operations made while it was on."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, torch.Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given | self.seen:
                    self.seen.add(storage._cdata)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.alive)
        return result

    def _freed(self, key: int, n_bytes: int) -> None:
        self.seen.discard(key)
        self.alive -= n_bytes


def peak_of_a_step(n_layers: int, streamed: bool) -> int:
    info = ModelInfo("tiny", None, "qwen3", n_layers, D, 100, 64)
    dictionary = clt(info, SPARSITIES["topk"], n_features=F, k=4)
    x, y = torch.randn(2, N, n_layers, D)
    dead = torch.zeros(n_layers, F, dtype=torch.bool)
    with Peak() as peak:
        encoding = dictionary.encode_training(x)
        if streamed:
            forward = Forward(dictionary, x, y, encoding, dead, 1.0, 1.0)
            Reconstruction()(forward).backward()
        else:
            (dictionary.decode(encoding.code) - y).square().mean().backward()
    return peak.most


def test_memory_does_not_grow_with_the_number_of_targets():
    """From 2 layers to 6: only codes (12 numbers an entry, say) and gradients may."""
    codes = 4 * N * 4 * 12 * 8
    gradients = 4 * (6 * 7 // 2 + 6) * F * D
    grown = peak_of_a_step(6, streamed=True) - peak_of_a_step(2, streamed=True)
    assert grown < codes + gradients + ONE_TARGET / 2
    plain = peak_of_a_step(6, streamed=False) - peak_of_a_step(2, streamed=False)
    assert plain > 8 * ONE_TARGET > 2 * grown  # the measure does see activations
