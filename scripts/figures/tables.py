"""The tables of README.md and docs/ that are made of benchmarks/results/, by the name in their mark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benches import page
from peers import report, results

from figures import newest, records


def made(name: str) -> str:
    """Markdown.

    Raises:
        ValueError: where no function has this name, or no figures are on record.
    """
    if name in TABLES:
        return TABLES[name]()
    found = page.blocks(results.RESULTS)
    if name in found:
        return found[name]
    if name.endswith("-cuda"):
        return "To be taken: `make bench-gpu`."
    raise ValueError(f"table: {name}: no such table; there are {', '.join([*TABLES, *found])}")


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    written = ["| " + " | ".join(cells) + " |" for cells in lines]
    written[1] = written[1].replace(" ", "")
    return "\n".join(line.replace("|  |", "| |") for line in written)


def sparsities() -> str:
    pairs = {pair["pair"]: pair for pair in newest("peers")["pairs"]}
    shown = {
        "SAELens batchtopk": "`sparsity=batchtopk`",
        "SAELens topk": "`sparsity=topk`",
        "SAELens jumprelu": "`sparsity=jumprelu`",
        "SAELens matryoshka": "`dict=matryoshka` (on batchtopk)",
    }
    rows = [
        (words, f"{pairs[name]['fvu'][0]:.4f}", f"{pairs[name]['dead'][0]:.2%}")
        for name, words in shown.items()
    ]
    return markdown(("", "FVU", "features that never fired"), rows)


def peers() -> str:
    own_recipe = {False: "{}, its own {} recipe", True: "{}"}
    rows = []
    for pair in newest("peers")["pairs"]:
        name = own_recipe[pair["equal_settings"]].format(*pair["pair"].split(", "))
        fvu, dead = pair["fvu"], pair["dead"]
        figures = [*(f"{value:.4f}" for value in fvu), f"{pair['fvu_ratio']:.3f}"]
        rows.append((name, *figures, *(f"{value:.2%}" for value in dead)))
    return markdown(("", "FVU ours", "theirs", "ratio", "dead ours", "theirs"), rows)


def peers_speed() -> str:
    return report.speed_table(newest("peers_speed")["a_step"])


def learning_rates() -> str:
    runs = newest("learning_rates")["runs"]
    rates = sorted({run["lr"] for run in runs})
    rows = []
    for features in sorted({run["features"] for run in runs}):
        of_width = {run["lr"]: run for run in runs if run["features"] == features}
        best = min(of_width, key=lambda rate: of_width[rate]["fvu"])
        fvu = [f"{of_width[rate]['fvu']:.3f}" for rate in rates]
        fvu[rates.index(best)] = f"**{fvu[rates.index(best)]}**"
        dead = ", ".join(f"{of_width[rate]['dead']:.0%}" for rate in rates[1:])
        rows.append((f"{features:,}", *fvu, dead))
    never = f"never fired, at {', '.join(map(power, rates[1:]))}"
    return markdown(("features", *map(power, rates), never), rows)


def molt() -> str:
    head = ("kind", "features", "parameters", "L0", "NMSE", "Jacobian cosine")
    rows = [
        (
            row["kind"], f"{row['features']:,}", f"{row['parameters']:,}", f"{row['l0']:.1f}",
            f"{row['nmse']:.3f}", f"{row['jacobian_cosine']:.3f}",
        )
        for row in newest("molt")["rows"]
    ]  # fmt: skip
    return markdown(head, rows)


def mse_then_kl() -> str:
    head = ("", "CE increase", "KL", "FVU", "top-1", "dead")
    rows = []
    for name, figures in newest("mse_then_kl")["medians"].items():
        errors = [f"{figures[key]:.4f}" for key in ("ce_increase", "kl", "fvu")]
        shares = [f"{figures[key]:.1%}" for key in ("top1_agreement", "dead")]
        rows.append((f"`{name}`", *errors, *shares))
    return markdown(head, rows)


def cooccurrence() -> str:
    head = ("objective", "CE increase", "KL", "FVU", "pairs' share")
    rows = []
    for name, figures in newest("cooccurrence")["medians"].items():
        errors = [f"{figures[key]:.3f}" for key in ("ce_increase", "kl", "fvu")]
        pairs = f"{figures['cooccurrence/share']:.1%}", f"{figures['cooccurrence/nats']:.3f}"
        rows.append((f"`{name}`", *errors, *pairs))
    return markdown((*head, "nats a pair adds where both fire"), rows)


def optimisers() -> str:
    head = ("optimiser", "rate", "FVU", "increase of CE, nats", "dead", "bytes of state a number")
    names = {
        "adam": "Adam",
        "adam optim.moments=bfloat16": "Adam, moments in bfloat16",
        "adam optim.moments=8bit": "Adam, moments in 8 bits",
        "muon": "Muon",
        "signum": "signum, schedule-free",
    }
    rows = []
    for optimiser, name in names.items():
        run = best_run(optimiser)
        errors = f"{run['fvu']:.4f}", f"{run['ce_increase']:.3f}"
        dead, state = f"{run['dead']:.1%}", f"{run['state_bytes']:.0f}"
        rows.append((name, power(run["lr"]), *errors, dead, state))
    return markdown(head, rows)


def best_run(optimiser: str) -> dict[str, Any]:
    """At the rate with the least FVU of those on record."""
    runs = [run for record in records("optimisers") for run in record["runs"]]
    return min((run for run in runs if run["optim"] == optimiser), key=lambda run: run["fvu"])


def steering() -> str:
    """Each method's area, and its rate and costs at the dearest strength within the KL limit."""
    study = newest("steering")["study"]
    limit = study["settings"]["kl_limit"]
    head = ("method", "area", "95 %", "strength", "rate", "KL", "CE", "whole", "repetition")
    rows = []
    for row in study["results"]:
        area, none = row["area"], row["method"] == "none"
        within = [point for point in row["points"] if point["kl"]["mean"] <= limit]
        figures = ["-"] * 6
        if within:
            point = max(within, key=lambda one: one["kl"]["mean"])
            strength = "-" if point["strength"] is None else f"{point['strength']:g}"
            shares = [f"{point[name]['mean']:.1%}" for name in ("rate", "whole", "repetition")]
            costs = [f"{point[name]['mean']:.3f}" for name in ("kl", "ce_increase")]
            figures = [strength, shares[0], *costs, *shares[1:]]
        interval = f"{area['low']:+.3f} to {area['high']:+.3f}"
        if area["low"] == area["high"]:
            interval = "the same for every seed"
        areas = ("-", "-") if none else (f"{area['mean']:+.3f}", interval)
        rows.append((row["method"], *areas, *figures))
    return markdown(head, rows)


