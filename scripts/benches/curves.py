"""What a token costs against the number of features, against k, layers and the tokens of a batch.

A line through the logarithms, by least squares, gives an exponent with its standard error: time goes
as size ** exponent over the sizes that were timed. Everybody has a sample of every size by turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peers.speed import Lap, Race

from benches import machine
from benches.cases import DENSE, OURS, Case
from benches.contestants import random_batch, run
from benches.steps import length
from dictlearn.types import Batch

ENCODER = "encoder's matmul alone"


@dataclass(frozen=True)
class Curve:
    name: str
    letter: str  # what varies
    values: tuple[int, ...]
    case: Case
    lines: tuple[str, ...] = (OURS, DENSE, ENCODER)


CURVES = {
    "cpu": (
        Curve(
            "F",
            "F",
            (1024, 2048, 4096, 8192, 16384, 32768),
            Case("curve", "cpu", "sae", 1024, 256, 1024, 32),
        ),
        Curve("k", "k", (8, 16, 32, 64, 128), Case("curve", "cpu", "sae", 1024, 256, 8192, 8)),
        Curve("L", "L", (2, 3, 4, 6, 8, 12), Case("curve", "cpu", "clt", 512, 128, 2048, 16, 2)),
        Curve(
            "B", "B", (256, 512, 1024, 2048, 4096), Case("curve", "cpu", "sae", 256, 256, 8192, 32)
        ),
    ),
    "cuda": (
        Curve(
            "F",
            "F",
            (8192, 16384, 32768, 65536, 131072, 262144),
            Case("curve", "cuda", "sae", 4096, 2304, 8192, 64),
        ),
        Curve("k", "k", (8, 16, 32, 64, 128), Case("curve", "cuda", "sae", 4096, 2304, 65536, 8)),
        Curve("L", "L", (2, 3, 4, 6, 8, 12), Case("curve", "cuda", "clt", 4096, 768, 8192, 16, 2)),
        Curve(
            "B",
            "B",
            (1024, 2048, 4096, 8192, 16384),
            Case("curve", "cuda", "sae", 1024, 2304, 65536, 64),
        ),
    ),
}
QUICK = {"B": 64, "D": 16, "F": 128, "L": 2, "k": 4}


def trace(device: str, rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a curve."""
    for curve in CURVES[device]:
        base = curve.case.resized(QUICK) if quick else curve.case
        first = base.size[curve.letter]
        values = (first, 2 * first, 4 * first) if quick else curve.values
        cases = [base.resized({curve.letter: value}) for value in values]
        watch = machine.Watch()
        races = raced(cases, curve.lines, rounds, 2 if quick else None)
        milliseconds = {  # of as many tokens as the first case has
            who: [
                race.summary()[who]["median_ms"] * base.tokens / case.tokens
                for case, race in zip(cases, races, strict=True)
            ]
            for who in curve.lines
        }
        yield {
            "part": "curve",
            "curve": curve.name,
            "device": device,
            "size": base.size,
            "kind": base.kind,
            "values": list(values),
            "others": round(watch.share(), 4),
            "microseconds_per_token": {
                who: [1e3 * ms / base.tokens for ms in line] for who, line in milliseconds.items()
            },
            "fits": {who: fitted(values, line) for who, line in milliseconds.items()},
        }


def raced(
    cases: Sequence[Case], lines: Sequence[str], rounds: int, steps: int | None
) -> list[Race]:
    """`steps` of a sample; None: as many as make one."""
    batches = [random_batch(case) for case in cases]
    rehearsals, races = ([Race({}, 0, 0) for _ in cases] for _ in range(2))
    for round_ in range(rounds + 1):
        for case, batch, rehearsal, race in zip(cases, batches, rehearsals, races, strict=True):
            for who in lines:
                if round_ == 0:
                    _sample(case, who, batch, 2, rehearsal)
                else:
                    wanted = steps or length(rehearsal.seconds[who][0])
                    _sample(case, who, batch, wanted, race)
    return races


def _sample(case: Case, who: str, batch: Batch, steps: int, race: Race) -> None:
    if who != ENCODER:
        run(case, who, batch, steps, race)
        return
    encode = encoder_alone(case, batch)
    encode()
    with Lap(race, who, steps):
        for _ in range(steps):
            encode()


def encoder_alone(case: Case, batch: Batch) -> Callable[[], object]:
    """The pre-activations of all layers, written into the same memory again and again."""
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32
    shape = (case.layers, case.features, case.width)
    W_SFD = torch.randn(shape, device=case.device, dtype=dtype)
    pre_NF = W_SFD.new_empty(case.tokens, case.features)
    x_NSD = batch.x_NSD.to(dtype)

    def encode() -> None:
        for x_ND, W_FD in zip(x_NSD.unbind(1), W_SFD, strict=True):
            torch.mm(x_ND, W_FD.T, out=pre_NF)

    return encode


def fitted(sizes: Sequence[float], times: Sequence[float]) -> dict[str, float]:
    """times = factor * sizes ** exponent by least squares of the logarithms; three or more points.

    `error` is the exponent's standard error: the root of the residuals' variance, with two degrees
    of freedom taken, over the sizes' spread.
    """
    x, y = ([math.log(value) for value in values] for values in (sizes, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    offset = mean_y - slope * mean_x
    residual = sum((b - offset - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(residual / (len(x) - 2) / spread)
    return {"exponent": slope, "error": error, "factor": math.exp(offset)}


def table(record: dict[str, Any]) -> str:
    letter = record["curve"]
    lines = [f"microseconds a token against {letter}, {record['kind']}"]
    lines += [f"| | {' | '.join(f'{letter}={v}' for v in record['values'])} | exponent |"]
    lines += ["|---" * (len(record["values"]) + 2) + "|"]
    for who, times in record["microseconds_per_token"].items():
        fit = record["fits"][who]
        cells = [who, *(f"{t:.2f}" for t in times), f"{fit['exponent']:.2f} ± {fit['error']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
