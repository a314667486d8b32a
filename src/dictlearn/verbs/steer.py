"""`dictlearn steer`: a model's text before and after, side by side, and the KL of the change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from rich import box
from rich.table import Table
from rich.text import Text

from dictlearn import escape, marks
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.replace import check_file_replaceable
from dictlearn.disk.whole import write_json
from dictlearn.interventions import directions
from dictlearn.interventions import run as passes
from dictlearn.interventions.concept.settings import ConceptStudy
from dictlearn.interventions.edits import Edit, Push
from dictlearn.interventions.introspection import Introspection
from dictlearn.interventions.steering import (
    FACTORS,
    PLAIN,
    Op,
    Steered,
    When,
    decoded,
    kl_per_token,
    prompt_tokens,
    steered_feature,
)
from dictlearn.lm.language_model import LanguageModel
from dictlearn.names import code_names, feature_name, feature_named
from dictlearn.ranges import Count, NonNegative, Seed
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import FeatureStore, has_store, open_store
from dictlearn.verbs import concept, introspection
from dictlearn.verbs.lookup import texts
from dictlearn.verbs.opened import OpensKeys, open_dictionary, where
from dictlearn.words import counted

WIDTH, WIDEST = 80, 120  # columns of the two texts where there is no terminal, and at most
UNITS = {
    "maximum": "× its largest activation",
    "mean": "× its mean activation",
    "activation": "of activation",
    "vector": "× the vector",
}


class Keys(OpensKeys):
    """Declares the values that the keys of conf/steer.yaml take."""

    feature: str | Sequence[str] | None
    min_output_score: float | None
    vector: str | None
    site: str | None
    prompts: str | Sequence[str] | None
    op: Op
    strength: float | Sequence[float]
    unit: Literal["maximum", "mean", "activation"]
    when: When
    gate: str | None
    tokens: Count
    temperature: NonNegative
    seed: Seed | Sequence[Seed]


def main(cfg: DictConfig) -> int:
    """Generates, prints, writes JSON where `output` says; the process's exit status."""
    if cfg.get("study"):
        return study(cfg)
    _check(cfg)
    output, cfg.output = cfg.output, None  # here `output` is a file, not a folder
    if output is not None:
        check_file_replaceable(Path(output), _is_record, cfg.overwrite)
    lm, dictionaries, steered = opened(cfg)
    rows = []
    for name, about, one in steered:
        for row in steer(lm, dictionaries, one, cfg):
            rows.append({"steered": name, "description": about, **row})
    if output is not None:
        write_json(output, record(cfg, lm, rows), ascii=False)
        escape.say(f"{output}: {counted(len(rows), 'text')}, before and after")
    show(rows, cfg)
    return 0


def study(cfg: DictConfig) -> int:
    """Runs the protocol of `study=`; each has a file of its own beside this one."""
    settings = instantiate(cfg.study)
    match settings:
        case Introspection():
            return introspection.main(cfg, settings)
        case ConceptStudy():
            return concept.main(cfg, settings)
    raise ValueError(f"study: {type(settings).__name__} is no study that steer knows")


def _check(cfg: DictConfig) -> None:
    """Raises ValueError for keys that contradict each other, before anything is opened."""
    if (cfg.feature is None) == (cfg.vector is None):
        both = (
            "feature= and vector= were both given"
            if cfg.feature is not None
            else "nothing to steer by"
        )
        raise ValueError(f"{both}; want feature=<source>/<index> or vector=<a direction>")
    if cfg.prompts is None:
        raise ValueError('prompt: want the text to go on from, such as prompt="import os"')
    if cfg.gate is not None and cfg.when == "always":
        raise ValueError("gate: is asked only with when=token or when=input")
    if len(listed(cfg.seed)) > 1 and cfg.temperature == 0:
        raise ValueError(
            "seed: with temperature=0 every seed gives the same text; want a temperature above 0"
        )
    if cfg.vector is not None and cfg.when != "always" and cfg.gate is None:
        raise ValueError(f"when={cfg.when}: a vector fires nowhere; want gate=<a feature>")


