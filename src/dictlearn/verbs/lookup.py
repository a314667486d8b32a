"""`dictlearn lookup`: the features most aligned with a concept vector, a line each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.text import Text
from torch import Tensor

from dictlearn import escape, marks
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.replace import check_file_replaceable
from dictlearn.disk.whole import write_json
from dictlearn.evals.table import share
from dictlearn.features.lookup import (
    DECODER,
    ENCODER,
    Match,
    difference_of_means,
    matches,
)
from dictlearn.interventions.directions import Direction, of_feature_named, of_vector, read
from dictlearn.interventions.texts import texts_of
from dictlearn.interventions.vectors import is_vector, load_vector
from dictlearn.lm.language_model import LanguageModel
from dictlearn.names import code_names, feature_name
from dictlearn.ranges import Count, Natural
from dictlearn.store.explanations import Explanation, read_explanations
from dictlearn.store.features import has_store, open_store
from dictlearn.store.records import Example, Feature
from dictlearn.store.text import token_text
from dictlearn.verbs.opened import Opened, OpensKeys, open_dictionary
from dictlearn.words import counted

AROUND = 12  # tokens of an example before its peak, and half as many after
SHORT, LONG = 14, 32  # characters before the peak: beside a match, and on a line of its own
DOES = {ENCODER: "reads", DECODER: "writes"}


class Keys(OpensKeys):
    """Declares the values that the keys of conf/lookup.yaml take."""

    vector: str | None
    feature: str | None
    pos: str | Sequence[str] | None
    neg: str | Sequence[str] | None
    site: str | None
    features: Count
    examples: Natural


def main(cfg: DictConfig) -> int:
    """Compares, prints a table, writes JSON where `output` says; the process's exit status."""
    by_texts = cfg.pos is not None and cfg.neg is not None
    named = [cfg.vector is not None, cfg.feature is not None, by_texts]
    if sum(named) != 1 or (cfg.pos is None) != (cfg.neg is None):
        raise ValueError(
            "nothing to look up; want vector=<file or folder>, feature=<source>/<index>, or both "
            "pos=<texts> and neg=<texts>"
        )
    output, cfg.output = cfg.output, None  # here `output` is a file, not a folder
    if output is not None:
        check_file_replaceable(Path(output), _is_record, cfg.overwrite)
    opened = open_dictionary(cfg, "look up in", "features", text=False)
    vector_D, site = direction(cfg, opened)
    found = matches(opened.dictionary, vector_D, site, cfg.features)
    rows = described(opened, found, cfg.examples)
    if output is not None:
        record = {"site": site, "norm": float(vector_D.norm()), "features": rows}
        write_json(output, record, ascii=False)
        escape.say(f"{output}: {counted(len(rows), 'feature')}")
    console = escape.console()
    for line in lines(site, rows, cfg.examples):
        console.print(line, no_wrap=True, overflow="ellipsis")
    return 0


def _is_record(data: bytes) -> bool:
    record = json.loads(data)
    return isinstance(record, dict) and record.keys() == {"site", "norm", "features"}


def direction(cfg: DictConfig, opened: Opened) -> tuple[Tensor, str]:
    """The vector [D] that the keys name, and its site. Raises ValueError if there is none."""
    lm, dictionary = opened.lm, opened.dictionary
    if cfg.feature is not None:
        named = of_feature_named(dictionary, cfg.feature, cfg.site)
    elif cfg.vector is not None:
        named = in_file(Path(cfg.vector), cfg.site, dictionary)
        named.check(lm.info)
    elif lm.tokenizer is None:
        raise ValueError(f"model.path={lm.info.name}: has no tokenizer; want vector=<file>")
    else:
        site = cfg.site or dictionary.sources[0]
        return difference_of_means(lm, texts("pos", cfg.pos), texts("neg", cfg.neg), site), site
    assert named.site is not None, "a file without one takes that of the dictionary"
    return named.vector, named.site


def in_file(path: Path, site: str | None, dictionary: Dictionary) -> Direction:
    """A saved vector at `site`, or at the first of its sites that the dictionary reads or writes."""
    sites = (*dictionary.sources, *dictionary.targets)
    if site is not None or not is_vector(path):
        return read(path, site or sites[0])
    vector = load_vector(path)
    shared = [name for name in sites if name in vector.sites]
    if not shared:
        raise ValueError(
            f"vector={path}: is at {', '.join(vector.sites)}, and the dictionary has "
            f"{', '.join(dict.fromkeys(sites))}"
        )
    return of_vector(vector, shared[0])


