"""Small dictionaries of every sparsity, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dictlearn import config
from dictlearn.dicts.description import shape_from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.sparsity import registry
from dictlearn.sparsity.protocol import Sparsity
from tests.sparsity import sparsemax

OWN = Path(sparsemax.__file__).parent / "conf"  # a --config-dir that has its yaml
# What a test of a few tokens needs other than the yaml says.
OTHERWISE = {"jumprelu": {"init_threshold": 0.3, "bandwidth": 0.4}}


def options_of(kind: type[Sparsity]) -> dict[str, Any]:
    """What a yaml that names the class gives it, at dict.k=4."""
    for folder in (config.conf_dir(), OWN):
        for path in sorted((folder / "sparsity").glob("*.yaml")):
            cfg = OmegaConf.merge({"dict": {"k": 4}}, OmegaConf.load(path))
            assert isinstance(cfg, DictConfig)
            if cfg.sparsity.get("_target_", "").endswith(f".{kind.__name__}"):
                options = OmegaConf.to_container(cfg.sparsity, resolve=True)
                assert isinstance(options, dict)
                plain = {str(key): value for key, value in options.items()}
                return {key: value for key, value in plain.items() if not key.startswith("_")}
    raise AssertionError(f"{kind.name}: no yaml in conf/sparsity names {kind.__name__}")


SPARSITIES = {
    name: partial(kind, **options_of(kind) | OTHERWISE.get(name, {}))
    for name, kind in sorted(registry().items())
    if kind.__module__.startswith(("dictlearn.", sparsemax.__name__))
}
# Those that a saved dictionary can have: BatchTopK is JumpReLU then.
INFERENCE = [name for name in SPARSITIES if name != "batchtopk"]


def shaped(kind: str, sources: Sequence[str], targets: Sequence[str], **options: Any) -> Shape:
    """As a description says it: the link by its name, its options among the others."""
    described = {"kind": "x", "sources": sources, "targets": targets, **options}
    return replace(shape_from_json(described), kind=kind)


def small_dictionary(
    sparsity: str = "topk", *, sites: int = 1, width: int = 16, n_features: int = 40, **shape
) -> Dictionary:
    """Float64, random everywhere that a gradient should reach."""
    names = tuple(f"resid_post.{i}" for i in range(sites))
    options = {"kind": "sae", "sources": names, "targets": names, "k": 4.0, "centre": True, **shape}
    shape = shaped(width=width, n_features=n_features, **options)
    dictionary = Dictionary(shape, SPARSITIES[sparsity])
    dictionary = dictionary.double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.endswith(("b_enc", "b_dec", "W_skip", "r_SF", "b_mag_SF")):
                parameter.normal_(std=0.3)
    return dictionary


def activations(n: int = 50, sites: int = 1, width: int = 16) -> torch.Tensor:
    return torch.randn(n, sites, width, dtype=torch.float64)