def opened(
    cfg: DictConfig,
) -> tuple[LanguageModel, list[Dictionary], list[tuple[str, str, Steered]]]:
    """The model, the dictionaries in place, and (name, description, what is steered) of each."""
    if cfg.vector is not None and cfg.run is None and cfg.dictionary is None:
        if not cfg.get("model"):
            raise ValueError("model: want the model that the vector is for, such as model=pico")
        if cfg.gate is not None:
            raise ValueError("gate: is a feature; want run= or dictionary= with it")
        direction = directions.read(cfg.vector, cfg.site)
        lm: LanguageModel = instantiate(cfg.model)
        return lm, [], [_vector(cfg, direction, lm)]
    path = Path(where(cfg, "steer", "features")[0])
    if cfg.vector is None and cfg.unit != "activation" and not has_store(path):
        raise ValueError(
            f"unit={cfg.unit}: {path} has no features/, which knows how strong features get; "
            "`dictlearn features` makes it, unit=activation does without"
        )
    one = open_dictionary(cfg, "steer", "features", text=False)
    dictionary = one.dictionary
    store = open_store(path, sha256_of(dictionary)) if has_store(path) else None
    names = code_names(dictionary.sources, dictionary.code_sources)
    gate = None if cfg.gate is None else _named("gate", cfg.gate, dictionary)
    if cfg.vector is not None:
        name, about, vector = _vector(cfg, directions.read(cfg.vector, cfg.site), one.lm)
        return one.lm, [dictionary], [(name, about, replace(vector, gate=gate))]
    steered = []
    features = [_named("feature", text, dictionary) for text in listed(cfg.feature)]
    for feature in strong_enough(cfg.min_output_score, store, features):
        size = size_of(cfg.unit, store, feature)
        target = steered_feature(dictionary, feature, size, cfg.op, cfg.site)
        about = "" if store is None else described(store, feature)
        if store is not None and (score := store.output_score(*feature)) is not None:
            about = f"{about} (output score {score:.3f})".lstrip()
        steered.append((feature_name(names, *feature), about, replace(target, gate=gate)))
    return one.lm, [dictionary], steered


def _vector(
    cfg: DictConfig, direction: directions.Direction, lm: LanguageModel
) -> tuple[str, str, Steered]:
    direction.check(lm.info)
    if direction.site is None:
        raise ValueError(
            f"vector={cfg.vector}: names no site; want site=<a site>, such as resid_post.1"
        )
    return str(cfg.vector), f"at {direction.site}", Steered(1.0, direction=direction)


def _named(key: str, name: str, dictionary: Dictionary) -> tuple[int, int]:
    names = code_names(dictionary.sources, dictionary.code_sources)
    try:
        return feature_named(name, names, dictionary.n_features)
    except ValueError as error:
        raise ValueError(f"{key}={error}") from None


