"""A verb called from Python: keywords become overrides, exits become exceptions."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dictlearn import cli, config, paths, published
from dictlearn import overrides as texts
from dictlearn.schema import NAMED_BY_USERS


def composed(verb: str, overrides: Sequence[Any], keys: Mapping[str, Any]) -> DictConfig:
    """The configuration of `dictlearn <verb>` with these overrides. Raises ValueError."""
    written = [*_strings(overrides), *_keywords(verb, keys)]
    with one_sentence():
        checked = texts.checked(verb, config.translated(published.expanded(verb, written), verb))
        cfg = config.compose(verb, checked)
        cli.refuse_missing(cfg)
        paths.refuse_misplaced(verb, cfg)
    return cfg


def called(verb: str, cfg: DictConfig, to_go_on: str = "") -> None:
    """Runs the verb.

    Raises:
        ValueError: one sentence, as on the command line.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM; the run is saved.
        RuntimeError: the verb ended with another status than 0, and has printed why.
    """
    arguments, sys.argv = sys.argv, ["dictlearn", verb]  # a stopped run prints a command with these
    try:
        with one_sentence(), warnings.catch_warnings():
            run = import_module(f"dictlearn.verbs.{verb}").main
            cli.hush_lightning()
            status = run(cfg)
    finally:
        sys.argv = arguments
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt(to_go_on)
    if status == 128 + signal.SIGTERM:
        raise SystemExit(status)
    if status:
        raise RuntimeError(f"dictlearn {verb} ended with status {status}; it says why above")


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns Hydra's and OmegaConf's exceptions into the command line's sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(config.sentence(error)) from error


def _strings(overrides: Sequence[Any]) -> Iterator[str]:
    for override in overrides:
        if isinstance(override, str):
            yield override
        elif isinstance(override, list | tuple) and all(isinstance(o, str) for o in override):
            yield from override
        else:
            raise ValueError(f"{override!r}: want overrides as strings, such as 'dict.k=16'")


def _keywords(verb: str, keys: Mapping[str, Any]) -> Iterator[str]:
    groups = config.groups(verb)
    # Groups come first: a key inside a group belongs to the chosen option.
    for key, value in sorted(keys.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping) and not _is_one_value(key):
            yield from _inside(key, value)
        elif key in groups and isinstance(value, str | Path):
            yield f"{key}={value}"
        else:
            yield as_key(key, value)


def _inside(key: str, values: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and not _is_one_value(f"{key}.{name}"):
            yield from _inside(f"{key}.{name}", value)
        else:
            yield as_key(f"{key}.{name}", value)


def _is_one_value(key: str) -> bool:
    """Whether a mapping is the key's value, and not keys below it."""
    return key.rpartition(".")[2] in NAMED_BY_USERS


def as_key(key: str, value: Any) -> str:
    """key=value as the command line would have it, so that it is read back as the same value."""
    return f"{key}={_written(value, key)}"


def _written(value: Any, key: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return config.quoted(str(value), always=True)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item, key) for item in value) + "]"
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return _written(value.item(), key)  # a number of numpy or torch
    if isinstance(value, Mapping) and _is_one_value(key):
        items = [f"{name}: {_written(item, key)}" for name, item in value.items()]
        return "{" + ", ".join(items) + "}"
    raise ValueError(f"{key}={value!r}: want a number, text, true or false, None, or a list")
