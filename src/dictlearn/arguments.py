"""Splits the command line into Hydra's options and overrides, and refuses wrong ones."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from hydra._internal.utils import get_args_parser

from dictlearn import config

COMMON = "--help, --cfg job, -m and --config-dir <folder>"


class Arguments(NamedTuple):
    """`options` as they were typed, the same `parsed`, and all `overrides` in their order."""

    options: list[str]
    parsed: argparse.Namespace
    overrides: list[str]


def taken_apart(args: Sequence[str]) -> Arguments:
    """Raises ValueError, one sentence, for an option that doesn't exist or lacks its value."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse's own prints its usage and exits
    parsed, unknown = parser.parse_known_intermixed_args(args)
    if unknown:
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        raise ValueError(_no_such_option(unknown[0], known))
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ValueError(f"--config-dir {parsed.config_dir}: no such folder")
    options, left = [], list(parsed.overrides)
    for arg in args:
        if arg in left:
            left.remove(arg)
        else:
            options.append(arg)
    return Arguments(options, parsed, parsed.overrides)


def last_of_each(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that count, and a sentence for each that a later one of its key replaces.

    The last value of a key counts, as in Hydra.

    Raises:
        ValueError: nothing would show which one counts: a choice of a group, values of a multirun,
            an addition or a removal.
    """
    counts: dict[str, str] = {}  # by key
    notes = []
    for text in overrides:
        keys = _keys(text)
        for key in keys & counts.keys():
            earlier = counts[key]
            if _keys(earlier) != keys or any(map(_more_than_a_value, (earlier, text))):
                raise ValueError(
                    f"{earlier} and {text}: both set {key}; leave one of them out, or give all "
                    f"values in one, {key}=<a>,<b>, with -m to run each"
                )
            note = f"{text} replaces {earlier}, which stands before it"
            if earlier != text and note not in notes:
                notes.append(note)
        counts |= dict.fromkeys(keys, text)
    last = {text: place for place, text in enumerate(overrides)}
    kept = [
        text
        for place, text in enumerate(overrides)
        if last[text] == place and all(counts[key] == text for key in _keys(text))
    ]
    return kept, notes


def _keys(text: str) -> set[str]:
    """The keys that an override sets; launchers add some of hydra's own, which may repeat."""
    keys = {part.partition("=")[0].lstrip("+~") for part in config.translated([text])}
    return {key for key in keys if not key.startswith("hydra.")}


def _more_than_a_value(text: str) -> bool:
    """Whether an override adds, removes, chooses a file of a group or lists values to go through."""
    key, _, value = text.partition("=")
    several = "," in value and value[:1] not in tuple("[{\"'")
    chooses = (config.conf_dir() / key).is_dir() and config.translated([text]) == [text]
    return key[:1] in ("+", "~") or several or chooses


def _refuse(message: str) -> NoReturn:
    """Raises argparse's sentence with the option in front, as our sentences begin with the key."""
    raise ValueError(re.sub(r"^argument (--[\w-]+)[^:]*", r"\1", message))


def _no_such_option(arg: str, known: Sequence[str]) -> str:
    name = arg.partition("=")[0]
    near = config.nearest(name, known, 0.75)
    if near:
        return f"{arg}: no such option; did you mean {near}?"
    return f"{arg}: no such option; there are {COMMON}, and keys are set without dashes, key=value"
