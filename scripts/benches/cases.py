"""The sizes that are timed, by name, and the bars that are set for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = "dictlearn"
OURS_FLOAT32 = "dictlearn, float32 selection"
DENSE, SAELENS, SPARSIFY = "dense autograd", "SAELens", "sparsify"
PEERS = (SAELENS, SPARSIFY)
PER_N = 31  # transforms of a MOLT for each of its n

LETTERS = {"B": "tokens", "D": "width", "F": "features", "L": "layers", "k": "k"}


@dataclass(frozen=True)
class Case:
    """One size, and who steps at it. `features` are those of a layer; of a MOLT its transforms."""

    name: str
    device: str  # cpu | cuda
    kind: str  # sae | clt | molt
    tokens: int  # B
    width: int  # D
    features: int  # F
    k: int
    layers: int = 1  # L
    contestants: tuple[str, ...] = (OURS, DENSE)
    bars: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """ours -> rival -> how many of our steps a rival's must take"""
    limit_ms: float | None = None  # for our step
    of_floor: float | None = None  # the share of the floor that our step must reach
    rounds: int = 7  # samples of everybody

    @property
    def size(self) -> dict[str, int]:
        return {letter: getattr(self, name) for letter, name in LETTERS.items()}

    @property
    def ranks(self) -> tuple[tuple[int, int], ...]:
        """Of a MOLT: (how many transforms, their rank), largest first; as dict=molt makes them."""
        n = self.features // PER_N
        return tuple(
            (n << i, max(1, round(512 / 2**i * min(1, self.width / 1024)))) for i in range(5)
        )

    @property
    def parameters(self) -> int:
        """Of the matrices; biases don't count."""
        encoder = self.layers * self.features * self.width
        if self.kind == "molt":
            return encoder + 2 * self.width * sum(n * rank for n, rank in self.ranks)
        return encoder + self.links * self.features * self.width

    @property
    def links(self) -> int:
        """Pairs (source, target) that a decoder matrix joins."""
        return self.layers * (self.layers + 1) // 2

    def resized(self, size: Mapping[str, int]) -> Case:
        """The case at another size, given by letters; bars are for the size that they are set for."""
        if not size:
            return self
        numbers: dict[str, Any] = {LETTERS[letter]: n for letter, n in size.items()}
        if self.kind != "clt":
            numbers["layers"] = 1
        if self.kind == "molt" and "features" in numbers:
            numbers["features"] = max(1, numbers["features"] // PER_N) * PER_N
        changed = dataclasses.replace(self, **numbers, bars={}, limit_ms=None, of_floor=None)
        if changed.k > changed.features:
            raise ValueError(
                f"k={changed.k}: {self.name} has {changed.features} features to choose from; "
                "want no more"
            )
        return changed


SAE_BARS = {OURS: {SAELENS: 12.0, SPARSIFY: 3.5}, OURS_FLOAT32: {SAELENS: 6.0, SPARSIFY: 1.9}}
GPU_BARS = {OURS: {SAELENS: 3.0, SPARSIFY: 3.0}}
TEN_TIMES = {OURS: {DENSE: 10.0}}
BOTH = (OURS, OURS_FLOAT32, SAELENS, SPARSIFY, DENSE)
ALL = (OURS, SAELENS, SPARSIFY, DENSE)

CASES = {
    case.name: case
    for case in (
        Case("sae-8k", "cpu", "sae", 2048, 512, 8192, 32, contestants=BOTH, bars=SAE_BARS),
        Case("sae-24k", "cpu", "sae", 4096, 768, 24576, 32, contestants=BOTH, bars=SAE_BARS),
        Case("clt-4", "cpu", "clt", 1024, 256, 2048, 16, 4, bars={OURS: {DENSE: 5.0}}),
        Case("clt-4-768", "cpu", "clt", 1024, 768, 8192, 16, 4, bars={OURS: {DENSE: 5.0}}, rounds=5),
        Case("clt-12", "cpu", "clt", 1024, 768, 8192, 16, 12, bars=TEN_TIMES, rounds=3),
        Case("molt", "cpu", "molt", 2048, 768, 8 * PER_N, 16, bars=TEN_TIMES),
        Case("molt-496", "cpu", "molt", 2048, 768, 16 * PER_N, 16, bars=TEN_TIMES, rounds=5),
        Case("sae-65k", "cuda", "sae", 4096, 2304, 65536, 64, contestants=ALL, bars=GPU_BARS),
        Case(
            "sae-131k", "cuda", "sae", 8192, 4096, 131072, 64,
            contestants=ALL, bars=GPU_BARS, of_floor=0.6,
        ),
        Case("clt-gpt2", "cuda", "clt", 4096, 768, 24576, 16, 12, limit_ms=20.0),
        Case("molt-2304", "cuda", "molt", 8192, 2304, 10 * PER_N, 16, bars=TEN_TIMES),
    )
}  # fmt: skip

QUICK = {"B": 128, "D": 64, "F": 512, "L": 2, "k": 8}  # a rehearsal: its figures mean nothing


def chosen(device: str, names: list[str] | None, size: Mapping[str, int]) -> list[Case]:
    """The named cases of a device, all of them without names, at `size` where it says one."""
    of_device = {name: case for name, case in CASES.items() if case.device == device}
    unknown = [name for name in names or [] if name not in of_device]
    if unknown:
        raise ValueError(f"--cases {unknown[0]}: on {device} want some of {', '.join(of_device)}")
    return [of_device[name].resized(size) for name in names or of_device]
