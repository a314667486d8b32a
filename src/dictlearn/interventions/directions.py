"""Directions in a model's activations, whatever they come from: a saved vector, a file, a feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from dictlearn.activations.arrays import read_npy
from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.interventions.edits import Push
from dictlearn.interventions.made_for import check_model
from dictlearn.interventions.vectors import ConceptVector, is_vector, load_vector
from dictlearn.names import code_names, feature_name, feature_named
from dictlearn.types import ModelInfo

NUMBERS = (".safetensors", ".npy")


@final
@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at a site, in the model's units, and where it comes from.

    `site` is None for a plain file of numbers, which names none.
    """

    vector: Tensor  # float32 [D] on the CPU, neither zero nor infinite
    site: str | None
    provenance: Mapping[str, Any] = field(default_factory=dict)  # plain JSON

    @property
    def unit(self) -> Tensor:
        """The direction with norm 1: [D]."""
        return self.vector / self.vector.norm()

    def check(self, info: ModelInfo) -> None:
        """Raises ValueError if it was made for another model, or is not as wide as this one."""
        check_model("vector", self.provenance, info)
        if len(self.vector) != info.width:
            raise ValueError(
                f"vector: has {len(self.vector)} numbers, and {info.name} has {info.width} at a site"
            )


def read(path: str | Path, site: str | None = None) -> Direction:
    """The direction in a folder of `dictlearn vector`, or in a .safetensors or .npy file of one vector.

    Args:
        site: one of the folder's; None: the one that separates held-out texts best. A plain file
            has no site of its own and takes this one.

    Raises:
        ValueError: there is no such file or site, or it is damaged.
    """
    path = Path(path)
    if path.suffix not in NUMBERS or is_vector(path):
        return of_vector(load_vector(path), site)
    vector_D = vector_from(path)
    if vector_D.ndim != 1 or not bool(vector_D.any()):
        raise ValueError(f"vector={path}: want one vector that is not zero, [width]")
    return Direction(vector_D, site, {"file": str(path)})


def of_vector(vector: ConceptVector, site: str | None = None) -> Direction:
    """A concept vector at one of its sites, or at the best. Raises ValueError if it has none there."""
    site = site or vector.best
    return Direction(vector.at(site), site, vector.provenance)


def of_feature(
    dictionary: Dictionary, source: int, feature: int, site: str | None = None
) -> Direction:
    """What a feature writes: its decoder vector, as long as the dictionary has it.

    Args:
        source: row of the code; a CLT of four layers has 0 to 3.
        site: one of the sites that the feature writes to; None: the first.

    Raises:
        ValueError: there is no such feature, or it writes no fixed vector (MOLT), or not there.
    """
    names = code_names(dictionary.sources, dictionary.code_sources)
    if not 0 <= source < len(names) or not 0 <= feature < dictionary.n_features:
        raise ValueError(
            f"feature={source}/{feature}: want a source from 0 to {len(names) - 1} and an index from "
            f"0 to {dictionary.n_features - 1}"
        )
    name = feature_name(names, source, feature)
    if not dictionary.decoder.writes_directions:
        raise ValueError(
            f"feature={name}: features of a {dictionary.kind} write no fixed direction"
        )
    reached = [
        target for t, target in enumerate(dictionary.targets) if source in dictionary.reads(t)
    ]
    site = site or reached[0]
    if site not in reached:
        raise ValueError(f"site={site}: feature {name} writes to {', '.join(reached)}")
    target = dictionary.targets.index(site)
    written = dictionary.decoder.written(target, source, slice(feature, feature + 1))[0]
    vector_D = written.detach().float().cpu()
    if not bool(vector_D.any()):
        raise ValueError(f"feature={name}: writes nothing to {site}")
    origin = {"dictionary": sha256_of(dictionary), "feature": name}
    return Direction(vector_D, site, origin | {"trained_on": dictionary.provenance.get("model")})


def written_by(dictionary: Dictionary, source: int, feature: int) -> dict[str, Tensor]:
    """What a feature writes, [D] by site; a CLT's has several. Raises ValueError as `of_feature`."""
    first = of_feature(dictionary, source, feature)
    assert first.site is not None
    found = {first.site: first.vector}
    for t, site in enumerate(dictionary.targets):
        if source in dictionary.reads(t) and site not in found:
            found[site] = of_feature(dictionary, source, feature, site).vector
    return found


def of_feature_named(dictionary: Dictionary, name: str, site: str | None = None) -> Direction:
    """`of_feature`, by a name such as `0/123` or `resid_post.1/123`. Raises ValueError as it does."""
    names = code_names(dictionary.sources, dictionary.code_sources)
    try:
        source, feature = feature_named(name, names, dictionary.n_features)
    except ValueError as error:
        raise ValueError(f"feature={error}") from None
    return of_feature(dictionary, source, feature, site)


def resolved(push: Push, info: ModelInfo) -> Push:
    """The push with a tensor for the concept vector, direction or path that it has.

    Raises:
        ValueError: it was made for another model, has no vector at the push's site, or is damaged.
    """
    given = push.direction
    if isinstance(given, str | Path):
        given = read(given, push.site)
    elif isinstance(given, ConceptVector):
        given = of_vector(given, push.site)
    if not isinstance(given, Direction):
        return push
    given.check(info)
    if given.site not in (None, push.site):
        raise ValueError(f"direction: is one at {given.site}, and the push is at {push.site}")
    return replace(push, direction=given.vector)


def vector_from(path: Path) -> Tensor:
    """The vector in a .safetensors or .npy file: float32 [D].

    Raises:
        ValueError: it is another file, holds several tensors, or numbers that are no direction.
    """
    if path.suffix == ".npy":
        try:
            tensors = {"its array": read_npy(path)}
        except ValueError as error:
            raise ValueError(f"vector: {error}") from None
    elif path.suffix == ".safetensors":
        tensors = read_tensors(path)
    else:
        raise ValueError(f"vector={path}: want a .safetensors or a .npy file")
    if len(tensors) != 1:
        raise ValueError(f"vector={path}: holds {len(tensors)} tensors; want one")
    check_numbers(path, tensors)
    return next(iter(tensors.values())).float().squeeze()