def texts(key: str, value: Any) -> list[str]:
    """The texts of a list, of one string with marks between them, or of a file."""
    listed = OmegaConf.to_container(value) if isinstance(value, ListConfig) else str(value)
    return [str(text) for text in texts_of(key, listed)]


def described(opened: Opened, selected: Sequence[Match], n_examples: int) -> list[dict[str, Any]]:
    """A record of each match, as plain JSON. Without a feature store it has only the cosines.

    The strongest example is always included, as there may be no description.
    """
    store, explanations = None, {}
    names = code_names(opened.dictionary.sources, opened.dictionary.code_sources)
    if has_store(opened.path):
        store = open_store(opened.path, sha256_of(opened.dictionary))
    else:
        escape.say(
            f"{opened.path}: no examples are shown, as no features are stored here; "
            "`dictlearn features` finds them"
        )
    if store is not None:
        explanations = read_explanations(store.folder, store.info.dictionary_sha256)
    rows = []
    for match in selected:
        row = {"feature": feature_name(names, match.source, match.index), **vars(match)}
        if store is not None:
            feature = store.feature(match.source, match.index)
            row |= _stored(opened.lm, feature, max(n_examples, 1))
        row |= _explained(explanations, match)
        rows.append(row)
    return rows


def _stored(lm: LanguageModel, feature: Feature, n_examples: int) -> dict[str, Any]:
    return {
        "density": feature.density,
        "maximum": feature.maximum,
        "examples": [_shown(lm, example) for example in feature.top[:n_examples]],
    }


def _shown(lm: LanguageModel, example: Example) -> dict[str, Any]:
    """An example's text in three parts: before the peak, the peak, after it."""
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


def _explained(explanations: Mapping[tuple[int, int], Explanation], match: Match) -> dict[str, Any]:
    explanation = explanations.get((match.source, match.index))
    if explanation is None:
        return {}
    return {
        "description": explanation.text,
        "reliable": explanation.reliable,
        "scores": dict(explanation.scores),
    }


def lines(site: str, rows: Sequence[Mapping[str, Any]], n_examples: int) -> Iterator[Text]:
    """One line per match, and up to `n_examples` lines below it."""
    width = max([len(row["feature"]) for row in rows], default=0)
    yield Text(f"Features along the vector at {site}")
    yield Text("reads: cosine with its encoder row; writes: with its decoder row", style="dim")
    yield Text(f"{'feature':<{width}}  {'it':<6}  cosine  density", style="dim")
    for row in rows:
        line = Text(f"{row['feature']:<{width}}  ")
        line.append(f"{DOES[row['side']]:<6}  {row['cosine']:+.3f}  ")
        line.append(f"{share(row['density']):>7}  " if "density" in row else f"{'':>9}")
        examples = row.get("examples", [])
        if row.get("description"):
            line.append(_description(row), style="" if row["reliable"] else "dim")
        elif examples:
            line.append_text(_in_context(examples[0], SHORT))
        elif "density" in row:
            line.append("never fired", style="dim")
        yield line
        for example in examples[:n_examples]:
            yield Text(f"    {example['activation']:<7.3g} ").append_text(
                _in_context(example, LONG)
            )


def _description(row: Mapping[str, Any]) -> str:
    score = row["scores"].get("balanced_accuracy")
    scored = "" if score is None else f"{score:.2f} "
    return (
        ("" if row["reliable"] else "unreliable: ")
        + scored
        + one_line(marks.plain(row["description"]))
    )


def _in_context(example: Mapping[str, Any], letters: int) -> Text:
    """The peak between << and >>, after the last `letters` characters before it."""
    before = one_line(example["before"])
    shown = Text(before[-letters:].lstrip(), style="dim")
    shown.append(f"<<{one_line(example['peak'])}>>", style="bold")
    return shown.append(one_line(example["after"]), style="dim")


def one_line(text: str) -> str:
    """Shows line breaks as a sign, drops indentation, and replaces unprintable characters."""
    text = re.sub(r"[^\S\n]*\n\s*", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
