"""Open a store of activations and compare it with the run's model and text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from dictlearn.activations.formats import open_store
from dictlearn.activations.place import opened
from dictlearn.activations.protocol import Shards, StoreInfo
from dictlearn.lm.fingerprint import fingerprint
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sources.fingerprint import of_rows
from dictlearn.sources.open_shards import OnDamage, OpenShards, damage
from dictlearn.sources.protocol import NoText
from dictlearn.sources.store_sites import NamedStore, named_in
from dictlearn.types import Norms, TextWindows

log = logging.getLogger(__name__)

Same = Literal["same", "any"]
Special = Literal["leave_out", "keep"]


def open_for(
    lm: LanguageModel,
    windows: TextWindows,
    sites: Sequence[str],
    *,
    path: str,
    format: str,
    names: Mapping[str, str] | None,
    model: Same,
    text: Same,
    special: Special,
) -> Shards:
    """The store at a path, under our names of sites; its model, sites and text must be the run's.

    With `text` "any" it may be of another text, with `model` "any" of a model of another name. Facts
    that the store doesn't have are not compared; a warning lists them. With `special` "leave_out"
    rows of special tokens are left out of a store whose tool stores them unasked.

    Raises ValueError, in one sentence that names source.path.
    """
    where, store = f"source.path={path}", open_store(opened(path), format)
    chosen = named_in(store.info, sites, names or {}, lm, where)
    store = store.reading(list(chosen.values()))
    info = store.info
    for site, name in chosen.items():
        if info.widths[name] != lm.info.width:
            raise ValueError(
                f"{where}: its {site} is {info.widths[name]} wide, and {lm.info.name} is "
                f"{lm.info.width} wide"
            )
    if not info.rows and info.absent:
        raise ValueError(f"{where}: {next(iter(info.absent.values()))}")
    if not info.rows:
        raise ValueError(
            f"{where}: holds no rows yet; `dictlearn cache output={path}` continues it"
        )
    _check_model(where, info, lm, model)
    if not isinstance(windows, NoText):
        _check_text(where, info, windows, text)
        _say_unknown(where, info, chosen)
    leaves_out = info.has_specials and special == "leave_out"
    return NamedStore(where, store, chosen, lm, lm.special_ids if leaves_out else frozenset())


def _check_model(where: str, info: StoreInfo, lm: LanguageModel, same: Same) -> None:
    origin = info.origin
    if origin.weights is None and origin.config is None and origin.tokenizer is None:
        if origin.model and same == "same" and _short(origin.model) != _short(lm.info.name):
            raise ValueError(
                f"{where}: says that its activations are of {ascii(origin.model)}, and "
                f"model.path={lm.info.name}; want the model that they are of, or source.model=any if it "
                "is the same under another name"
            )
        return
    ours = fingerprint(lm.info.name, lm.info.revision)
    for name in ("weights", "config", "tokenizer"):
        stored = getattr(origin, name)
        if stored is not None and stored != ours.get(name):
            raise ValueError(
                f"{where}: its activations are of a model with other {name} ({origin.model}, {stored}) "
                f"than model.path={lm.info.name} ({ours.get(name)}); want the model that they are of"
            )


def _short(name: str) -> str:
    """A model's name without its owner or folder, as tools write it differently."""
    return name.rstrip("/").rpartition("/")[2].lower()


def _check_text(where: str, info: StoreInfo, windows: TextWindows, text: Same) -> None:
    if info.origin.text is None or text == "any":
        return
    ours = of_rows(windows)
    if info.origin.text != ours:
        raise ValueError(
            f"{where}: its activations are of another text ({info.origin.text}) than this run trains "
            f"on ({ours}), so held-out text may be among it; want the data keys that it was made with, "
            f"or source.text=any"
        )


_logged: set[tuple[str, str]] = set()


def _say_unknown(where: str, info: StoreInfo, chosen: Mapping[str, str]) -> None:
    unknown = [*info.origin.unknown, *info.missing]
    said = [f"not checked, as the store does not have it: {', '.join(unknown)}"] if unknown else []
    said += [info.cautions[name] for name in chosen.values() if name in info.cautions]
    for sentence in said:
        if (where, sentence) not in _logged:
            _logged.add((where, sentence))
            log.warning("%s: %s", where, sentence)


def norms_of(store: Shards) -> dict[str, Norms] | None:
    """The norms of every site, if the store has exact ones."""
    moments = store.moments()
    if moments is None:
        return None
    return {site: Norms(m.norm, m.mean_square) for site, m in moments.items()}


def open_store_shards(
    store: Shards, sites: Sequence[str], threads: int, on_damage: OnDamage
) -> OpenShards:
    """The store's shards; a missing one is refused or left out, as `on_damage` says."""
    shards = OpenShards(store, sites, threads, on_damage)
    for number, reason in store.info.absent.items():
        if on_damage == "stop":
            raise damage(reason)
        shards.leave_out(number, reason)
    return shards
