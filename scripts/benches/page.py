"""Tables of what is on record, which scripts/docs_figures.py puts into the documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches import curves, steps
from benches.cases import CASES, OURS, PEERS
from benches.draw import AXES, KINDS, kind_of, newest
from benches.ops import OPS

PARTS = ("model", "forward", "backward", "optimiser", "data", "logging", "other")


def blocks(results: Path) -> dict[str, str]:
    """Markdown by the block's name."""
    found, readme = {}, []
    profiles = profiles_in(results)
    for kind in KINDS:
        records = newest(results, kind)
        cases = [records[name] for name in CASES if name in records]
        lines = [records[name] for name in AXES if name in records]
        ops = [record for record in records.values() if record.get("op") in OPS]
        if cases:
            tables = [f"{taken(record)}\n\n{steps.table(record)}" for record in cases]
            found[f"steps-{kind}"] = "\n\n".join(tables)
        if ops:
            found[f"ops-{kind}"] = f"{taken(ops[0])}\n\n{ops_table(ops)}"
        if lines:
            tables = [f"{taken(lines[0])}\n\n{picture('cost', kind, 'img')}"]
            found[f"curves-{kind}"] = "\n\n".join([*tables, *map(curves.table, lines)])
        if kind in profiles:
            record = profiles[kind]
            found[f"profile-{kind}"] = f"{taken(record)}\n\n{profile_table(record['rows'])}"
        beside = [case for case in cases if any(peer in case["a_step"] for peer in PEERS)]
        if kind != "cuda" and beside:
            readme.append(f"{taken(beside[0])}\n\n{times_ours(beside)}")
            if len(readme) == 1:
                readme.insert(0, picture("steps", kind, "docs/img"))
    if readme:
        found["readme"] = "\n\n".join(readme)
    return found


def profiles_in(results: Path) -> dict[str, Mapping[str, Any]]:
    """The newest profile of a training run of every kind of machine there is one of."""
    path = results / "profile.json"
    records = json.loads(path.read_text()) if path.exists() else []
    return {kind_of(record): record for record in records}


def taken(record: Mapping[str, Any]) -> str:
    """On what and when, in a line."""
    machine, versions = record["machine"], record["versions"]
    kind = kind_of(record)
    vectors = {"avx512": " with AVX-512", "avx2": " with AVX2"}.get(kind, "")
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    processor = f"{machine['cpu']}{vectors}, {threads}"
    words = [machine["gpu"] if kind == "cuda" else processor]
    words += [f"torch {versions['torch']}", record["date"]]
    if record.get("others", 0) > 0.1:
        words.append(f"other processes used {record['others']:.0%} of the cores")
    return ", ".join(words) + ":"


def picture(what: str, kind: str, folder: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{folder}/{what}-{kind}-dark.png">'
    words = {"steps": "Milliseconds of a training step", "cost": "Time a token against size"}[what]
    light = f'<img alt="{words}" src="{folder}/{what}-{kind}-light.png">'
    return f"<picture>{dark}{light}</picture>"


def times_ours(cases: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for case in cases:
        rates, size = case["tokens_per_second"], case["size"]
        times = case["times_ours"].get(OURS, {})
        theirs = [f"{times[rival]:.1f} times in {rival}" for rival in PEERS if rival in times]
        if theirs:
            lines.append(
                f"- {size['B']:,} tokens, width {size['D']:,}, {size['F']:,} features: a step takes "
                f"{1e3 * size['B'] / rates[OURS]:,.0f} ms in {OURS}, {', '.join(theirs)}"
            )
    return "\n".join(lines)


def ops_table(records: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| operation | ms | ms, torch | times ours |", "|---|---|---|---|"]
    for record in records:
        ms = [record["a_call"][who]["median_ms"] for who in (OURS, "torch")]
        cells = [record["op"], *(f"{value:.2f}" for value in ms), f"{record['times_ours']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def profile_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Shares of a step; `outside` is what model, dictionary and optimiser don't take."""
    head = ["dict", "ms a step", *PARTS, "checkpoints", "outside"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        shares = [*(row["shares"][part] for part in PARTS), row["checkpoint_share"], row["outside"]]
        cells = [row["kind"], f"{row['ms_a_step']:.0f}", *(f"{share:.1%}" for share in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
