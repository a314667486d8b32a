"""Figures that stand in sentences: enough of each sentence to find it, and what is on record for it."""

from __future__ import annotations

import re
from typing import Any

from benches.draw import newest as newest_benches
from peers import results

from figures import newest, records
from figures.tables import best_run, power

NUMBER = r"[-+]?[\d.,]*\d(?:e-?\d+)?%?"


def renewed(text: str, name: str) -> str:
    """The page of this name with the figures of its sentences as they are on record.

    Raises:
        ValueError: of a template that is not found exactly once.
    """
    for where, template, values in quotes():
        if where != name:
            continue
        literal = [re.escape(part) for part in re.split(r"\{[^}]*\}", template)]
        text, found = re.subn(NUMBER.join(literal), lambda _: template.format(*values), text)  # noqa: B023
        if found != 1:
            raise ValueError(f"{name}: found {found} times, want once: {template}")
    return text


def quotes() -> list[tuple[str, str, list[Any]]]:
    """(page, template, values)"""
    return [*of_peers(), *of_recovery(), *of_demo(), *of_objectives(), *of_the_rest(), *of_speed()]


def of_peers() -> list[tuple[str, str, list[Any]]]:
    pairs = {pair["pair"]: pair for pair in newest("peers")["pairs"]}
    saelens = [pairs[f"SAELens {kind}"] for kind in ("topk", "batchtopk", "matryoshka", "jumprelu")]
    ratios = [pair["fvu_ratio"] for pair in [*saelens, pairs["sparsify topk"]]]
    ours = {pair["pair"]: pair["fvu"][0] for pair in saelens}
    fired = pairs["SAELens jumprelu"]["as_trained"]["l0"]
    return [
        (
            "README.md",
            "{:.3f} times SAELens' with topk, {:.3f} with batchtopk, {:.3f} with matryoshka, {:.3f} with "
            "jumprelu, {:.3f} times sparsify's with topk",
            ratios,
        ),
        (
            "docs/choose.md",
            "FVU {:.3f} instead of {:.3f}, measured below",
            [ours["SAELens matryoshka"], ours["SAELens batchtopk"]],
        ),
        (
            "docs/peers.md",
            "our jumprelu fires on {:.1f} features for a target of 32 and SAELens' on {:.1f}",
            fired,
        ),
        ("docs/peers.md", "do alike) it is {:.3f}", [ours["SAELens jumprelu"]]),
    ]


def of_recovery() -> list[tuple[str, str, list[Any]]]:
    kinds: dict[str, Any] = {}
    for record in records("synthetic_recovery"):
        kinds |= record["kinds"]
    values = [kinds[kind]["mean_max_cosine"] for kind in ("batchtopk", "matryoshka", "jumprelu")]
    return [
        (
            "README.md",
            "{:.3f} with batchtopk, {:.3f} with matryoshka and {:.3f} with jumprelu",
            values,
        ),
        (
            "docs/choose.md",
            "{:.3f} with batchtopk, {:.3f} with matryoshka, {:.3f} with jumprelu",
            values,
        ),
    ]


def of_demo() -> list[tuple[str, str, list[Any]]]:
    printed = newest("printed", commands="python train.py name=demo")["printed"]
    rows = dict(re.findall(r"^(SAE|mean ablation) +(.*)$", printed, re.MULTILINE))
    increase = {name: abs(float(row.split()[3])) for name, row in rows.items()}
    summary = newest("descriptions")["summary"]
    leaves = [increase["SAE"], increase["mean ablation"]]
    return [
        ("docs/choose.md", "pico's SAE leaves {:.3f} of {:.3f} nats", leaves),
        (
            "docs/choose.md",
            "On pico {:.0%} of the features have a description",
            [summary["reliable"] / summary["live"]],
        ),
    ]


def of_objectives() -> list[tuple[str, str, list[Any]]]:
    record = newest("mse_then_kl")
    before, after = (record["medians"][name] for name in ("mse", "mse_then_kl"))
    keys = ("ce_increase", "fvu")
    lower = record["ce_increase_lower_by"]
    by_seed = [
        1 - late["ce_increase"] / early["ce_increase"]
        for early, late in zip(record["runs"]["mse"], record["runs"]["mse_then_kl"], strict=True)
    ]
    study = newest("cooccurrence")["runs"]
    more = [
        ce["cooccurrence/nats"] / kl["cooccurrence/nats"] - 1
        for kl, ce in zip(study["kl"], study["ce"], strict=True)
    ]
    more = [f"{share:.0%}".rstrip("%") for share in more[:-1]] + [f"{more[-1]:.0%}"]
    return [
        (
            "docs/choose.md",
            "came down by {:.0%}, from {:.3f} to {:.3f} nats, and the FVU went up from {:.3f} to {:.3f}",
            [lower, *(side[key] for key in keys for side in (before, after))],
        ),
        ("docs/choose.md", "{:.3f} after 5 million", [before["ce_increase"]]),
        (
            "docs/objectives.md",
            "The increase of the cross-entropy is {:.0%} lower ({:.0%}, {:.0%}, {:.0%} by seed)",
            [lower, *by_seed],
        ),
        ("docs/objectives.md", "what only the pair says is {}, {} and {} more", more),
    ]


def of_the_rest() -> list[tuple[str, str, list[Any]]]:
    molt = {(row["kind"], row["k"]): row for row in newest("molt")["rows"]}
    ours, theirs, wide = molt["molt", 8], molt["transcoder", 8], molt["transcoder", 32]
    shown = newest("features")
    largest, far = shown["rows"][-1], shown["extrapolated"]
    pages = newest("pages")
    moments = [
        best_run(f"adam{how}") for how in (" optim.moments=bfloat16", " optim.moments=8bit", "")
    ]
    signum = {run["lr"]: run["fvu"] for one in records("optimisers") for run in one["runs"]
              if run["optim"] == "signum"}  # fmt: skip
    return [
        (
            "docs/choose.md",
            "an error of {:.3f} instead of {:.3f} and a Jacobian that is closer to the MLP's, {:.3f} "
            "instead of {:.3f}; a transcoder with 32 active has {:.3f}",
            [
                ours["nmse"],
                theirs["nmse"],
                ours["jacobian_cosine"],
                theirs["jacobian_cosine"],
                wide["nmse"],
            ],
        ),
        (
            "docs/choose.md",
            "FVU {:.3f} and {:.3f}, with float32 {:.3f}",
            [run["fvu"] for run in moments],
        ),
        ("docs/choose.md", "stays behind in short runs ({:.3f};", [best_run("signum")["fvu"]]),
        (
            "docs/performance.md",
            "{} did as well ({:.4f}), {} came to {:.3f}",
            [power(8e-3), signum[8e-3], power(1e-3), signum[1e-3]],
        ),
        (
            "docs/features.md",
            "{:,} features on {:,} tokens take {:.0f} s of one core and {:.1f} GB",
            [
                largest["features"],
                largest["tokens"],
                largest["read_cpu_s"] + largest["finish_cpu_s"],
                largest["peak_gb"],
            ],
        ),
        (
            "docs/features.md",
            "come to {:.0f} minutes of a core and {:.2g} GB",
            [far["cpu_minutes"], far["peak_gb"]],
        ),
        (
            "docs/features.md",
            "with {} cores, {:.0%} of which other processes used",
            [pages["machine"]["cores"], pages["busy_elsewhere"]],
        ),
        (
            "docs/features.md",
            "Writing it took {:.0f} minutes while those ran, at most {:.0f} MB",
            [pages["write_seconds"] / 60, pages["write_peak_mb"]],
        ),
        (
            "docs/features.md",
            "{:.1f} kB a feature ({:.0f} MB), the open page {:.0f} MB",
            [1e3 * pages["site_mb"] / pages["features"], pages["site_mb"], pages["browser_mb"]],
        ),
    ]


