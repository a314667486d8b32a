"""Tables of figures with their titles and units, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, OverflowMethod
from rich.table import Table
from rich.text import Text

MISSING = "\N{EN DASH}"
ACRONYMS = ("sae", "plt", "clt", "molt")
MINUS = "\N{MINUS SIGN}"
LONG = 1e3  # larger values are written with an exponent


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    unit: str  # "" for a pure number
    format: str
    meaning: str


COLUMNS = (
    Column("fvu", "FVU", "", ".4f", "fraction of variance unexplained, pooled over valid tokens"),
    Column(
        "fvu_with_special", "FVU with\nspecial", "", ".4f", "FVU with BOS and its kind included"
    ),
    Column("cosine", "cosine", "", ".3f", "mean cosine of activation and reconstruction"),
    Column("ce_increase", "CE increase", "nats", "+.4f", "cross entropy, patched minus clean"),
    Column("kl", "KL", "nats", ".4f", "KL(clean || patched), per token"),
    Column("top1_agreement", "top-1", "", ".1%", "same most likely next token as the clean model"),
)

L0 = Column("l0", "L0", "per token", ".2f", "active features per token, of all sources together")
DEAD = Column(
    "dead", "dead", "", ".2%", "share of features that never fired on the evaluated tokens"
)

PREFIXES = (
    L0,
    *(column for column in COLUMNS if column.key in ("fvu", "ce_increase", "kl", "top1_agreement")),
    DEAD,
)


def cell(column: Column, figures: Mapping[str, float | None]) -> str:
    value = figures.get(column.key)
    if value is None:
        return MISSING
    # Figures of a diverged run would be as long as a line; a count (.0f) is shown whole.
    exponent = abs(value) >= LONG and not column.format.endswith(".0f")
    form = ".2e" if exponent and column.format else column.format
    return format(value, form).replace("-", MINUS)


def rows(record: Mapping[str, Any]) -> Iterator[tuple[str, list[str], bool]]:
    """Yields (label, cells, whether it is the dictionary): the dictionary, then all beside it."""
    for label, entry in dictionaries(record).items():
        cells = [cell(column, entry["figures"]) for column in COLUMNS]
        yield label, cells, entry["figures"] is record["figures"]
    for label, figures in record["baselines"].items():
        yield label, [cell(column, figures) for column in COLUMNS], False


def prefixes(record: Mapping[str, Any]) -> Iterator[tuple[str, list[str], bool]]:
    """Yields a row for each nested dictionary, the narrowest first, then one for the whole."""
    inner = record.get("prefixes") or {}
    for label, entry in inner.items():
        yield label, [cell(column, entry["figures"]) for column in PREFIXES], False
    if inner:
        whole = f"all {record['dictionary']['n_features']:,} features"
        yield whole, [cell(column, record["figures"]) for column in PREFIXES], True


def dictionaries(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """label -> {dictionary, figures}: the evaluated dictionary, then those beside it."""
    return {label_of(record["dictionary"]): record} | record.get("beside", {})


def label_of(dictionary: Mapping[str, Any]) -> str:
    """The kind in words, such as `SAE` or `skip transcoder`."""
    kind = str(dictionary["kind"]).replace("_", " ")
    return kind.upper() if kind in ACRONYMS else kind


def facts(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of the figures that only the dictionary has."""
    f = record["figures"]
    entries: list[tuple[str, str, str]] = []
    if "l0" in f:
        n_features = record["dictionary"]["n_features"] * record["dictionary"]["code_sources"]
        tokens = f"{f['tokens']:,.0f} tokens"
        spread = f"{l0_range(f)} on 90% of tokens"
        middle = f"90% in {_density(f['density_p05'])} to {_density(f['density_p95'])}"
        entries += [
            ("L0", cell(L0, f), f"active features per token; {spread}"),
            ("dead", cell(DEAD, f), f"of {n_features:,} features never fired in {tokens}"),
            ("density", _density(f["density_p50"]), f"of tokens, the median feature; {middle}"),
            ("dense", f"{f['high_density']:.0f}", "features fire on more than 10% of tokens"),
        ]
    if f.get("gamma") is not None:
        gamma = ".2e" if abs(f["gamma"]) >= LONG else ".3f"
        entries.append(("gamma", f"{f['gamma']:{gamma}}", "1 is unbiased, below 1 is shrunk"))
    if "ce_clean" in f:
        scored = f"{f['scored_tokens']:,.0f} tokens scored"
        entries.append(("CE clean", f"{f['ce_clean']:.4f}", f"nats per token, {scored}"))
    if "ce_recovered" in f:
        meaning = "of the CE that zero ablation costs"
        entries.append(("recovered", _share(f["ce_recovered"]), meaning))
    if f.get("nearest_cosine_p50") is not None:
        meaning = "cosine to the nearest other feature's decoder vector, the median"
        entries.append(("nearest", f"{f['nearest_cosine_p50']:.3f}", meaning))
    if f.get("alignment_p50") is not None:
        meaning = "cosine of a feature's encoder and decoder, the median"
        entries.append(("alignment", f"{f['alignment_p50']:.3f}", meaning))
    if f.get("jacobian_cosine") is not None:
        meaning = "cosine of the MLPs' Jacobian and the dictionary's"
        if len(record["dictionary"]["sources"]) > 1:
            meaning += f"; {f['jacobian_across']:.0%} of its own joins different layers"
        entries.append(("Jacobian", f"{f['jacobian_cosine']:.3f}", meaning))
    if f.get("cooccurrence/share") is not None:
        meaning = "of co-firing pairs' information on the next token, in neither feature alone"
        entries.append(("pairs", f"{f['cooccurrence/share']:.1%}", meaning))
    return entries


def l0_range(figures: Mapping[str, float]) -> str:
    """The 5% and 95% quantiles of L0, as one number where they are the same."""
    return " to ".join(dict.fromkeys(f"{figures[key]:.0f}" for key in ("l0_p05", "l0_p95")))


def share(value: float) -> str:
    """A share of tokens as a percentage with two decimals, as on the feature pages."""
    return "<0.01%" if 0 < value < 5e-5 else f"{value:.2%}"


def _share(value: float) -> str:
    return f"{100 * value:.2e}%" if abs(value) >= LONG else f"{value:.1%}"


def _density(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-")


def renderable(record: Mapping[str, Any]) -> Group:
    """The tables and the facts below them, for a rich console."""
    tables = [_filled(COLUMNS, rows(record))]
    if record.get("prefixes"):
        tables += [Text(), _filled(PREFIXES, prefixes(record))]
    below = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    for name, value, meaning in facts(record):
        below.add_row(Text(name, style="dim"), Text(value, style="bold"), Text(meaning))
    return Group(Text(), *tables, Text(), below, Text())


def figure_table(
    columns: Iterable[Column], *labels: str, overflow: OverflowMethod = "ellipsis"
) -> Table:
    """An empty table for a rich console, with a column for each label, then one for each figure."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for label in labels:
        table.add_column(label, vertical="bottom", no_wrap=overflow != "fold", overflow=overflow)
    for column in columns:
        heading = f"{column.title}\n{column.unit}" if column.unit else column.title
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    return table


def _filled(columns: Iterable[Column], rows: Iterable[tuple[str, list[str], bool]]) -> Table:
    table = figure_table(columns, "")
    for label, cells, is_dictionary in rows:
        table.add_row(label, *cells, style="bold" if is_dictionary else "")
    return table
