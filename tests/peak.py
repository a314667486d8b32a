"""How much memory tensors take, measured."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """The most bytes alive at once in storages that operations made while it was on."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves(args) if _strided(t)}
        for tensor in tree_leaves(result):
            if _strided(tensor):
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


def _strided(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided
