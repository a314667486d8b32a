"""The highest speed of a run on a device, whether it fits there, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import instantiate

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.schema import shown
from dictlearn.verbs.costs import FLOAT, Run, count, memory, work
from dictlearn.verbs.gpus import Gpu
from dictlearn.verbs.units import si
from dictlearn.waiting import duration

# Seconds of a step. In shorter steps a device mostly waits for its next operation, so the time of the
# operations themselves does not predict the speed.
SHORTEST_STEP = 1e-3


@dataclass(frozen=True)
class Prediction:
    gpu: Gpu
    step_seconds: float
    tokens_per_second: float  # of all devices together
    seconds: float  # the whole run's
    limit: str  # the part of a step that takes longest
    share: float  # of a step's time
    peak: float  # bytes on each device
    remedy: str  # one line; empty where it fits

    def speed(self) -> str:
        """The rate, where there is one, and the wall time."""
        if self.step_seconds < SHORTEST_STEP:
            return f"the run takes {duration(self.seconds)} of computing, in steps too short for a rate"
        rate = f"{si(self.tokens_per_second)}tokens/s at most"
        return f"{rate}, the run takes {duration(self.seconds)} at least"


def predictions(
    run: Run, devices: int, gpus: Iterable[Gpu], on_gpu: bool = True
) -> list[Prediction]:
    parts = work(run, on_gpu, devices)
    peak = memory(run, on_gpu, devices).peak
    results = []
    for gpu in gpus:
        seconds = {name: part.seconds(gpu) * run.step_tokens for name, part in parts.items()}
        if devices > 1:  # a ring passes every gradient twice, less a device's own share
            gradients = FLOAT * sum(map(count, run.trained))
            seconds["all-reduce"] = 2 * (devices - 1) / devices * gradients / gpu.link
        whole = sum(seconds.values())
        limit = max(seconds, key=lambda name: seconds[name])
        rate = devices * run.step_tokens / whole
        remedy = "" if peak <= gpu.room else remedies(run, gpu, devices, on_gpu)
        total = whole * run.cfg.steps
        results.append(
            Prediction(gpu, whole, rate, total, limit, seconds[limit] / whole, peak, remedy)
        )
    return results


def remedies(run: Run, gpu: Gpu, devices: int, on_gpu: bool = True) -> str:
    """The changes that each alone would make the run fit, as one line."""
    shape, own = run.dictionary.shape, run.cfg.dict
    sparsity = instantiate(run.cfg.sparsity)

    def fits(**changes: Any) -> bool:
        with torch.device("meta"):
            other = Dictionary(replace(shape, prefixes=(), **changes), sparsity)
        return memory(replace(run, dictionary=other), on_gpu, devices).peak <= gpu.room

    ways = []
    if "n_features" in own:
        least = max(1, round(shape.k))
        if most := _largest(lambda n: fits(n_features=n), least, shape.n_features):
            ways.append(f"dict.n_features={most}")
    for key, values in shape.link.economies(len(shape.targets)).items():

        def fits_with(index: int, key: str = key, values: Sequence[Any] = values) -> bool:
            return fits(link=replace(shape.link, **{key: values[index]}))  # type: ignore[type-var]

        most = _largest(fits_with, 0, len(values) - 1)
        if most is not None:
            ways.append(f"dict.n_features={shape.n_features} dict.{key}={shown(values[most])}")
    for key in ("buffer_tokens",):
        half = run.cfg.source.get(key, 0) // 2
        smaller = run.cfg.copy()
        if half:
            smaller.source[key] = half
            if memory(replace(run, cfg=smaller), on_gpu, devices).peak <= gpu.room:
                ways.append(f"source.{key}={half}")
    if not ways:
        return "a smaller model or dictionary: no single change makes room"
    return " | ".join(ways)


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number in least .. most that fits; None where none does."""
    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least
