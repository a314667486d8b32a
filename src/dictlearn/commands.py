"""Commands in messages, quoted so that they can be pasted into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from dictlearn import config, overrides


def command(verb: str, **keys: str | Path) -> str:
    """A command line such as `dictlearn report 'run=my run'`."""
    return shlex.join(["dictlearn", verb, *(argument(*item) for item in keys.items())])


def typed(**keys: str | Path) -> str:
    """Only the arguments, for a message that names no verb."""
    return shlex.join(argument(*item) for item in keys.items())


def argument(key: str, value: str | Path) -> str:
    """key=value before a shell's quoting; in Hydra's quotes only if it would be misread."""
    text = f"{key}={value}"
    try:
        (read,) = config.translated([text])
        if overrides.value(read) == str(value):
            return text
    except ValueError:  # such as several values, or a bracket
        pass
    return f"{key}=" + config.quoted(str(value), always=True, mark='"')
