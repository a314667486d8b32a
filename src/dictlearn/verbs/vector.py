"""`dictlearn vector`: a concept's vector from texts with it and without, with its held-out accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.text import Text

from dictlearn import escape
from dictlearn.disk.replace import check_replaceable
from dictlearn.interventions.contrast import Fitting, check_texts, concept_vector
from dictlearn.interventions.control_vector import check_gguf, layers
from dictlearn.interventions.fits import METHODS
from dictlearn.interventions.texts import texts_of
from dictlearn.interventions.vectors import SORT, ConceptVector, load_vector
from dictlearn.ranges import Count, Decay
from dictlearn.words import counted


class Keys:
    """Declares the values that the keys of conf/vector.yaml take."""

    pos: str | Sequence[str] | None
    neg: str | Sequence[str] | None
    vector: str | None
    site: str | Sequence[str]
    method: Literal["mean", "pca", "logistic"]
    pool: Literal["last", "mean"]
    held_out: Decay
    seeds: Count
    batch: Count
    output: str | None
    gguf: str | None
    overwrite: bool


def main(cfg: DictConfig) -> int:
    """Fits or reads, prints a table, and writes what `output` and `gguf` name; the exit status."""
    by_texts = cfg.pos is not None and cfg.neg is not None
    if cfg.vector is not None and by_texts:
        raise ValueError("vector=, pos= and neg= were all given; want texts or a saved vector")
    if (cfg.vector is not None) == by_texts or (cfg.pos is None) != (cfg.neg is None):
        raise ValueError(
            "nothing to make a vector of; want pos=<texts> and neg=<texts>, each a list or a .txt or "
            ".jsonl file, or vector=<a saved one>"
        )
    if cfg.output is not None:
        check_replaceable(Path(cfg.output), SORT, cfg.overwrite)
    if cfg.gguf is not None:
        check_gguf(Path(cfg.gguf), cfg.overwrite)
    vector = load_vector(cfg.vector) if cfg.vector is not None else fitted(cfg)
    if cfg.gguf is not None:
        layers(vector.vectors)  # raises if it can't hold them, before anything is written
    console = escape.console()
    for line in lines(vector):
        console.print(line, no_wrap=True, overflow="ellipsis")
    if cfg.output is not None:
        vector.save(cfg.output, cfg.overwrite)
        escape.say(f"{cfg.output}: the vector; vector={cfg.output} names it")
    if cfg.gguf is not None:
        written = vector.write_gguf(cfg.gguf, cfg.overwrite)
        escape.say(f"{cfg.gguf}: a control vector of {counted(len(written), 'layer')}")
    return 0


def fitted(cfg: DictConfig) -> ConceptVector:
    """The vector that the texts give. They are checked before the model is loaded."""
    pos, neg = (texts_of(key, _plain(cfg[key])) for key in ("pos", "neg"))
    fitting = Fitting(cfg.method, cfg.pool, cfg.held_out, cfg.seeds, cfg.batch)
    check_texts(pos, neg, fitting)
    return concept_vector(instantiate(cfg.model), pos, neg, _plain(cfg.site), fitting)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value


def lines(vector: ConceptVector) -> Iterator[Text]:
    """What the vector is of, and a line per site; the best one is marked."""
    about = vector.provenance
    width = max(map(len, vector.sites))
    method = METHODS.get(str(about.get("method")), about.get("method"))
    yield Text(
        f"{method}, {about.get('pool')}: {about.get('n_pos')} texts with the concept, "
        f"{about.get('n_neg')} without, on {about.get('model')}"
    )
    yield Text(f"{'site':<{width}}  accuracy    std     d'    norm", style="dim")
    for site, score in vector.scores.items():
        parts = (
            (score.accuracy, "8.3f"),
            (score.std, "5.3f"),
            (score.separation, "5.2f"),
            (score.norm, "6.4g"),
        )
        cells = ["–".rjust(int(form[0])) if v is None else format(v, form) for v, form in parts]
        best = "  best" if site == vector.best and len(vector.sites) > 1 else ""
        yield Text(f"{site:<{width}}  {'  '.join(cells)}{best}")
    held_out = about.get("held_out")
    if isinstance(held_out, float) and held_out:
        yield Text(
            f"accuracy: on {held_out:.0%} of the texts, held out, over {about.get('seeds')} splits; "
            "chance is 0.5",
            style="dim",
        )
