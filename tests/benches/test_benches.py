"""Figures mean something only if everybody does the same work and the arithmetic is right."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benches import contestants, curves, draw, machine, ops, page, steps
from benches.cases import CASES, DENSE, OURS, PER_N, SAELENS, SPARSIFY, Case, chosen
from benches.contestants import configuration, random_batch, run
from benches.dense import DenseCLT, DenseMOLT
from benches.floor import floor
from benches.machine import Rates
from peers import results
from peers.speed import Race

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.linked import LinkedDecoder
from dictlearn.dicts.transforms import TransformDecoder
from dictlearn.types import ModelInfo
from dictlearn.verbs import build

SAE = Case("tiny", "cpu", "sae", 12, 8, 16, 2)
CLT = Case("tiny", "cpu", "clt", 12, 8, 16, 2, 3)
MOLT = Case("tiny", "cpu", "molt", 12, 32, PER_N, 4)
RATES = Rates({"float32": 100.0, "bfloat16": 400.0, "int16": 200.0}, copy=10.0)


def ours(case: Case) -> Dictionary:
    cfg = configuration(case, OURS, 1)
    info = ModelInfo("random", None, "random", case.layers, case.width, 0, 0)
    return build.build_dictionary(cfg, info)


@pytest.mark.parametrize("case", [SAE, CLT, MOLT], ids=lambda case: case.kind)
def test_a_case_counts_the_parameters_that_are_there(case: Case):
    matrices = [p for p in ours(case).parameters() if p.ndim > 2]
    assert case.parameters == sum(p.numel() for p in matrices)


@pytest.mark.parametrize("case", [SAE, CLT], ids=lambda case: case.kind)
@torch.no_grad()
def test_the_dense_rival_computes_what_ours_does(case: Case):
    dictionary, dense = ours(case), DenseCLT(case)
    dense.W_enc.copy_(dictionary.encoder.W_enc)
    dictionary.decoder.b_dec.normal_()
    dense.b_dec.copy_(dictionary.decoder.b_dec)
    decoder = dictionary.decoder
    W_dec = decoder.W_dec if isinstance(decoder, LinkedDecoder) else [decoder.W_dec]
    for own, W_SFD in zip(dense.W_dec, W_dec, strict=True):
        own.copy_(W_SFD)
    x_NSD = random_batch(case).x_NSD
    torch.testing.assert_close(dense(x_NSD), dictionary(x_NSD))


@torch.no_grad()
def test_the_dense_mixture_computes_what_ours_does():
    dictionary, dense = ours(MOLT), DenseMOLT(MOLT)
    decoder = dictionary.decoder
    assert isinstance(decoder, TransformDecoder)
    dense.W_gate.copy_(dictionary.encoder.W_enc[0])
    for own, theirs in zip([*dense.U, *dense.V], [*decoder.U, *decoder.V], strict=True):
        own.copy_(theirs)
    x_NSD = random_batch(MOLT).x_NSD
    torch.testing.assert_close(dense(x_NSD), dictionary(x_NSD))


@pytest.mark.parametrize("name", list(ops.OPS))
def test_both_sides_of_an_operation_run(name: str):
    (record,) = ops.race_ops("cpu", [name], rounds=2, quick=True)
    assert set(record["a_call"]) == {OURS, ops.TORCH}
    assert record["times_ours"] > 0


def test_the_floor_adds_what_must_be_computed_and_moved():
    parts = floor(SAE, RATES, "float32")
    entries = 12 * 2 * 8  # tokens, k, width
    assert parts == pytest.approx(
        {
            "encoder": 2 * 12 * 8 * 16 / 100,
            "gathers": 3 * entries * 4 / 10,  # decode and two weight gradients
            "optimiser": 24 * (2 * 8 * 16) / 10,
        }
    )
    low = floor(SAE, RATES, "bfloat16")
    assert low["encoder"] == pytest.approx(parts["encoder"] / 4)
    assert low["gathers"] == pytest.approx(parts["gathers"] / 2)
    assert low["optimiser"] == pytest.approx(parts["optimiser"] * 26 / 24)
    # Six pairs of layers, each decoded and differentiated, and three encoders.
    assert floor(CLT, RATES, "float32")["gathers"] == pytest.approx(15 * entries * 4 / 10)
    active = MOLT.k / PER_N * sum(n * rank for n, rank in MOLT.ranks)
    assert floor(MOLT, RATES, "float32")["transforms"] == pytest.approx(10 * 12 * 32 * active / 100)


def test_an_exponent_is_that_of_least_squares():
    sizes = [1, 2, 4, 8, 16]
    exact = curves.fitted(sizes, [3 * size**1.5 for size in sizes])
    assert exact == pytest.approx({"exponent": 1.5, "error": 0.0, "factor": 3.0}, abs=1e-9)
    times = [1.0, 2.3, 3.9, 9.0, 14.0]
    fit = curves.fitted(sizes, times)
    line, covariance = np.polyfit(np.log(sizes), np.log(times), 1, cov=True)
    assert fit["exponent"] == pytest.approx(line[0])
    assert fit["error"] == pytest.approx(math.sqrt(covariance[0, 0]))


def raced(case: Case, **seconds: float) -> Race:
    race = Race({}, 0, 0)
    for who, middle in seconds.items():
        for factor in (0.5, 1.0, 1.5):
            race.record(who.replace("_", " "), factor * middle, clean=True)
    return race


def test_bars_are_held_against_medians():
    bars = {OURS: {SAELENS: 6.0, SPARSIFY: 1.9}}
    case = replace(SAE, bars=bars, of_floor=0.5, limit_ms=3.0)
    found = steps.compared(case, raced(case, dictlearn=2.0, SAELens=14.0, sparsify=3.0), RATES)
    got = {bar["bar"]: (bar["got"], bar["met"]) for bar in found["bars"]}
    least = sum(floor(case, RATES, contestants.dtype_of(OURS, "cpu")).values())
    assert got == {
        "SAELens / dictlearn": (7.0, True),
        "sparsify / dictlearn": (1.5, False),
        "share of the floor": (pytest.approx(least / 2), True),
        "ms": (2000.0, False),
    }
    assert found["tokens_per_second"][OURS] == 6.0


def test_bars_hold_at_their_own_size_only():
    (case,) = chosen("cpu", ["sae-8k"], {"F": 64})
    assert case.features == 64 and not case.bars
    assert chosen("cpu", ["sae-8k"], {})[0].bars
    with pytest.raises(ValueError, match="--cases sae-65k: on cpu want some of sae-8k"):
        chosen("cpu", ["sae-65k"], {})
    with pytest.raises(ValueError, match="k=32: sae-8k has 16 features"):
        CASES["sae-8k"].resized({"F": 16})


def test_a_step_is_raced_and_drawn(tmp_path: Path):
    case = replace(SAE, name="sae-8k")
    record = steps.race_steps(case, rounds=2, rates=RATES, memory=False, quick=True)
    assert record["a_step"].keys() == {OURS, DENSE}
    assert all(figures["rounds"] == 2 for figures in record["a_step"].values())
    assert f"| {DENSE} |" in steps.table(record)
    results.append("bench", {"versions": machine.versions(), **record}, tmp_path)
    lines = {OURS: [1.0, 2.0, 4.0], DENSE: [2.0, 8.0, 32.0], curves.ENCODER: [0.5, 1.0, 2.0]}
    curve = {
        "part": "curve",
        "curve": "F",
        "device": "cpu",
        "kind": "sae",
        "size": case.size,
        "values": [1, 2, 4],
        "microseconds_per_token": lines,
        "fits": {who: curves.fitted([1, 2, 4], line) for who, line in lines.items()},
    }
    results.append("bench", {"versions": machine.versions(), **curve}, tmp_path)
    kind = draw.kind_of({"device": "cpu", "machine": results.machine()})
    blocks = page.blocks(tmp_path)
    assert blocks.keys() == {f"steps-{kind}", f"curves-{kind}"}  # no peer: nothing for the README
    assert f"{DENSE} | 2.00 | 8.00 | 32.00 | 2.00 ± 0.00 |" in blocks[f"curves-{kind}"]
    written = draw.pictures(tmp_path, tmp_path / "img")
    assert {path.name for path in written} == {
        f"{what}-{kind}-{shade}.png" for what in ("steps", "cost") for shade in ("light", "dark")
    }
    assert all(path.stat().st_size > 5000 for path in written)


def test_figures_are_told_apart_by_the_vectors_of_the_cpu(tmp_path: Path):
    """The newest of each kind of machine; records from before instructions were noted had AVX2."""
    times = {OURS: {SAELENS: 2.0}}
    size = {"B": 4, "D": 2, "F": 8, "k": 1, "L": 1}
    record = {
        "part": "step", "case": "sae-8k", "kind": "sae", "device": "cpu", "size": size, "others": 0.0,
        "date": "2026-01-01", "versions": {"torch": "2"}, "peak_bytes": {}, "times_ours": times,
        "a_step": {SAELENS: {"median_ms": 2.0, "quartile_1_ms": 2.0, "quartile_3_ms": 2.0}},
        "of_floor": {}, "bars": [], "tokens_per_second": {OURS: 4.0, SAELENS: 2.0},
    }  # fmt: skip
    machines = {"old": None, "wide": ["avx2", "avx512f"], "short": ["avx2"], "arm": []}
    records = [
        {**record, "machine": {"cpu": cpu, "threads": 2}
         | ({} if instructions is None else {"instructions": instructions})}
        for cpu, instructions in machines.items()
    ]  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(records))
    blocks = page.blocks(tmp_path)
    starts = {name: block.splitlines()[0].split(", ")[0] for name, block in blocks.items()}
    assert starts == {
        "steps-avx512": "wide with AVX-512", "steps-avx2": "short with AVX2", "steps-cpu": "arm",
        "readme": page.picture("steps", "avx512", "docs/img"),
    }  # fmt: skip
    in_readme = [blocks["readme"].index(f"\n{cpu}") for cpu in ("wide", "short", "arm")]
    assert in_readme == sorted(in_readme)
    (tmp_path / "bench.json").write_text(json.dumps(records[:1]))
    assert page.blocks(tmp_path).keys() == {"steps-avx2", "readme"}


def test_a_sample_of_ours_holds_the_steps_it_says():
    race = Race({}, 0, 0)
    run(SAE, OURS, random_batch(SAE), steps=3, race=race, warm=2)
    assert len(race.seconds[OURS]) == 1


def test_a_case_reaches_a_child_process_whole():
    assert Case(**json.loads(json.dumps(asdict(CLT)))).parameters == CLT.parameters


def test_memory_is_that_of_this_process():
    before = machine.peak_resident()
    held = torch.ones(1 << 24)
    assert machine.peak_resident() >= max(before, machine.resident())
    assert machine.resident() > 4 * held.numel()
