"""Forward passes of the model in an evaluation, which runs that evaluate side by side make once.

Most of an evaluation does not depend on the dictionary: the activations, the clean model, the model
with baselines in place. Runs of one process that evaluate on the same text go through it batch by batch
in turns, and take from each other what is equal to the bit: a key holds all that a result depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar, final

import torch
from torch import Tensor

T = TypeVar("T")
Key = Callable[[], Hashable]  # called only where results are shared


class Passes(Protocol):
    def next(self) -> None:
        """Called before each batch of text: results of the batch before it are kept no longer."""
        ...

    def once(self, key: Key, make: Callable[[], T]) -> T:
        """What `make` gives, or has given to another run under the same key."""
        ...


@final
class Own:
    """The passes of a run that shares none."""

    def next(self) -> None: ...

    def once(self, key: Key, make: Callable[[], T]) -> T:
        return make()


OWN = Own()


@final
class SideBySide:
    """Runs that evaluate in turns; `hand_over(ready)` lets others run until `ready()` is true."""

    def __init__(self, hand_over: Callable[[Callable[[], bool]], None]):
        self.hand_over = hand_over
        self.sides: list[Side] = []
        self.at = -1  # the batch that the results are of
        self.results: dict[Hashable, object] = {}

    def join(self) -> Side:
        self.sides.append(Side(self))
        return self.sides[-1]


@final
class Side:
    """The passes of one of them."""

    def __init__(self, group: SideBySide):
        self._group, self._batch = group, -1

    def next(self) -> None:
        group = self._group
        self._batch += 1
        group.hand_over(lambda: self._batch == min(side._batch for side in group.sides))
        if group.at != self._batch:
            group.at = self._batch
            group.results.clear()

    def once(self, key: Key, make: Callable[[], T]) -> T:
        results, found = self._group.results, key()
        if found not in results:
            results[found] = make()
        return results[found]  # type: ignore[return-value]

    def leave(self) -> None:
        """The others no longer wait for this run."""
        self._group.sides = [side for side in self._group.sides if side is not self]
        if not self._group.sides:
            self._group.results.clear()


def digest(*tensors: Tensor) -> str:
    """A fingerprint of some tensors' values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