def pages() -> str:
    names = {
        "open_page": "opening the page",
        "keystroke": "a keystroke in the search",
        "open_feature": "opening a feature",
    }
    return _times(newest("pages"), names)


def graph_page() -> str:
    names = {
        "open": "opening the page",
        "click": "a click on a node",
        "slider": "a step of both sliders",
        "hover": "pointing at a node",
        "suggest": "suggesting groups",
    }
    return _times(newest("graph_page"), names)


def attribution() -> str:
    head = (
        "dictionary", "tokens", "feature nodes", "ours, CPU s", "circuit-tracer, CPU s", "ratio, CPU",
        "ratio, wall",
    )  # fmt: skip
    rows = [
        (
            row["dictionary"],
            str(row["tokens"]),
            f"{row['nodes']:,} of {row['active']:,}",
            *(f"{row[key]:.2f}" for key in ("ours_cpu", "theirs_cpu")),
            *(f"{row[key]:.1f}" for key in ("ratio_cpu", "ratio_wall")),
        )
        for row in newest("attribution")["rows"]
    ]
    return markdown(head, rows)


def _times(record: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Medians and slowest times, in milliseconds in the record, under these words."""
    rows = [
        (words, time_of(record[f"{key}_ms"]), time_of(record[f"{key}_ms_slowest"]))
        for key, words in names.items()
    ]
    return markdown(("", "median", "slowest"), rows)


def descriptions() -> str:
    summary = newest("descriptions")["summary"]
    scores, baselines = summary["scores"]["balanced_accuracy"], summary["baselines"]
    levels, random = summary["described_at_balanced_accuracy"], baselines["random_dictionary"]
    reliable = summary["reliable"]
    rows = [
        (
            f"described at a balanced accuracy of {' / '.join(levels)}",
            " / ".join(f"{share:.1%}" for share in levels.values()),
        ),
        ("reliable (0.8, and precision 0.25)", f"{reliable:,}, {reliable / summary['live']:.1%}"),
        ("left out: fewer than 10 firings in a half", f"{summary['left_out']:,}"),
        ("median balanced accuracy", f"{scores['p50']:.2f}"),
        ("the same, shuffled descriptions", f"{baselines['shuffled']['p50']:.2f}"),
        (f"the same, random dictionary ({random['n']:,} features)", f"{random['p50']:.2f}"),
    ]
    return markdown((f"of {summary['live']:,} live features", ""), rows)


def described() -> str:
    head = ("feature", "description", "balanced accuracy", "precision", "recall", "examples")
    return markdown(head, newest("descriptions")["rows"])


def power(rate: float) -> str:
    """4e-3 for 0.004."""
    digits, _, exponent = f"{rate:.1e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def time_of(milliseconds: float) -> str:
    """At two digits."""
    if milliseconds < 200:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.2g} s"


def stored_reading() -> str:
    """How fast a store is read, beside the plain read of its files."""
    speeds = newest_with("cache", "read")["mb_per_cpu_second"]
    rows = [
        (name, f"{speed / 1000:.2g}", f"{speed / speeds['plain']:.0%}")
        for name, speed in speeds.items()
    ]
    return markdown(("read", "GB/s of CPU time, of bfloat16", "of the plain read"), rows)


def stored_training() -> str:
    """Held-out FVU of runs on live and on stored activations."""
    fvu = newest_with("cache", "train")["fvu"]
    n = len(fvu["live"])
    cells = {kind: [*(f"{v:.4f}" for v in values), *[""] * n][:n] for kind, values in fvu.items()}
    head = ("activations", *(f"seed {seed}" for seed in range(n)))
    return markdown(head, [(kind, *cells[kind]) for kind in fvu])


def shared() -> str:
    """Eight runs one after the other, and on one stream: whole processes, few steps and more."""
    head = ("steps", "one after the other", "together", "ratio", "ratio by the clock")
    rows, taken = [], []
    for one in records("shared"):
        steps = dict(text.split("=") for text in one["overrides"])["steps"]
        apart, together = sum(one["alone_cpu_seconds"]), one["shared_cpu_seconds"]
        taken.append((int(steps), apart, together))
        seconds = f"{apart:.0f} s", f"{together:.0f} s"
        rows.append((steps, *seconds, f"{one['cpu_ratio']:.2f}", f"{one['ratio']:.2f}"))
    more, apart, together = (last - first for first, last in zip(*taken, strict=True))
    each = f"{apart / more:.2f} s", f"{together / more:.2f} s"
    return markdown(head, [*rows, ("each step more", *each, f"{together / apart:.2f}", "")])


def newest_with(name: str, key: str) -> dict[str, Any]:
    """The newest record that has the key, in a benchmark that records figures of several kinds."""
    return next(record for record in reversed(records(name)) if key in record)[key]


def shares() -> str:
    """The larger of a case's two differences, by kind and sparsity."""
    cells = {(row["kind"], row["sparsity"]): row for row in _shares() if row["objective"] == "mse"}
    kinds, sparsities = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    rows = [(kind, *(_apart(cells[kind, name]) for name in sparsities)) for kind in kinds]
    return markdown(("", *(f"`{name}`" for name in sparsities)), rows)


def shares_by_objective() -> str:
    cells = {(row["objective"], row["kind"]): row for row in _shares() if row["sparsity"] == "topk"}
    objectives = list(dict.fromkeys(objective for objective, _ in cells))
    kinds = ("sae", "clt")
    rows = [(name, *(_apart(cells[name, kind]) for kind in kinds)) for name in objectives]
    return markdown(("", *kinds), rows)


def _shares() -> list[dict[str, Any]]:
    return newest("ddp_table")["rows"]


def _apart(row: Mapping[str, Any]) -> str:
    return "refused" if "refused" in row else f"{max(row['gradients'], row['metrics']):.1e}"


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        sparsities, peers, peers_speed, learning_rates, molt, mse_then_kl, cooccurrence, optimisers,
        pages, graph_page, attribution, descriptions, described, stored_reading,
        stored_training, shared, steering, shares, shares_by_objective,
    )
}  # fmt: skip
