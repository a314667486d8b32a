"""`dictlearn lookup`: the features most aligned with a concept vector, side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.whole import write_json
from dictlearn.features.lookup import Match, difference_of_means, matches, vector_from
from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Natural
from dictlearn.store.explanations import Explanation, read_explanations
from dictlearn.store.features import has_store, open_store
from dictlearn.store.records import Example, Feature
from dictlearn.store.text import token_text
from dictlearn.verbs.opened import Opened, open_dictionary

BETWEEN = "|||"  # several texts in one string
AROUND = 12  # tokens of an example shown before its peak, and half as many after


class Keys:
    """What the keys of conf/lookup.yaml take."""

    run: str | None
    dictionary: str | None
    vector: str | None
    pos: str | Sequence[str] | None
    neg: str | Sequence[str] | None
    site: str | None
    features: Count
    examples: Natural
    output: str | None


def main(cfg: DictConfig) -> int:
    """Compares, prints a table, writes JSON where `output` says; the process's exit status."""
    for key in ("features", "examples"):
        if cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]}: want at least 1")
    by_texts = cfg.pos is not None and cfg.neg is not None
    if (cfg.vector is not None) == by_texts or (cfg.pos is None) != (cfg.neg is None):
        raise ValueError(
            "nothing to look up; want vector=<file>, or both pos=<texts> and neg=<texts>"
        )
    output, cfg.output = cfg.output, None  # a file here, no folder
    opened = open_dictionary(cfg, "look up in", "features", text=False)
    lm, dictionary = opened.lm, opened.dictionary
    site = cfg.site or dictionary.sources[0]
    if not by_texts:
        vector_D = vector_from(Path(cfg.vector))
    elif lm.tokenizer is None:
        raise ValueError(f"model.path={lm.info.name}: has no tokenizer; want vector=<file>")
    else:
        vector_D = difference_of_means(lm, texts(cfg.pos), texts(cfg.neg), site)
    rows = described(opened, matches(dictionary, vector_D, site, cfg.features), cfg.examples)
    if output is not None:
        record = {"site": site, "norm": float(vector_D.norm()), "features": rows}
        write_json(output, record, ascii=False)
        sys.stderr.write(f"{output}: {len(rows)} features\n")
    Console().print(table(site, rows))
    return 0


def texts(given: Any) -> list[str]:
    """A list, or one string with BETWEEN between them."""
    return (
        [str(text) for text in given]
        if isinstance(given, ListConfig)
        else str(given).split(BETWEEN)
    )


def described(opened: Opened, found: Sequence[Match], n_examples: int) -> list[dict[str, Any]]:
    """What is known of each match: plain JSON. Without a store only the cosines."""
    store, explanations = None, {}
    if has_store(opened.path):
        store = open_store(opened.path, sha256_of(opened.dictionary))
    else:
        sys.stderr.write(
            f"{opened.path}: no examples are shown, as no features are stored here; "
            "`dictlearn features` finds them\n"
        )
    if store is not None:
        explanations = read_explanations(store.folder)
    rows = []
    for match in found:
        row: dict[str, Any] = {**vars(match)}
        if store is not None:
            feature = store.feature(match.source, match.index)
            row |= _known(opened.lm, feature, n_examples)
        row |= _said(explanations, match)
        rows.append(row)
    return rows


def _known(lm: LanguageModel, feature: Feature, n_examples: int) -> dict[str, Any]:
    return {
        "density": feature.density,
        "maximum": feature.maximum,
        "examples": [_shown(lm, example) for example in feature.top[:n_examples]],
    }


def _shown(lm: LanguageModel, example: Example) -> dict[str, Any]:
    """Text with the peak apart from what stands around it."""
    assert lm.tokenizer is not None, "features were found on text"
    low = max(example.peak - AROUND, 0)
    pieces = token_text(lm.tokenizer, example.tokens[low : example.peak + AROUND // 2 + 1])
    at = example.peak - low
    before, after = "".join(pieces[:at]), "".join(pieces[at + 1 :])
    return {
        "before": before,
        "peak": pieces[at],
        "after": after,
        "activation": example.activation,
    }


def _said(explanations: Mapping[tuple[int, int], Explanation], match: Match) -> dict[str, Any]:
    found = explanations.get((match.source, match.index))
    if found is None:
        return {}
    return {
        "description": found.text,
        "reliable": found.reliable,
        "scores": dict(found.scores),
    }


def table(site: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a match; what can't be trusted says so."""
    shown = Table(title=f"features along the vector at {site}", title_justify="left")
    for name in ("feature", "side", "cosine", "density", "description", "strongest examples"):
        shown.add_column(name, justify="right" if name in ("cosine", "density") else "left")
    for row in rows:
        examples = Text()
        for number, example in enumerate(row.get("examples", [])):
            examples.append("\n" if number else "")
            examples.append(_one_line(example["before"]), style="dim")
            examples.append(_one_line(example["peak"]), style="bold reverse")
            examples.append(_one_line(example["after"]), style="dim")
        shown.add_row(
            f"{row['source']}/{row['index']}",
            row["side"],
            f"{row['cosine']:+.3f}",
            f"{row['density']:.2%}" if "density" in row else "",
            Text(_description(row)),
            examples,
        )
    return shown


def _description(row: Mapping[str, Any]) -> str:
    if not row.get("description"):
        return "no good description" if "description" in row else ""
    score = row["scores"].get("balanced_accuracy")
    scored = "" if score is None else f" ({score:.2f})"
    return ("" if row["reliable"] else "unreliable: ") + row["description"] + scored


def _one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "⏎").replace("\t", "→")
