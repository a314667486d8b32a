"""Describe what is wrong with a file in plain words, for a sentence to a user."""

from __future__ import annotations

import json
import zipfile
import zlib
from tokenize import TokenError

# The errors that come up when the content of a file is not as expected.
CONTENT_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
# numpy reads an array's header as Python's tokens, so a damaged .npy or .npz raises many types.
NUMPY_ERRORS = (
    *(*CONTENT_ERRORS, OSError, EOFError, RuntimeError, MemoryError),
    *(SyntaxError, TokenError, zipfile.BadZipFile, zlib.error),
)
SYSTEMS = {
    FileNotFoundError: "it is not there",
    IsADirectoryError: "it is a folder",
    NotADirectoryError: "a part of its path is no folder",
    PermissionError: "it may not be read or written",
}


def error_text(error: BaseException) -> str:
    """The message of an error, without the system's error number."""
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        return SYSTEMS.get(type(error), error.strerror.lower())
    return str(error)


def content_error(error: Exception) -> str:
    """What is wrong with a file whose content raised `error` when it was read or used."""
    match error:
        case OSError():
            return error_text(error)
        case UnicodeDecodeError():
            return f"byte {error.start:,} is no UTF-8"
        case RecursionError():
            return "nested too deeply"
        case json.JSONDecodeError():
            return f"no JSON: {error}"
        case KeyError():
            return f"has no {error.args[0]}" if error.args else "it lacks an entry"
        case ArithmeticError() | IndexError():
            return "a number or a length that cannot be"
        case _:
            return "a name or a value that does not belong there"
