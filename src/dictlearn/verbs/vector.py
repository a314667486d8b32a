"""`dictlearn vector`: a concept's vector from texts, tested on others; or what a feature writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.text import Text

from dictlearn import escape
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.disk.replace import check_replaceable
from dictlearn.interventions.contrast import Fitting, check_texts, concept_vector
from dictlearn.interventions.control_vector import check_gguf, layers
from dictlearn.interventions.directions import of_feature_named, written_by
from dictlearn.interventions.fits import METHODS
from dictlearn.interventions.made_for import made_for
from dictlearn.interventions.texts import texts_of
from dictlearn.interventions.vectors import SORT, ConceptVector, Separation, load_vector
from dictlearn.lm.load import read_info
from dictlearn.names import code_names, feature_named
from dictlearn.ranges import Count, Decay
from dictlearn.verbs.opened import OpensKeys, own_model, where
from dictlearn.verbs.trained_in import anywhere
from dictlearn.words import counted


class Keys(OpensKeys):
    """Declares the values that the keys of conf/vector.yaml take."""

    pos: str | Sequence[str] | None
    neg: str | Sequence[str] | None
    vector: str | None
    feature: str | None
    site: str | Sequence[str] | None
    method: Literal["mean", "pca", "logistic"]
    pool: Literal["last", "mean"]
    held_out: Decay
    seeds: Count
    batch: Count
    gguf: str | None


def main(cfg: DictConfig) -> int:
    """Fits or reads, prints a table, and writes what `output` and `gguf` name; the exit status."""
    _check(cfg)
    if cfg.output is not None:
        check_replaceable(Path(cfg.output), SORT, cfg.overwrite)
    if cfg.gguf is not None:
        check_gguf(Path(cfg.gguf), cfg.overwrite)
    vector = made(cfg)
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


def _check(cfg: DictConfig) -> None:
    """Raises ValueError unless one kind of origin is named."""
    texts = [key for key in ("pos", "neg") if cfg[key] is not None]
    named = [key for key in ("vector", "feature") if cfg[key] is not None]
    if len(texts) == 1 or len(named) + bool(texts) == 0:
        raise ValueError(
            "nothing to make a vector of; want pos=<texts> and neg=<texts>, each a list or a .txt or "
            ".jsonl file, or vector=<a saved one>, or run=<a run> feature=<source>/<index>"
        )
    if len(named) + bool(texts) > 1:
        given = " and ".join(f"{key}=" for key in [*texts, *named])
        raise ValueError(f"{given} were given; want texts, a saved vector or a feature")


def made(cfg: DictConfig) -> ConceptVector:
    """The vector of the texts, the saved one, or what the feature writes."""
    if cfg.vector is not None:
        return load_vector(cfg.vector)
    return written(cfg) if cfg.feature is not None else fitted(cfg)


def written(cfg: DictConfig) -> ConceptVector:
    """What a feature of `run` or `dictionary` writes, at all sites or at `site`."""
    path, _ = where(cfg, "take the feature from", "vectors")
    dictionary = load_dictionary(path)
    trained = anywhere(dictionary.provenance, path)
    names = code_names(dictionary.sources, dictionary.code_sources)
    one = of_feature_named(dictionary, cfg.feature, None)
    source, index = feature_named(cfg.feature, names, dictionary.n_features)
    vectors = written_by(dictionary, source, index)
    asked = list(vectors) if cfg.site is None else listed(cfg.site)
    if missing := [site for site in asked if site not in vectors]:
        raise ValueError(f"site={missing[0]}: the feature writes to {', '.join(vectors)}")
    about = {"method": "feature", **one.provenance}
    name, revision = own_model(trained, path), trained.get("revision")
    if name is not None:
        about |= made_for(read_info(name, revision if isinstance(revision, str) else None))
    kept = {site: vectors[site] for site in vectors if site in asked}
    scores = {site: Separation(None, None, None, float(v.norm())) for site, v in kept.items()}
    return ConceptVector(kept, scores, about)


def fitted(cfg: DictConfig) -> ConceptVector:
    """The vector that the texts give. They are checked before the model is loaded."""
    pos, neg = (texts_of(key, _plain(cfg[key])) for key in ("pos", "neg"))
    fitting = Fitting(cfg.method, cfg.pool, cfg.held_out, cfg.seeds, cfg.batch)
    check_texts(pos, neg, fitting)
    return concept_vector(
        instantiate(cfg.model), pos, neg, _plain(cfg.site) or "resid_post", fitting
    )


def listed(value: Any) -> list[str]:
    """The items of a list, or the one value."""
    return [value] if isinstance(value, str) else list(value)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value


def title(about: Mapping[str, Any]) -> str:
    """What a vector is of, by its provenance."""
    if about.get("method") == "feature":
        return f"what feature {about.get('feature')} writes, in {about.get('model')}"
    method = METHODS.get(str(about.get("method")), about.get("method"))
    return (
        f"{method}, {about.get('pool')}: {about.get('n_pos')} texts with the concept, "
        f"{about.get('n_neg')} without, on {about.get('model')}"
    )


def lines(vector: ConceptVector) -> Iterator[Text]:
    """What the vector is of, and a line per site; the best one is marked."""
    about = vector.provenance
    width = max(map(len, vector.sites))
    yield Text(title(about))
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
