"""Commands in messages, quoted so that they can be pasted into a shell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from dictlearn import config, overrides


def program() -> list[str]:
    """The words that started this process, as a shell takes them: its verb or overrides follow."""
    if _is_module():
        return ["python", "-m", "dictlearn"]
    return ["python", sys.argv[0]] if is_script() else [Path(sys.argv[0]).name]


def _is_module() -> bool:
    """Whether this is `python -m dictlearn`."""
    return Path(sys.argv[0]).parts[-2:] == ("dictlearn", "__main__.py")


def is_script() -> bool:
    """Whether this is train.py, which takes no verb."""
    return sys.argv[0].endswith("train.py")


def command(verb: str, **keys: str | Path) -> str:
    """A command line such as `dictlearn report 'run=my run'`."""
    words = program() if _is_module() else ["dictlearn"]
    return shlex.join([*words, verb, *(argument(*item) for item in keys.items())])


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
