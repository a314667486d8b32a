"""Races of whole training steps: one sample of everybody by turns, medians, memory, the floor."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers.speed import Race

from benches import machine
from benches.cases import OURS, OURS_FLOAT32, PER_N, Case
from benches.contestants import absent, dtype_of, random_batch, run
from benches.floor import floor
from benches.machine import Rates

SAMPLE_SECONDS = 1.0  # what a sample is worth; a step that takes longer is a sample
MOST_STEPS = 20  # two rounds of our logging


def race_steps(
    case: Case, rounds: int, rates: Rates, memory: bool = True, quick: bool = False
) -> dict[str, Any]:
    """The record of one case. Everybody is built anew for each sample, and alone in memory."""
    batch = random_batch(case)
    racing = [who for who in case.contestants if not absent(who)]
    rehearsal, race = Race({}, 0, 0), Race({}, 0, 0)
    for who in racing:  # kernels compile, caches fill, and a sample's length becomes known
        run(case, who, batch, 2, rehearsal)
    steps = {who: 2 if quick else length(rehearsal.seconds[who][0]) for who in racing}
    peaks: dict[str, float] = {}
    watch = machine.Watch()
    for _ in range(rounds):
        for who in racing:
            run(case, who, batch, steps[who], race)
            if case.device == "cuda":
                peaks[who] = float(torch.cuda.max_memory_allocated())
    share = watch.share()
    if memory and case.device == "cpu":
        peaks = {who: peak_in_child(case, who) for who in racing}
    record = {
        "part": "step",
        "others": round(share, 4),
        **described(case),
        "absent": [who for who in case.contestants if absent(who)],
        "rates": rates.record,
        "a_step": race.summary(),
        "peak_bytes": peaks,
    }
    return record | compared(case, race, rates)


def length(seconds: float) -> int:
    """How many steps make a sample: one if they are long; else tens, of which each logs once."""
    if seconds > SAMPLE_SECONDS / 2:
        return 1 if seconds > SAMPLE_SECONDS else 2
    return MOST_STEPS if seconds < SAMPLE_SECONDS / MOST_STEPS else 10


def described(case: Case) -> dict[str, Any]:
    names = {"case": case.name, "device": case.device, "kind": case.kind}
    return {**names, "size": case.size, "parameters": case.parameters}


def compared(case: Case, race: Race, rates: Rates) -> dict[str, Any]:
    """Tokens a second, shares of the floor, times ours, and whether bars are met."""
    median = {who: statistics.median(seconds) for who, seconds in race.seconds.items()}
    ours = [who for who in (OURS, OURS_FLOAT32) if who in median]
    floors = {who: floor(case, rates, dtype_of(who, case.device)) for who in ours}
    times = {
        who: {rival: median[rival] / median[who] for rival in median if rival not in ours}
        for who in ours
    }
    bars = [
        {"bar": f"{rival} / {who}", "wanted": bar, "got": times[who][rival]}
        for who, rivals in case.bars.items()
        for rival, bar in rivals.items()
        if who in times and rival in times[who]
    ]
    share = {who: sum(parts.values()) / median[who] for who, parts in floors.items()}
    if case.of_floor is not None and OURS in share:
        bars.append({"bar": "share of the floor", "wanted": case.of_floor, "got": share[OURS]})
    for bar in bars:
        bar["met"] = bar["got"] >= bar["wanted"]
    if case.limit_ms is not None and OURS in median:
        got = 1e3 * median[OURS]
        bars.append({"bar": "ms", "wanted": case.limit_ms, "got": got, "met": got < case.limit_ms})
    return {
        "tokens_per_second": {who: case.tokens / seconds for who, seconds in median.items()},
        "floor_ms": {
            who: {part: 1e3 * seconds for part, seconds in parts.items()}
            for who, parts in floors.items()
        },
        "of_floor": share,
        "times_ours": times,
        "bars": bars,
    }


def peak_in_child(case: Case, who: str) -> float:
    """The most bytes a step takes on a CPU, beyond what the process had before it was built."""
    script = Path(__file__).resolve().parents[1] / "bench.py"
    words = [json.dumps(asdict(case)), who, str(torch.get_num_threads())]
    command = [sys.executable, "-W", "ignore", str(script), "child", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def peak_here(case: Case, who: str) -> float:
    """The same, in this process, which must have done nothing else: the child's part."""
    tiny = case.resized({"B": 16, "D": 8, "F": PER_N, "L": 2, "k": 2})
    run(tiny, who, random_batch(tiny), 1, Race({}, 0, 0))  # everything is imported
    batch = random_batch(case)
    before = machine.resident()
    run(case, who, batch, 2, Race({}, 0, 0))
    return machine.peak_resident() - before


def table(record: dict[str, Any]) -> str:
    """Markdown: one row for everybody."""
    size = " ".join(f"{letter}={n}" for letter, n in record["size"].items())
    lines = [f"{record['case']}: {record['kind']}, {size}, others {record['others']:.0%}", ""]
    lines += ["| | ms, median | quartiles | tokens/s | of the floor | peak | times ours |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for who, figures in record["a_step"].items():
        share = record["of_floor"].get(who)
        peak = record["peak_bytes"].get(who)
        times = [f"{rivals[who]:.2f}" for rivals in record["times_ours"].values() if who in rivals]
        cells = [
            who,
            f"{figures['median_ms']:.1f}",
            f"{figures['quartile_1_ms']:.1f} to {figures['quartile_3_ms']:.1f}",
            f"{record['tokens_per_second'][who]:,.0f}",
            "" if share is None else f"{share:.0%}",
            "" if peak is None else f"{peak / 1e6:,.0f} MB",
            ", ".join(times),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for bar in record["bars"]:
        verdict = "met" if bar["met"] else "not met"
        lines.append(f"{bar['bar']}: {bar['got']:.2f}, wanted {bar['wanted']:g}: {verdict}")
    return "\n".join(lines)
