"""Tables of dictionaries over several layers, for the terminal and the report.

One table has dictionaries by figure, the other by the layers they replace. A sentence is added where
the evaluated dictionary does worse than one beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from dictlearn.evals.table import L0, Column, cell, dictionaries, figure_table

SIDE_BY_SIDE = (
    Column("parameters", "parameters", "", "", "of encoder, decoder and sparsity"),
    Column("fvu", "FVU", "", ".4f", "fraction of variance unexplained, pooled over layers"),
    Column("l0", "L0", "", L0.format, "active features per token, all layers"),
    Column("jacobian_cosine", "Jacobian\ncosine", "", ".3f", "of the MLPs' Jacobian and its own"),
    Column("jacobian_across", "across\nlayers", "", ".0%", "of its squared Jacobian"),
    Column("replacement/all_free/score", "score", "", ".3f", "all layers, free running"),
)
REPLACED = (
    Column("kl", "KL", "nats", ".4f", "KL(clean || patched), per token"),
    Column("top1_agreement", "top-1", "", ".1%", "same most likely next token as the clean model"),
    Column("ce_increase", "CE increase", "nats", "+.4f", "cross entropy, patched minus clean"),
    Column("score", "score", "", ".3f", "1 - KL / KL of zero ablation of the same layers"),
)
SETTINGS = {
    "one": "one layer",
    "half_forced": "half, teacher forced",
    "half_free": "half, free running",
    "all_forced": "all, teacher forced",
    "all_free": "all, free running",
}
SCORE = "replacement/all_free/score"


def side_by_side(record: Mapping[str, Any]) -> Iterator[tuple[str, list[str], bool]]:
    """Yields (label, cells, whether it is the dictionary) if dictionaries are beside it, else nothing."""
    entries = dictionaries(record)
    if len(entries) < 2:
        return
    for label, entry in entries.items():
        figures = entry["figures"]
        cells = [cell(column, figures) for column in SIDE_BY_SIDE[1:]]
        yield (
            label,
            [_short(entry["dictionary"]["parameters"]), *cells],
            figures is record["figures"],
        )


def replaced(record: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str], bool]]:
    """Yields (setting, label, cells, whether it is the dictionary); a setting stands once."""
    for setting, words in SETTINGS.items():
        prefix = f"replacement/{setting}/"
        for label, entry in dictionaries(record).items():
            figures = {
                name.removeprefix(prefix): value
                for name, value in entry["figures"].items()
                if name.startswith(prefix)
            }
            if figures:
                cells = [cell(column, figures) for column in REPLACED]
                yield words, label, cells, entry["figures"] is record["figures"]
                words = ""


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """One sentence for each other dictionary that replaces the model better, naming the worse figures."""
    (label, own), *others = dictionaries(record).items()
    ours = own["figures"]
    return [
        _verdict(label, ours, other, entry["figures"])
        for other, entry in others
        if _both(SCORE, ours, entry["figures"]) and ours[SCORE] < entry["figures"][SCORE]
    ]


def _verdict(label: str, ours: Mapping[str, Any], other: str, theirs: Mapping[str, Any]) -> str:
    worse = []
    if _both("fvu", ours, theirs) and ours["fvu"] > theirs["fvu"]:
        worse.append(f"its FVU ({ours['fvu']:.4f} against {theirs['fvu']:.4f})")
    if _both("l0", ours, theirs) and ours["l0"] < 0.99 * theirs["l0"]:
        worse.append(f"its L0 ({cell(L0, ours)} against {cell(L0, theirs)} active features)")
    key = "jacobian_cosine"
    if _both(key, ours, theirs) and ours[key] < theirs[key]:
        across = ours.get("jacobian_across")
        more = f"; {across:.0%} of its squared Jacobian joins different layers" if across else ""
        worse.append(f"its Jacobian cosine ({ours[key]:.3f} against {theirs[key]:.3f}{more})")
    key = "replacement/all_forced/score"
    if not worse and _both(key, ours, theirs) and ours[key] >= theirs[key]:
        figures = f"{ours[key]:.3f} against {theirs[key]:.3f} teacher forced"
        worse.append(f"how its errors compound from layer to layer (its score is {figures})")
    why = _listed(worse) if worse else "none of the figures taken here, which do not say why"
    verb = "are" if len(worse) > 1 else "is"
    scores = f"{ours[SCORE]:.3f}, below the {theirs[SCORE]:.3f} of {other}"
    beginning = f"All layers replaced and free running, the score of the {label} is {scores}"
    return f"{beginning}: worse {verb} {why}."


def _both(key: str, *figures: Mapping[str, Any]) -> bool:
    return all(f.get(key) is not None for f in figures)


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _short(count: int) -> str:
    """A count in three digits, such as 3.1M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def renderables(record: Mapping[str, Any]) -> list[Table | str]:
    """The tables that have rows, then the sentences, for a rich console."""
    parts: list[Table | str] = []
    rows = list(side_by_side(record))
    if rows:
        table = figure_table(SIDE_BY_SIDE, "side by side")
        for label, cells, own in rows:
            table.add_row(label, *cells, style="bold" if own else "")
        parts += [table, ""]
    settings = list(replaced(record))
    if settings:
        several = len({label for _, label, _, _ in settings}) > 1
        table = figure_table(REPLACED, "layers replaced", *(["of"] if several else []))
        for setting, label, cells, own in settings:
            names = (setting, label) if several else (setting,)
            table.add_row(*names, *cells, style="bold" if own and several else "")
        parts += [table, ""]
    for sentence in verdicts(record):
        parts += [sentence, ""]
    return parts
