"""Open a store of activations and compare it with the run's model and text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from dictlearn.activations.formats import open_store
from dictlearn.activations.place import opened
from dictlearn.activations.protocol import ActivationStore, StoreInfo
from dictlearn.lm.fingerprint import fingerprint
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sources.fingerprint import of_rows
from dictlearn.sources.open_shards import OnDamage, OpenShards, damage
from dictlearn.sources.protocol import NoText
from dictlearn.types import TextWindows

log = logging.getLogger(__name__)

SameText = Literal["same", "any"]


def open_for(
    lm: LanguageModel,
    windows: TextWindows,
    path: str,
    format: str,
    sites: Sequence[str],
    text: SameText,
) -> ActivationStore:
    """The store at a path; its model, sites and text must be those of the run.

    With `text` "any" it may be of another text. Facts that the store doesn't have are not compared;
    a warning lists them.

    Raises ValueError, in one sentence that names source.path.
    """
    store = open_store(opened(path), format, sites)
    where, info = f"source.path={path}", store.info
    for site in sites:
        if site not in info.widths:
            raise ValueError(
                f"{where}: has no {site}; it has {', '.join(info.sites)}: want a dictionary of these, or "
                f"a store with {site} among its sites"
            )
        if info.widths[site] != lm.info.width:
            raise ValueError(
                f"{where}: its {site} is {info.widths[site]} wide, and {lm.info.name} is "
                f"{lm.info.width} wide"
            )
    if not info.rows:
        raise ValueError(
            f"{where}: holds no rows yet; `dictlearn cache output={path}` continues it"
        )
    _check_model(where, info, lm)
    if not isinstance(windows, NoText):
        _check_text(where, info, windows, text)
        _say_unknown(where, info)
    return store


def _check_model(where: str, info: StoreInfo, lm: LanguageModel) -> None:
    origin = info.origin
    if origin.weights is None and origin.config is None and origin.tokenizer is None:
        return
    ours = fingerprint(lm.info.name, lm.info.revision)
    for name in ("weights", "config", "tokenizer"):
        stored = getattr(origin, name)
        if stored is not None and stored != ours.get(name):
            raise ValueError(
                f"{where}: its activations are of a model with other {name} ({origin.model}, {stored}) "
                f"than model.path={lm.info.name} ({ours.get(name)}); want the model that they are of"
            )


def _check_text(where: str, info: StoreInfo, windows: TextWindows, text: SameText) -> None:
    if info.origin.text is None or text == "any":
        return
    ours = of_rows(windows)
    if info.origin.text != ours:
        raise ValueError(
            f"{where}: its activations are of another text ({info.origin.text}) than this run trains "
            f"on ({ours}), so held-out text may be among it; want the data keys that it was made with, "
            f"or source.text=any"
        )


_logged: set[str] = set()


def _say_unknown(where: str, info: StoreInfo) -> None:
    unknown = [*info.origin.unknown, *info.missing]
    if unknown and where not in _logged:
        _logged.add(where)
        log.warning("%s: not checked, as the store does not have it: %s", where, ", ".join(unknown))


def open_store_shards(
    store: ActivationStore, sites: Sequence[str], threads: int, on_damage: OnDamage
) -> OpenShards:
    """The store's shards; a missing one is refused or left out, as `on_damage` says."""
    shards = OpenShards(store, sites, threads, on_damage)
    for number, reason in store.info.absent.items():
        if on_damage == "stop":
            raise damage(reason)
        shards.leave_out(number, reason)
    return shards
