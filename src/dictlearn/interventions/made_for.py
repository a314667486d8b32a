"""Which model a vector was made for, and whether this is that model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dictlearn.lm.fingerprint import fingerprint
from dictlearn.types import ModelInfo

SIZES = ("family", "n_layers", "width", "vocab_size")


def weights_of(info: ModelInfo) -> str | None:
    """The fingerprint of the model's files, such as `17,641,000 bytes, sha256 0123456789abcdef`.

    It is None for a model in memory.
    """
    folder = Path(info.name).expanduser()
    return _weights(str(folder.resolve()) if folder.is_dir() else info.name, info.revision)


@cache  # a push asks before every pass
def _weights(name: str, revision: str | None) -> str | None:
    try:
        return fingerprint(name, revision)["weights"]
    except ValueError:
        return None


def made_for(info: ModelInfo) -> dict[str, Any]:
    """The model's name, revision, sizes and fingerprint, as plain JSON for a provenance."""
    sizes = {key: getattr(info, key) for key in SIZES}
    return {
        "model": info.name,
        "revision": info.revision,
        "weights": weights_of(info),
        **sizes,
    }


def check_model(what: str, made: Mapping[str, Any], info: ModelInfo) -> None:
    """Raises ValueError if `made`, a provenance, names another model than this one.

    Fingerprints decide where both models have one: a copy of the model in another folder is the
    same. Without them name and sizes decide. A provenance that names no model is taken as it is.
    """
    if made.get("model") is None:
        return
    for key in SIZES:
        theirs, ours = made.get(key, getattr(info, key)), getattr(info, key)
        if theirs != ours:
            raise ValueError(
                f"{what}: was made for {made['model']}, whose {key} is {theirs}; {info.name} has {ours}"
            )
    if made.get("weights") is None:
        same = made["model"] == info.name
    else:
        ours = weights_of(info)
        same = ours == made["weights"] if ours else made["model"] == info.name
    if not same:
        raise ValueError(
            f"{what}: was made for {made['model']}, and {info.name} has other weights; make it anew "
            f"with `dictlearn vector` on {info.name}"
        )
