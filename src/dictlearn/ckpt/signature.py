"""Sign a dictionary's provenance with a key of the user, and check the signature.

The provenance names the model and the text that a dictionary was trained on, which other verbs read
by default. If a stranger's file could do that, it would choose which of the user's files are read,
shown in pages and sent to an explainer's server. So training signs the provenance with a key that
never leaves the user's home folder, and a provenance without a valid signature is not followed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dictlearn.disk.folders import ensure_folder

SIGNATURE = "signature"
FOLLOWED = ("model", "revision", "other_model", "data")  # entries that verbs read by default
KEY_BYTES = 32


def signed(training: Mapping[str, Any]) -> dict[str, Any]:
    """`training` with a signature; without one if the home folder can't be written."""
    plain = {key: value for key, value in training.items() if key != SIGNATURE}
    key = _key(make=True)
    return plain if key is None else {**plain, SIGNATURE: _hash(plain, key)}


def is_own(training: Mapping[str, Any]) -> bool:
    """Whether `training` has a valid signature of this user."""
    signature, key = training.get(SIGNATURE), _key(make=False)
    if key is None or not isinstance(signature, str) or not signature.isascii():
        return False
    return hmac.compare_digest(signature, _hash(training, key))


def key_file() -> Path:
    """`$XDG_STATE_HOME/dictlearn/key`; without it, no earlier run counts as the user's own."""
    root = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(root) / "dictlearn" / "key"


def _hash(training: Mapping[str, Any], key: bytes) -> str:
    followed = json.dumps([training.get(name) for name in FOLLOWED], sort_keys=True)
    return hmac.new(key, followed.encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes | None:
    path = key_file()
    with suppress(OSError):
        if make and not path.exists():
            _make(path)
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
    return None


def _make(path: Path) -> None:
    """Makes the key atomically, unless another process has just made it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with ensure_folder(path.parent):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            with suppress(FileExistsError):
                os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
