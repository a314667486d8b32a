"""Concept vectors: a direction per site, how well each tells texts apart, and where they come from.

    {"format": 1, "sha256": of all the rest and of the tensors,
     "sites": {site: {"accuracy", "std", "separation", "norm"}}, "best": site,
     "provenance": {"model", "revision", "weights", ..., "method", "pool", "n_pos", "n_neg", "sign"}}

in vector.json, beside vector.safetensors, which has one float32 tensor [D] per site.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn.ckpt import commit
from dictlearn.ckpt.files import check_numbers, read_tensors, write_tensors
from dictlearn.disk.leftovers import recover
from dictlearn.disk.strict_json import read_json
from dictlearn.interventions.control_vector import check_gguf, write_gguf
from dictlearn.interventions.made_for import check_model
from dictlearn.types import ModelInfo

FORMAT = 1
SORT = "a concept vector"  # in its manifest
TENSORS, DESCRIPTION = "vector.safetensors", "vector.json"
DESCRIPTION_BYTES = 16 << 20
LARGEST = 1e30  # that a figure may be
SIGN = "pos - neg: adding it moves an activation from the texts of neg towards those of pos"


@dataclass(frozen=True)
class Separation:
    """How well a direction tells the texts with the concept from those without, at one site.

    `accuracy` is of texts that the direction was not fitted on: the mean over seeds, with the
    standard deviation `std` between them; None if none were held out. `separation` is d' on the
    same texts: the distance of the two means along the direction, in standard deviations.
    """

    accuracy: float | None
    std: float | None
    separation: float | None
    norm: float  # of the vector


@final
@dataclass(frozen=True, eq=False, repr=False)
class ConceptVector:
    """What `dictlearn vector` makes: vectors by site, in the model's units, and their provenance.

    Added once, a vector moves an activation as far as the mean of the texts with the concept is from
    that of the texts without, along the direction.
    """

    vectors: Mapping[str, Tensor]  # by site, float32 [D] on the CPU
    scores: Mapping[str, Separation]  # by site
    provenance: Mapping[str, Any]  # plain JSON

    @property
    def sites(self) -> tuple[str, ...]:
        """In the order in which the model computes them."""
        return tuple(self.vectors)

    @property
    def accuracy(self) -> dict[str, float | None]:
        """Held-out accuracy by site, from 0 to 1; chance is 0.5."""
        return {site: score.accuracy for site, score in self.scores.items()}

    @property
    def best(self) -> str:
        """The site whose direction separates held-out texts best: by accuracy, then by d'."""

        def quality(site: str) -> tuple[float, float]:
            score = self.scores[site]
            return score.accuracy or 0.0, score.separation or 0.0

        return max(self.sites, key=quality)

    def at(self, site: str | None = None) -> Tensor:
        """The vector [D] at a site, or at the `best` one. Raises ValueError if it has none there."""
        if site is None:
            return self.vectors[self.best]
        if site not in self.vectors:
            raise ValueError(f"site={site}: the vector is at {', '.join(self.sites)}")
        return self.vectors[site]

    def check(self, info: ModelInfo) -> None:
        """Raises ValueError if the vector was made for another model (see `check_model`)."""
        check_model("vector", self.provenance, info)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes the folder whole or not at all. An earlier vector in it is replaced, nothing else.

        Raises:
            SaveError: the disk is full, broken or read-only, or something else lies there.
        """
        folder = Path(folder)
        commit.commit(folder, self._write, sort=SORT, overwrite=overwrite)
        return folder

    def write_gguf(self, path: str | Path, overwrite: bool = False) -> list[int]:
        """Writes a control vector for llama.cpp; the blocks, counted from 0, to whose output it adds.

        Raises:
            ValueError: its sites are no ends of blocks, or the package gguf is not installed.
            SaveError: the disk is full, broken or read-only, or something else lies there.
        """
        check_gguf(Path(path), overwrite)
        return write_gguf(Path(path), self.vectors, str(self.provenance.get("family", "")))

    def _write(self, folder: Path) -> None:
        description: dict[str, Any] = {
            "format": FORMAT,
            "sites": {site: asdict(score) for site, score in self.scores.items()},
            "best": self.best,
            "provenance": dict(self.provenance),
        }
        description["sha256"] = _sha256(self.vectors, description)
        write_tensors(folder / TENSORS, self.vectors)
        text = json.dumps(description, indent=1, allow_nan=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        about = self.provenance
        lines = [
            f"ConceptVector: {about.get('method')} of {about.get('n_pos')} and {about.get('n_neg')} "
            f"texts, {about.get('pool')}, on {about.get('model')}"
        ]
        for site, score in self.scores.items():
            accuracy = "" if score.accuracy is None else f"  held-out accuracy {score.accuracy:.3f}"
            mark = "  best" if site == self.best and len(self.sites) > 1 else ""
            lines.append(f"  {site:<14} norm {score.norm:.4g}{accuracy}{mark}")
        return "\n".join(lines)


def load_vector(path: str | Path) -> ConceptVector:
    """The concept vector that `save` or `dictlearn vector` wrote.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = recover(Path(path))
    if not is_vector(folder):
        raise ValueError(
            f"vector={path}: no {DESCRIPTION} there; want a folder of `dictlearn vector`"
        )
    if (folder / commit.MANIFEST).is_file():
        commit.verify(folder)
    where = folder / DESCRIPTION
    described = read_json(where, DESCRIPTION_BYTES)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ValueError(f"{where}: want a dictlearn vector of format {FORMAT}")
    sites, provenance = described.get("sites"), described.get("provenance")
    if not isinstance(sites, dict) or not sites or not isinstance(provenance, dict):
        raise ValueError(f"{where}: want the objects sites and provenance")
    tensors = read_tensors(folder / TENSORS)
    if tensors.keys() != sites.keys():
        raise ValueError(f"{folder}: {TENSORS} and {DESCRIPTION} are not of the same sites")
    check_numbers(folder / TENSORS, tensors)
    vectors = {site: _vector(folder / TENSORS, site, tensors[site]) for site in sites}
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise ValueError(f"{folder / TENSORS}: its vectors are of several widths")
    if described.pop("sha256", None) != _sha256(vectors, described):
        raise ValueError(
            f"{folder}: {TENSORS} and {DESCRIPTION} are not what was saved (sha256 differs)"
        )
    return ConceptVector(
        vectors, {site: _score(where, site, sites[site]) for site in sites}, provenance
    )


def is_vector(path: Path) -> bool:
    """Whether a folder holds a saved concept vector."""
    return (path / DESCRIPTION).is_file()


def _vector(path: Path, site: str, tensor: Tensor) -> Tensor:
    if tensor.ndim != 1 or not bool(tensor.any()):
        raise ValueError(f"{path}: {ascii(site)}: want a vector that is not zero")
    return tensor.float()


def _score(path: Path, site: str, score: Any) -> Separation:
    keys = ("accuracy", "std", "separation", "norm")
    if isinstance(score, dict) and score.keys() == set(keys):
        numbers = [score[key] for key in keys]
        if _finite(numbers[-1]) and all(v is None or _finite(v) for v in numbers):
            return Separation(*numbers)
    raise ValueError(f"{path}: {ascii(site)}: want finite numbers for {', '.join(keys)}")


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _sha256(vectors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for site, vector_D in sorted(vectors.items()):
        digest.update(site.encode())
        digest.update(vector_D.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
