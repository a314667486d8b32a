"""Where dictionaries stand in a model: what each layer's features read, and which features write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.linear import LinearModel, Norm
from dictlearn.words import a

READS = ("mlp_in", "mlp_norm", "resid_mid", "resid_pre")
WRITES = "mlp_out"


class Owner(NamedTuple):
    """A source or a target of a dictionary."""

    dictionary: Dictionary
    number: int  # of the source, or of the target


@dataclass(frozen=True)
class Places:
    """Each layer of the model: the source that reads in it and the target that is written there."""

    n_layers: int
    source: dict[int, Owner]  # by layer
    target: dict[int, Owner]
    kind: dict[int, str]  # what the source reads: one of READS

    def sources_of(self, layer: int) -> range:
        """The layers whose features may write at mlp_out of this layer."""
        if layer not in self.target:
            return range(layer, layer)
        dictionary, number = self.target[layer]
        reads = dictionary.reads(number)
        layers = [_layer(dictionary.sources[s]) for s in reads]
        return range(layers[0], layers[-1] + 1)

    def entry(self, model: LinearModel, layer: int) -> Entry:
        """How the source of this layer reads the stream."""
        return entry(model, layer, self.kind[layer])

    def skip(self, layer: int) -> Tensor | None:
        """W_skip [D out, D in] from the source of this layer to its MLP's output, if there is one."""
        if layer not in self.target or self.target[layer].dictionary.W_skip is None:
            return None
        dictionary, number = self.target[layer]
        assert dictionary.W_skip is not None
        return dictionary.W_skip.detach()[number]


def place(dictionaries: Sequence[Dictionary], n_layers: int, width: int) -> Places:
    """Where these dictionaries stand. Raises ValueError if a graph of them is not defined."""
    if not dictionaries:
        raise ValueError("dictionary: want one dictionary or a list of them, not an empty list")
    places = Places(n_layers, {}, {}, {})
    for dictionary in dictionaries:
        _check(dictionary, width)
        for number, site in enumerate(dictionary.sources):
            _own(places.source, site, n_layers, Owner(dictionary, number))
            places.kind[_layer(site)] = site.partition(".")[0]
        for number, site in enumerate(dictionary.targets):
            _own(places.target, site, n_layers, Owner(dictionary, number))
            for source in dictionary.reads(number):
                if _layer(dictionary.sources[source]) > _layer(site):
                    raise ValueError(
                        f"{dictionary.sources[source]} writes {site}, an earlier layer"
                    )
        if dictionary.W_skip is not None:
            pairs = zip(dictionary.sources, dictionary.targets, strict=True)
            if any(_layer(source) != _layer(target) for source, target in pairs):
                raise ValueError("a skip from one layer to another has no attribution graph here")
    return places


def _check(dictionary: Dictionary, width: int) -> None:
    kind = a(dictionary.kind)
    if dictionary.width != width:
        raise ValueError(f"dictionary: has width {dictionary.width}, and the model has {width}")
    for site in dictionary.sources:
        if not re.fullmatch(rf"({'|'.join(READS)})\.\d+", site):
            raise ValueError(
                f"{kind} that reads {site}: its features have no attribution graph; want sources "
                f"{', '.join(READS)}"
            )
    for site in dictionary.targets:
        if not re.fullmatch(rf"{WRITES}\.\d+", site):
            raise ValueError(
                f"{kind} that writes {site}: a graph replaces MLPs; want transcoders or a CLT, "
                f"which write {WRITES}"
            )
    if not dictionary.decoder.writes_directions:
        raise ValueError(
            f"{kind}: its features write no fixed vectors, so their edges are not numbers; want "
            "transcoders or a CLT"
        )
    if dictionary.code_sources != dictionary.n_sources:
        raise ValueError(
            f"{kind}: its features read several layers at once, so a graph can't order them; want "
            "transcoders or a CLT"
        )


def _own(owners: dict[int, Owner], site: str, n_layers: int, owner: Owner) -> None:
    layer = _layer(site)
    if layer >= n_layers:
        raise ValueError(f"site {site}: the model has layers 0 to {n_layers - 1}")
    if layer in owners:
        raise ValueError(f"two dictionaries have a site {site.partition('.')[0]} of layer {layer}")
    owners[layer] = owner


def _layer(site: str) -> int:
    return int(site.rpartition(".")[2])


class Entry(NamedTuple):
    """How what a feature reads depends on the stream: through a norm, or not, after attention or not."""

    norm: Norm | None
    after_attention: bool

    def back(self, rows_ND: Tensor) -> Tensor:
        """Vectors that read the site, as vectors that read the stream, but for the norm's scale."""
        return rows_ND if self.norm is None else self.norm.back(rows_ND)


def entry(model: LinearModel, layer: int, kind: str) -> Entry:
    """How the site `kind` of a layer reads the stream."""
    block = model.blocks[layer]
    if kind == "resid_pre":
        return Entry(None, False)
    if kind == "resid_mid":
        return Entry(None, True)
    norm = block.norm
    if kind == "mlp_norm":
        assert norm is not None, "the site would not have been found"
        norm = Norm(norm.gain.new_ones(len(norm.gain)), norm.bias * 0, norm.centred, norm.inverse)
    return Entry(norm, not block.parallel)


def value(model: LinearModel, layer: int, kind: str) -> Tensor:
    """What the site held at the prompt: [P, D]."""
    block = model.blocks[layer]
    if kind == "mlp_in":
        return block.mlp_in
    if kind == "mlp_norm":
        found = entry(model, layer, kind)
        assert found.norm is not None
        return found.norm(block.resid_mid if found.after_attention else block.resid_pre)
    return block.resid_mid if kind == "resid_mid" else block.resid_pre