def of_speed() -> list[tuple[str, str, list[Any]]]:
    where = "docs/performance.md"
    quotes = []
    for kind, begins in (
        ("avx512", "With AVX-512 our exponents are {:.2f} ± {:.2f} with F (below 1, because"),
        ("avx2", "the exponents are {:.2f} ± {:.2f} with F"),
    ):
        curves = newest_benches(results.RESULTS, kind)
        ours, dense = (
            {size: curves[size]["fits"][who] for size in "FkLB"}
            for who in ("dictlearn", "dense autograd")
        )
        plus = [[ours[size]["exponent"], ours[size]["error"]] for size in "FkLB"]
        quotes += [
            (where, begins, plus[0]),
            (
                where,
                "{:.2f} ± {:.2f} with k, {:.2f} ± {:.2f} with L and {:.2f} ± {:.2f} with B, dense "
                "autograd's {:.2f}, {:.2f}, {:.2f} and {:.2f}"
                + ("; at" if kind == "avx2" else ". At"),
                [*plus[1], *plus[2], *plus[3], *(dense[size]["exponent"] for size in "FkLB")],
            ),
        ]
    return [*quotes, *of_avx512(where), *of_avx2(where)]


def times(cases: dict[str, Any], rival: str, *names: str, how: str = "dictlearn") -> list[float]:
    return [cases[name]["times_ours"][how][rival] for name in names]


SAES, FLOAT32, DENSE = ("sae-8k", "sae-24k"), "dictlearn, float32 selection", "dense autograd"


def of_avx512(where: str) -> list[tuple[str, str, list[Any]]]:
    cases = newest_benches(results.RESULTS, "avx512")
    near = [
        share
        for name in (*SAES, "clt-4-768", "clt-12")
        for who, share in cases[name]["of_floor"].items()
        if who.startswith("dictlearn")
    ]
    at = {name: cases[name]["of_floor"]["dictlearn"] for name in ("clt-4", "molt", "molt-496")}
    return [
        (
            where,
            "{:.1f} and {:.1f} times SAELens and {:.1f} and {:.1f} times sparsify with selection in "
            "fixed point, {:.1f} and {:.1f} and {:.1f} and {:.1f} in float32; the CLT of 12 layers "
            "{:.1f} times dense autograd, those of 4 layers {:.1f} and, at pico's size, {:.1f}; MOLTs "
            "{:.1f} and {:.1f}.",
            [
                *times(cases, "SAELens", *SAES),
                *times(cases, "sparsify", *SAES),
                *times(cases, "SAELens", *SAES, how=FLOAT32),
                *times(cases, "sparsify", *SAES, how=FLOAT32),
                *times(cases, DENSE, "clt-12", "clt-4-768", "clt-4", "molt", "molt-496"),
            ],
        ),
        (
            where,
            "at {:.0f} to {:.0%} of the floor, but for the CLT of pico's size ({:.0%}) and MOLTs "
            "({:.0f} and {:.0%})",
            [100 * min(near), max(near), at["clt-4"], 100 * at["molt"], at["molt-496"]],
        ),
    ]


def of_avx2(where: str) -> list[tuple[str, str, list[Any]]]:
    cases = newest_benches(results.RESULTS, "avx2")
    fixed = {name: cases[name]["a_step"]["dictlearn"]["median_ms"] for name in SAES}
    shares = [fixed[name] / cases[name]["a_step"][FLOAT32]["median_ms"] for name in SAES]
    at = {name: cases[name]["of_floor"]["dictlearn"] for name in (*SAES, "molt")}
    (saelens_8k, saelens_24k), (sparsify_8k, sparsify_24k) = (
        times(cases, rival, *SAES) for rival in ("SAELens", "sparsify")
    )
    return [
        (
            where,
            "at both sizes, {:.1f} and {:.1f} times SAELens and {:.1f} and {:.1f} times sparsify, since",
            [
                *times(cases, "SAELens", *SAES, how=FLOAT32),
                *times(cases, "sparsify", *SAES, how=FLOAT32),
            ],
        ),
        (where, "takes {:.2f} and {:.2f} of float32's step and is exact", shares),
        (
            where,
            "with {:.1f} entries of a row evaluated for 32",
            [newest("selection")["contenders of a row, pico, int16"]["mean"]],
        ),
        (
            where,
            "with {:.1f} times, and misses sparsify's by {:.0%}, with {:.1f}; at 8,192 it is {:.1f} and "
            "{:.1f}. A step is at {:.0f} and {:.0%} of the floor",
            [
                saelens_24k,
                1 - sparsify_24k / 3.5,
                sparsify_24k,
                saelens_8k,
                sparsify_8k,
                100 * at["sae-24k"],
                at["sae-8k"],
            ],
        ),
        (where, "We are at {:.0%} of the floor there", [at["molt"]]),
    ]
