"""The formats of stores: one file each."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from dictlearn.activations.place import Place
from dictlearn.activations.protocol import ActivationStore

AUTO = "auto"


def registry() -> dict[str, type[ActivationStore]]:
    """The class of every format, by name. Each file of this folder has a class `Store`."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__))
    stores = [import_module(f"{__name__}.{name}").Store for name in files if name[0] != "_"]
    return {store.name: store for store in stores}


def open_store(place: Place, format: str = AUTO) -> ActivationStore:
    """The store at a place, in the format that is named or detected.

    Raises ValueError if there is none or it is damaged.
    """
    known = registry()
    if format != AUTO and format not in known:
        raise ValueError(f"source.format={format}: want {AUTO}, {', '.join(known)}")
    if format != AUTO:
        return known[format].opened(place)
    for store in known.values():
        if store.recognises(place):
            return store.opened(place)
    listed = ", ".join(f"{name} ({store.files})" for name, store in known.items())
    raise ValueError(
        f"source.path={place.address}: has no activations in a known format: {listed}; "
        f"`dictlearn cache output={place.address}` stores some"
    )
