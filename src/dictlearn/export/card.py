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
SOMEWHERE = "owner/name"  # until the repository is known

KINDS = {
    "sae": "Sparse autoencoder",
    "transcoder": "Transcoder",
    "plt": "Per-layer transcoders",
    "clt": "Cross-layer transcoder",
    "crosscoder": "Crosscoder",
    "molt": "Mixture of linear transforms",
}
FIGURES = {  # of figures.json: what it is, in words; how many digits
    "fvu": ("fraction of variance unexplained (FVU)", ".4f"),
    "l0": ("L0, active features per token", ".2f"),
    "dead": ("features that never fired", ".2%"),
    "ce_increase": ("CE increase with it in the model, nats per token", "+.4f"),
    "kl": ("KL(model, model with it in place), nats per token", ".4f"),
    "top1_agreement": ("top-1 agreement with the model", ".1%"),
    "replacement/all_free/kl": ("KL with every layer replaced, nats per token", ".4f"),
}

EXPLAINED = (
    "`features/explanations.jsonl` has one JSON object a line: source, feature, text, and how well "
    "the text predicted firing on documents that its author had not seen (`scores`), and the "
    "same of a shuffled description and of a random dictionary (`baselines`). Where `reliable` is "
    "false, don't rely on the text."
)


def model_card(
    job: Job,
    repo: str | None,
    license: str | None,
    usages: Mapping[str, tuple[str, str]],
    explained: bool = False,
) -> str:
    """Markdown.

    Args:
        repo: the repository it is meant for, None where that isn't known.
        license: of the weights, in the hub's words; None says none.
        usages: heading -> (what to know, Python that loads it).
        explained: whether descriptions of the features are beside it.
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
    for heading, (note, code) in {"dictlearn": ("", _own(repo)), **usages}.items():
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
        "text": f"{_layers.text_of(job.training)}, windows of "
        f"{_layers.context_of(job.training, job.info.context_length)} tokens",
        "trained on": _tokens(job.training),
    }
    lines = [f"| {name} | {markdown(value)} |" for name, value in rows.items()]
    sites = (
        "`resid_post.L` is what block L hands on, `mlp_in.L` what its MLP reads after the norm, "
        "`mlp_out.L` what the MLP adds to the residual."
    )
    return "\n".join(["| | |", "|---|---|", *lines, "", sites])


def _tokens(training: Mapping[str, Any]) -> str:
    tokens = training.get("tokens")
    started = training.get("init")
    said = f"{tokens:,} tokens" if isinstance(tokens, int) else "not said"
    return f"{said}, starting from {started}" if started else said


def _figures(figures: Mapping[str, float]) -> str:
    known = {key: figures[key] for key in FIGURES if figures.get(key) is not None}
    if not known:
        return "No evaluation was saved with it; `dictlearn evaluate` makes one."
    rows = [f"| {FIGURES[key][0]} | {value:{FIGURES[key][1]}} |" for key, value in known.items()]
    return "\n".join(["On held-out text:", "", "| figure | value |", "|---|---|", *rows])


def _own(repo: str | None) -> str:
    return f"""import dictlearn

dictionary = dictlearn.load("{repo or SOMEWHERE}")
# x: activations [tokens, sites, width]
# code = dictionary.encode(x)
# x_hat = dictionary.decode(code, x)
"""
