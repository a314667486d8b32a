"""Commands that messages name: written so that a shell, and then we, read back what was meant."""

from __future__ import annotations

import shlex
from pathlib import Path

from dictlearn import config, overrides


def command(verb: str, **keys: str | Path) -> str:
    """`dictlearn report 'run=my run'`: to be pasted."""
    return shlex.join(["dictlearn", verb, *(argument(*one) for one in keys.items())])


def typed(**keys: str | Path) -> str:
    """The arguments alone, for a message that names no verb."""
    return shlex.join(argument(*one) for one in keys.items())


def argument(key: str, value: str | Path) -> str:
    """key=value before a shell's quoting; in Hydra's quotes only where it would be read otherwise."""
    text = f"{key}={value}"
    try:
        (read,) = config.translated([text])
        if overrides.value(read) == str(value):
            return text
    except ValueError:  # such as several values, or a bracket
        pass
    return f"{key}=" + config.quoted(str(value), always=True, mark='"')
