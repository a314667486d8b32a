"""dictlearn from Python: the functions of `import dictlearn`.

They return objects and raise exceptions: a user's mistake is a ValueError of one sentence, and never
ends the process. docs/python.md shows examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dictlearn import published
from dictlearn.api.attribution import attribute, load_graph
from dictlearn.api.call import as_key, called, composed, one_sentence
from dictlearn.api.features import Features
from dictlearn.api.model import OpenModel
from dictlearn.api.results import Evaluation, Run, figures_of, place_of
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.interventions.contrast import Fitting, Method, Pool, concept_vector
from dictlearn.interventions.edits import Edit, Gate, Push
from dictlearn.interventions.texts import texts_of
from dictlearn.interventions.vectors import ConceptVector, load_vector
from dictlearn.sources import array_sites
from dictlearn.verbs.evaluate import destination
from dictlearn.words import a

__all__ = [
    "ConceptVector",
    "Edit",
    "Evaluation",
    "Features",
    "Gate",
    "OpenModel",
    "Push",
    "Run",
    "attribute",
    "evaluate",
    "features",
    "load",
    "load_graph",
    "load_vector",
    "open_model",
    "train",
    "vector",
]

FROM_A_MODEL: Any = object()  # no array was passed


def load(path: str | Path | Run, revision: str | None = None) -> Dictionary:
    """The dictionary that a run saved, in inference form: raw activations in, raw activations out.

    `path` is a run's folder, its `dictionary/`, a folder that another tool wrote, a hub id (owner/name,
    or owner/name/folder) with, if you like, a `revision`, or a published dictionary's name, as in
    `dictlearn evaluate dictionary=gemma_scope_2b_res_l12`. Printing it describes it;
    its `figures` are those of the run's last evaluation, empty if there is none.

    Raises:
        ValueError: `path` is none of these, or is damaged.
    """
    path = place_of("load", path)
    if not isinstance(revision, str | None):
        raise ValueError(f"load: revision={revision!r}: want a branch, tag or commit as text")
    if isinstance(path, str) and not Path(path).exists() and (found := published.named(path)):
        path = found.path
    dictionary = load_dictionary(path, revision)
    dictionary.figures = figures_of(Path(path), dictionary)
    return dictionary


def features(run: str | Path | Run) -> Features:
    """The results of `dictlearn features` for every feature of a run, with any descriptions.

    Raises:
        ValueError: the run has no features yet, or they are damaged.
    """
    return Features(Path(place_of("features", run)))


def train(*overrides: str | list[str], activations: Any = FROM_A_MODEL, **keys: Any) -> Run:
    """Trains, evaluates and saves, as `dictlearn train <overrides>` does.

    `activations` are trained on in the place of a model's: an array of numpy or torch, [N, width] in
    float16, bfloat16, float32 or float64, or several by site ({"mlp_in.0": x, "mlp_out.0": y}), whose
    rows belong together. Keys of source=tensors may be set beside it, such as source={"held_out": 0.2}.

    Overrides are strings as on the command line, or keywords: `dict="transcoder"` chooses an option
    of a group, `steps=100` sets a key, and `optim={"lr": 3e-4}` sets keys inside a group.

    Raises:
        ValueError: whatever the command line would refuse, in the same sentence.
        KeyboardInterrupt: after Ctrl-C, once the step is finished and saved.
    """
    if activations is not FROM_A_MODEL:  # None is an array that somebody failed to load
        if isinstance(keys.get("source"), str) or any("source=" in str(text) for text in overrides):
            raise ValueError(
                "activations: they are a source themselves; want no source= beside them"
            )
        with array_sites.given(activations):
            return _trained(
                [*overrides, "source=tensors", f"source.path='{array_sites.GIVEN}'"], keys
            )
    return _trained(overrides, keys)


def _trained(overrides: Sequence[str | list[str]], keys: Mapping[str, Any]) -> Run:
    cfg = composed("train", overrides, keys)
    if cfg.trainer.get("devices", 1) not in (1, "1"):
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices}: several processes start the program anew, "
            "which Python's own can't; run `dictlearn train` for this, or set trainer.devices=1"
        )
    called("train", cfg, f"dictlearn.train(resume='auto', name={cfg.name!r}) goes on")
    return Run(Path(cfg.run_dir).resolve())


def evaluate(dictionary: str | Path | Run, *overrides: str | list[str], **keys: Any) -> Evaluation:
    """A saved dictionary's figures on held-out text, as `dictlearn evaluate` computes them.

    `dictionary` is a run, its folder, a dictionary's folder or a hub id; the report goes where the
    command would write it.

    Raises:
        ValueError: whatever the command line would refuse, in the same sentence.
    """
    path = place_of("evaluate", dictionary)
    is_run = (Path(path) / "dictionary").is_dir()
    source = as_key("run" if is_run else "dictionary", str(path))
    cfg = composed("evaluate", [source, *overrides], keys)
    folder = destination(cfg).resolve()
    called("evaluate", cfg)
    return Evaluation(folder, path)


def open_model(model: str | Path = "pico", **keys: Any) -> OpenModel:
    """A language model to read activations from: a preset, a folder in the hub's layout, a hub id.

    The keys are those of conf/model: `revision`, `dtype`, `device`, `attn`, `other`.

    Raises:
        ValueError: there is no such model, or it can't be read.
    """
    if not isinstance(model, str | Path) or not str(model).strip():
        what = repr(model) if isinstance(model, str) else a(type(model).__name__)
        raise ValueError(f"open_model: want a preset, a folder or a hub id as text, not {what}")
    cfg = composed("train", [f"model={model}"], {"model": keys} if keys else {})
    with one_sentence():
        return OpenModel(instantiate(cfg.model))


def vector(
    model: OpenModel | str | Path,
    pos: Sequence[str] | str | Path,
    neg: Sequence[str] | str | Path,
    site: str | Sequence[str] = "resid_post",
    *,
    method: Method = "mean",
    pool: Pool = "last",
    held_out: float = 0.25,
    seeds: int = 5,
    batch: int = 16,
) -> ConceptVector:
    """A concept's vector, from texts with it and texts without, tested on texts that are held out.

    Args:
        model: an opened one, or what `open_model` takes.
        pos: texts with the concept, or a .txt or .jsonl file with one a line; also lists of token ids.
        neg: texts without. As many as `pos`: the first of each are a pair, and so on.
        site: `resid_post.8`, `resid_post.4-12`, `resid_post` (every layer), or a list of these.
        method: `mean`, the difference of means; `pca`, the first principal component of the pairs'
            differences; `logistic`, a probe's weights.
        pool: a text's activation is that of its `last` token, or the `mean` over its tokens.
        held_out: share of the pairs that are left out to test on, in each of `seeds` splits.
        batch: texts in one forward pass.

    Raises:
        ValueError: there are too few texts, the two sides don't differ, or there is no such site.
    """
    opened = model if isinstance(model, OpenModel) else open_model(model)
    fitting = Fitting(method, pool, held_out, seeds, batch)
    return concept_vector(opened.lm, texts_of("pos", pos), texts_of("neg", neg), site, fitting)
