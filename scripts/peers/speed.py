"""Whole training steps, interleaved in one process, so that everybody meets the same machine.

Ours runs inside Lightning: what is timed is the interval between two requests for a batch, which
holds the step, its optimiser, its bookkeeping, logging and Lightning's own loop. The others run in
between, from inside that request, as the body of their own training loop.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

HOST = "dictlearn"


@dataclass
class Race:
    """Rounds of steps by turns. A round is clean when nothing else used more than 12% of a core."""

    rivals: dict[str, Callable[[], None]]
    own_steps: int  # of the host, per round
    rival_steps: int  # of each of the others
    seconds: dict[str, list[float]] = field(default_factory=dict)  # per step, one per round
    clean: dict[str, list[bool]] = field(default_factory=dict)

    def host(self, x_ND: Tensor, rounds: int) -> Iterator[Tensor]:
        """Batches for the host's loop, which holds the race in between; the first round warms up.

        From one request to the next is one whole step of the host, also where it reads ahead.
        """
        for _ in range(self.own_steps):
            yield x_ND
        for step in self.rivals.values():
            step()
        for _ in range(rounds):
            self.run_rivals()
            with Lap(self, HOST, self.own_steps):
                for _ in range(self.own_steps):
                    yield x_ND
        while True:
            yield x_ND

    def run_rivals(self) -> None:
        for name, step in self.rivals.items():
            with Lap(self, name, self.rival_steps):
                for _ in range(self.rival_steps):
                    step()

    def record(self, name: str, seconds_per_step: float, clean: bool) -> None:
        self.seconds.setdefault(name, []).append(seconds_per_step)
        self.clean.setdefault(name, []).append(clean)

    def summary(self) -> dict[str, dict[str, float]]:
        """Milliseconds a step: the median and quartiles over all rounds, and over clean ones."""
        table = {}
        for name, seconds in self.seconds.items():
            kept = [s for s, clean in zip(seconds, self.clean[name], strict=True) if clean]
            quarter, middle, three = statistics.quantiles(seconds, n=4)
            table[name] = {
                "median_ms": 1e3 * middle,
                "quartile_1_ms": 1e3 * quarter,
                "quartile_3_ms": 1e3 * three,
                "best_ms": 1e3 * min(seconds),
                "rounds": len(seconds),
                "clean_rounds": len(kept),
            }
            if len(kept) >= 3:
                table[name]["clean_median_ms"] = 1e3 * statistics.median(kept)
        return table


class Lap:
    """Times what happens between start() and stop(), and whether others kept the machine busy."""

    def __init__(self, race: Race, name: str, steps: int):
        self.race, self.name, self.steps = race, name, steps

    def __enter__(self) -> Lap:
        synchronise()
        self.others = busy_elsewhere()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        synchronise()
        wall = time.perf_counter() - self.started
        clean = busy_elsewhere() - self.others < 0.12 * wall
        self.race.record(self.name, wall / self.steps, clean)


def synchronise() -> None:
    """Waits for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def busy_elsewhere() -> float:
    """CPU seconds that processes other than this one have used so far, on Linux; else 0."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:]]
    everybody = (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return everybody - own.user - own.system
