"""What is wrong with a file, in words for a sentence: not the system's, nor Python's about code."""

from __future__ import annotations

import json

# What comes up where content of the wrong shape is used.
MISFITS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
SYSTEMS = {
    FileNotFoundError: "it is not there",
    IsADirectoryError: "it is a folder",
    NotADirectoryError: "a part of its path is no folder",
    PermissionError: "it may not be read or written",
}


def told(error: BaseException) -> str:
    """What an error says by itself, without the system's number for it."""
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        return SYSTEMS.get(type(error), error.strerror.lower())
    return str(error)


def amiss(error: Exception) -> str:
    """The same of an error that came up while the content of a file was read, or used."""
    match error:
        case OSError():
            return told(error)
        case UnicodeDecodeError():
            return f"byte {error.start:,} is no UTF-8"
        case RecursionError():
            return "nested too deeply"
        case json.JSONDecodeError():
            return f"no JSON: {error}"
        case KeyError():
            return f"has no {error.args[0]}" if error.args else "has not all that it should"
        case ArithmeticError() | IndexError():
            return "a number or a length that cannot be"
        case _:
            return "a name or a value that does not belong there"
