"""The model card of a dictionary on the hub: README.md with its YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from dictlearn import __version__
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.escape import markdown
from dictlearn.export import _layers
from dictlearn.export.protocol import Job

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PLACEHOLDER = "owner/name"  # for an unknown repository

KINDS = {
    "sae": "Sparse autoencoder",
    "transcoder": "Transcoder",
    "plt": "Per-layer transcoders",
    "clt": "Cross-layer transcoder",
    "crosscoder": "Crosscoder",
    "molt": "Mixture of linear transforms",
}
FIGURES = {  # entries of figures.json: description, format
    "fvu": ("fraction of variance unexplained (FVU)", ".4f"),
    "l0": ("L0, active features per token", ".2f"),
    "dead": ("features that never fired", ".2%"),
    "ce_increase": ("CE increase with it in the model, nats per token", "+.4f"),
    "kl": ("KL(model, model with it in place), nats per token", ".4f"),
    "top1_agreement": ("top-1 agreement with the model", ".1%"),
    "replacement/all_free/kl": ("KL with every layer replaced, nats per token", ".4f"),
}

EXPLAINED = (
    "`features/explanations.jsonl` has one JSON object per line: source, feature, text, how well "
    "the text predicted firing on documents that its author had not seen (`scores`), and the "
    "same for a shuffled description and for a random dictionary (`baselines`). If `reliable` is "
    "false, don't rely on the text."
)


def model_card(
    job: Job,
    repo: str | None,
    license: str | None,
    usages: Mapping[str, tuple[str, str]],
    explained: bool = False,
) -> str:
    """The model card in Markdown.

    Args:
        repo: its repository; None if that isn't known.
        license: the license of the weights, in the hub's words; None for none.
        usages: heading -> (note, Python that loads the dictionary).
        explained: whether there are descriptions of the features.
    """
    dictionary = job.dictionary
    kind = KINDS.get(dictionary.kind) or markdown(dictionary.kind)
    data = ModelCardData(
        license=license,
        library_name="dictlearn",
        base_model=job.info.name if HUB_ID.fullmatch(job.info.name) else None,
        tags=["interpretability", "sparse-dictionary", dictionary.kind, dictionary.sparsity.name],
    )
    model = markdown(job.info.name)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {kind} of {model}",
        _about(dictionary, job),
        "## Figures",
        _figures(job.figures),
        "## How to load it",
        "It reads and writes the model's own activations: no normalisation is left to apply.",
    ]
    for heading, (note, code) in {"dictlearn": ("", _dictlearn_usage(repo)), **usages}.items():
        parts += [f"### {heading}", *([note] if note else []), f"```python\n{code.strip()}\n```"]
    if explained:
        parts += ["## Descriptions of its features", EXPLAINED]
    parts.append(f"Made with dictlearn {__version__}.")
    return "\n\n".join(parts) + "\n"


def _about(dictionary: Dictionary, job: Job) -> str:
    rows = {
        "reads": ", ".join(dictionary.sources),
        "writes": ", ".join(dictionary.targets),
        "features": f"{dictionary.n_features:,} per source, {dictionary.sparsity.name}",
        "width": str(dictionary.width),
        "linear path from input to output": "yes" if dictionary.shape.skip else "no",
        "model": job.info.name + (f" at {job.info.revision}" if job.info.revision else ""),
        "text": f"{_layers.dataset_name(job.training)}, windows of "
        f"{_layers.context_length(job.training, job.info.context_length)} tokens",
        "trained on": _tokens(job.training),
    }
    lines = [f"| {name} | {markdown(value)} |" for name, value in rows.items()]
    sites = (
        "`resid_post.L` is the output of block L, `mlp_in.L` the input of its MLP after the norm, "
        "`mlp_out.L` what the MLP adds to the residual."
    )
    return "\n".join(["| | |", "|---|---|", *lines, "", sites])


def _tokens(training: Mapping[str, Any]) -> str:
    tokens = training.get("tokens")
    init = training.get("init")
    text = f"{tokens:,} tokens" if isinstance(tokens, int) else "unknown"
    return f"{text}, starting from {init}" if init else text


def _figures(figures: Mapping[str, float]) -> str:
    values = {key: figures[key] for key in FIGURES if figures.get(key) is not None}
    if not values:
        return "No evaluation was saved with it; `dictlearn evaluate` makes one."
    rows = [f"| {FIGURES[key][0]} | {value:{FIGURES[key][1]}} |" for key, value in values.items()]
    return "\n".join(["On held-out text:", "", "| figure | value |", "|---|---|", *rows])


def _dictlearn_usage(repo: str | None) -> str:
    return f"""import dictlearn

dictionary = dictlearn.load("{repo or PLACEHOLDER}")
# x: activations [tokens, sites, width]
# code = dictionary.encode(x)
# x_hat = dictionary.decode(code, x)
"""