def strong_enough(
    least: float | None, store: FeatureStore | None, features: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The features whose output score is at least `least`. Raises ValueError if there are none."""
    if least is None:
        return list(features)
    if store is None or store.output_scores is None:
        raise ValueError(
            f"min_output_score={least}: no output scores are here; "
            "`dictlearn features output_scores=only` measures them"
        )
    scores = {feature: store.output_score(*feature) for feature in features}
    kept = [one for one, score in scores.items() if score is not None and score >= least]
    if not kept:
        known = [score for score in scores.values() if score is not None]
        best = f"the best has {max(known):.4f}" if known else "none has a score"
        raise ValueError(f"min_output_score={least}: none of the features reaches it; {best}")
    if len(kept) < len(scores):
        escape.say(f"{counted(len(scores) - len(kept), 'feature')} below {least:g} left out.")
    return kept


def size_of(unit: str, store: FeatureStore | None, feature: tuple[int, int]) -> float:
    """What strength 1 is of a feature. Raises ValueError if it never fired where it was looked at."""
    if unit == "activation" or store is None:
        return 1.0
    known = store.feature(*feature)
    if known.dead:
        raise ValueError(
            f"feature={store.name(*feature)}: never fired on the text of `dictlearn features`, so it "
            "has no largest activation; want unit=activation"
        )
    return known.maximum if unit == "maximum" else known.mean


def described(store: FeatureStore, feature: tuple[int, int]) -> str:
    """What `dictlearn explain` wrote of a feature; "" if nothing."""
    one = read_explanations(store.folder, store.info.dictionary_sha256).get(feature)
    if one is None or not one.text:
        return ""
    return ("" if one.reliable else "unreliable: ") + marks.plain(one.text)


def steer(
    lm: LanguageModel, dictionaries: Sequence[Dictionary], one: Steered, cfg: DictConfig
) -> Iterator[dict[str, Any]]:
    """A row for each prompt, strength and seed, as plain JSON."""
    prompts = texts("prompt", cfg.prompts)
    ids = [prompt_tokens(lm, prompt, cfg.tokens) for prompt in prompts]

    def generated(changes: Sequence[Edit | Push], seed: int) -> list[list[int]]:
        placed = dictionaries if changes else ()
        options = {"max_tokens": cfg.tokens, "temperature": cfg.temperature, "seed": seed}
        return passes.generate(lm, ids, placed, changes, **options)

    plain = {seed: generated((), seed) for seed in listed(cfg.seed)}
    for strength in listed(cfg.strength)[: 1 if cfg.op in PLAIN else None]:
        edits = one.interventions(cfg.op, strength, cfg.when)
        for seed, before in plain.items():
            after = generated(edits, seed)
            for prompt, start, old, new in zip(prompts, ids, before, after, strict=True):
                old_text, new_text = decoded(lm, [old, new])
                yield {
                    "prompt": prompt,
                    "strength": None if cfg.op in PLAIN else strength,
                    "value": one.value(cfg.op, strength),
                    "seed": seed,
                    "kl": kl_per_token(lm, [*start, *old], dictionaries, edits),
                    "before": old_text,
                    "after": new_text,
                }


def record(cfg: DictConfig, lm: LanguageModel, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "model": lm.info.name,
        "revision": lm.info.revision,
        "op": cfg.op,
        "unit": _unit(cfg),
        "when": cfg.when,
        "gate": cfg.gate,
        "tokens": cfg.tokens,
        "temperature": cfg.temperature,
        "steered": list(rows),
    }


def _unit(cfg: DictConfig) -> str | None:
    if cfg.op in (*FACTORS, *PLAIN):
        return None
    return "vector" if cfg.vector is not None else cfg.unit


def _is_record(data: bytes) -> bool:
    written = json.loads(data)
    return isinstance(written, dict) and {"op", "unit", "steered"} <= written.keys()


# --- the terminal ---------------------------------------------------------------------------------


def show(rows: Sequence[Mapping[str, Any]], cfg: DictConfig) -> None:
    """Prints each text before and after, in two columns."""
    console = escape.console()
    console.width = min(console.width, WIDEST) if console.is_terminal else WIDTH
    said = None
    for row in rows:
        if row["steered"] != said:
            said = row["steered"]
            about = f"{said}  {row['description']}".rstrip()
            console.print(Text(about, style="bold"), overflow="fold")
        console.print(Text(_change(row, cfg)), overflow="fold")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=True, pad_edge=False)
        for title in ("before", "after"):
            table.add_column(title, ratio=1, overflow="fold")
        prompt = Text(row["prompt"], style="dim")
        table.add_row(*(prompt + Text(row[side]) for side in ("before", "after")))
        console.print(table)


def _change(row: Mapping[str, Any], cfg: DictConfig) -> str:
    parts = [cfg.op]
    if row["strength"] is not None:
        parts.append(f"{row['strength']:g}")
    if unit := _unit(cfg):
        parts.append(
            UNITS[unit] + (f" = {row['value']:.3g}" if unit in ("maximum", "mean") else "")
        )
    if cfg.when != "always":
        parts.append(f"(when={cfg.when}{f', gate {cfg.gate}' if cfg.gate else ''})")
    seed = f", seed {row['seed']}" if cfg.temperature > 0 else ""
    return f"{' '.join(parts)}: KL {row['kl']:.3f} nats per token{seed}"


def listed(value: Any) -> list[Any]:
    """The items of a list, or the one value."""
    return list(value) if isinstance(value, ListConfig | list | tuple) else [value]
