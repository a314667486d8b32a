"""The text that a dictionary was trained on: read again, or recognised in what a user names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dictlearn.ckpt.signature import is_own
from dictlearn.config import conf_dir
from dictlearn.sources.mixture import SHARED
from dictlearn.sources.tokens import WHOLE

log = logging.getLogger(__name__)

EMBEDDED = "stdlib"  # the entry of conf/data whose text is on every machine and is not private
# Settings of data that don't say which documents there are, nor on which side of the split each is.
HOW_MUCH = {"context", "held_out", "max_tokens", "long"}
HOW_MUCH |= {"roles", "template", "template_values", "template_tokens", "weights"}


def trained_on(trained: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The `data` settings that a dictionary's file names, for this installation's own builders.

    The file may come from anybody, so it chooses no text: its settings count only if this user signed
    them, by training the dictionary, or if they name the text that comes with Python. Even then only
    plain values count, and only for keys in the yaml of the same builder in conf/data.
    """
    found = _settings(trained.get("data"))
    if found is None:
        raise ValueError(f"{path}: does not say which text it was trained on; name some with data=")
    kind, settings = found
    if kind != EMBEDDED and not is_own(trained):
        raise ValueError(
            f"{path}: was trained on data={kind}, and a file that was not written by your own "
            f"training chooses no text to read here; name some with data="
        )
    return settings


def _settings(theirs: object) -> tuple[str, dict[str, Any]] | None:
    """The kind of data and its settings; None if no yaml builds what the file names."""
    for file in sorted((conf_dir() / "data").glob("*.yaml")):
        ours = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert isinstance(ours, dict)
        if not isinstance(theirs, Mapping) or ours.get("_target_") != theirs.get("_target_"):
            continue
        plain = {str(key): theirs[key] for key in ours if _takes(key, ours, theirs)}
        settings = {str(key): value for key, value in ours.items()} | plain
        if "parts" in ours:
            parts = {name: _settings(part) for name, part in _parts(theirs)}
            if None in parts.values():
                return None
            settings["parts"] = {
                name: {key: value for key, value in part[1].items() if key not in SHARED}
                for name, part in parts.items()
                if part is not None
            }
        return file.stem, settings
    return None


def part_of(named: DictConfig, trained: Mapping[str, Any]) -> str:
    """The split to read of text that a user names.

    It is the whole text, except for the text that the dictionary was trained on, or a part of it: there
    it is the held-out part, as figures on the rest would be too good.
    """
    ours = OmegaConf.to_container(named, resolve=True)
    theirs = trained.get("data")
    pairs = [(a, b) for a in _texts(ours) for b in _texts(theirs) if _same(a, b)]
    if not pairs:
        return WHOLE
    say = "The dictionary was trained on this text: the part that was held out is read."
    fractions = [text.get("held_out") for text in pairs[0]]
    if fractions[0] != fractions[1]:
        say += f" (data.held_out={fractions[0]} is not the {fractions[1]} of its training.)"
    log.warning(say)
    return "eval"


def _texts(data: object) -> Iterator[Mapping[str, Any]]:
    """The data, or the parts of a mixture with what they share."""
    if not isinstance(data, Mapping):
        return
    if "parts" not in data:
        yield data
    shared = {key: data[key] for key in SHARED if key in data}
    for _, part in _parts(data):
        yield from _texts({**part, **shared})


def _parts(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parts = data.get("parts")
    if isinstance(parts, Mapping):
        yield from ((str(name), part) for name, part in parts.items() if isinstance(part, Mapping))


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two kinds of data are the same documents."""
    if ours.get("_target_") != theirs.get("_target_"):
        return False
    keys = {str(key) for key in ours if key in theirs} - HOW_MUCH
    return all(_absolute(key, ours[key]) == _absolute(key, theirs[key]) for key in keys)


def _absolute(key: str, value: Any) -> Any:
    """Absolute paths for the key `paths`, without access to the disk; other values as they are."""
    if key != "paths":
        return value
    return [os.path.abspath(str(p)) for p in ([value] if isinstance(value, str) else value or [])]


def _takes(key: object, ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> bool:
    if (
        str(key).startswith("_") or key not in theirs or key == "parts"
    ):  # _target_ and _partial_ come only from our yaml
        return False
    default, value = ours[key], theirs[key]
    if isinstance(default, int | float) and not isinstance(default, bool):
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return _is_plain(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(not str(key).startswith("_") and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | int | float | bool)
