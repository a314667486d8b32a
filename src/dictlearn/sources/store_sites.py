"""A run's names of sites for a store whose tool has other names, and the rows that it trains on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from dictlearn.activations.protocol import ActivationStore, Shard, ShardWindows, StoreInfo
from dictlearn.activations.statistics import Moments
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.other_names import module_output, site_of_hook

# Activault's hooks: input and output of a module, before a norm that may follow it.
OF_MODULE = re.compile(r"models\.layers\.(\d+)\.(mlp|self_attn)\.(pre|post)")
TAKES = "source.names={<site>: <name in the store>} says what it is"


def named_in(
    info: StoreInfo, sites: Sequence[str], names: Mapping[str, str], lm: LanguageModel, where: str
) -> dict[str, str]:
    """The store's name of each of our sites: the user's word, our name, or what a tool calls it.

    Raises ValueError, which begins with `where`, if the store has none of this name.
    """
    for site, name in names.items():
        if name not in info.widths:
            raise ValueError(
                f"{where}: source.names says that its {name} is {site}, and it has only "
                f"{', '.join(info.sites)}"
            )
    clear = {_our_name(lm, name): name for name in info.sites if name not in info.unclear}
    found = {**clear, **{name: name for name in info.sites if name not in info.unclear}, **names}
    for site in sites:
        if site not in found:
            raise ValueError(_missing(where, info, site, clear))
    return {site: found[site] for site in sites}


def _our_name(lm: LanguageModel, name: str) -> str:
    """Our name of TransformerLens' or Activault's hook; any other name is returned as it is."""
    match = OF_MODULE.fullmatch(name)
    if match is None:
        return site_of_hook(name)
    layer, module, end = match.groups()
    if int(layer) >= lm.info.n_layers:
        return name
    if end == "pre":
        return f"mlp_in.{layer}" if module == "mlp" else name
    return module_output(lm, "mlp_out" if module == "mlp" else "attn_out", layer)


def _missing(where: str, info: StoreInfo, site: str, clear: Mapping[str, str]) -> str:
    listed = ", ".join(clear)
    if info.unclear:
        unclear = "; ".join(f"{name}: {reason}" for name, reason in info.unclear.items())
        known = f"it has {listed}, and " if listed else "it has "
        return f"{where}: has no {site}; {known}{unclear}; {TAKES}"
    return (
        f"{where}: has no {site}; it has {listed}: want a dictionary of these, or a store with {site} "
        f"among its sites; if one of them is {site} under another name, {TAKES}"
    )


@final
class NamedStore:
    """A store under our names of sites. A shard that has no row to train on is refused.

    Args:
        where: what errors call the store.
        names: the store's name of each site.
        left_out: token ids whose rows are left out; empty for none.
    """

    def __init__(
        self,
        where: str,
        store: ActivationStore,
        names: Mapping[str, str],
        lm: LanguageModel,
        left_out: frozenset[int],
    ):
        self._where, self._store, self._names = where, store, dict(names)
        self._vocabulary = lm.info.vocab_size
        self._left_out = torch.tensor(sorted(left_out), dtype=torch.int64)
        widths = {site: store.info.widths[name] for site, name in names.items()}
        self.info = replace(store.info, sites=tuple(names), widths=widths)

    def shard(self, number: int, sites: Sequence[str]) -> NamedShard:
        shard = self._store.shard(number, [self._names[site] for site in sites])
        tokens_N, kept_N = shard.tokens_N, shard.kept_N
        highest = self._vocabulary - 1
        if len(tokens_N) and not 0 <= int(tokens_N.min()) <= int(tokens_N.max()) <= highest:
            raise ValueError(
                f"{self._where}: shard {number} has token ids that are not all from 0 to {highest}: they "
                "are of another tokenizer"
            )
        if len(self._left_out):
            ordinary_N = ~torch.isin(tokens_N, self._left_out)
            kept_N = ordinary_N if kept_N is None else kept_N & ordinary_N
        if kept_N is not None and not kept_N.any():
            raise ValueError(f"{self._where}: shard {number} has no row to train on")
        return NamedShard(shard, self._names, kept_N)

    def moments(self) -> dict[str, Moments] | None:
        stored = self._store.moments()
        return None if stored is None else {site: stored[n] for site, n in self._names.items()}


@final
@dataclass(frozen=True, eq=False)
class NamedShard:
    """A shard under our names of sites."""

    shard: Shard
    names: Mapping[str, str]
    kept_N: Tensor | None

    @property
    def tokens_N(self) -> Tensor:
        return self.shard.tokens_N

    @property
    def positions_N(self) -> Tensor:
        return self.shard.positions_N

    @property
    def windows(self) -> ShardWindows | None:
        return self.shard.windows

    def rows(self, site: str, low: int, high: int) -> Tensor:
        return self.shard.rows(self.names[site], low, high)
