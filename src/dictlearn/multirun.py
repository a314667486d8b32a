"""The folders of a multirun, each named by its run's overrides, and the page at its end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path

LONGEST = 120  # characters of a folder's name; file systems take 255 bytes


def folder(overrides: Sequence[str], shared: Collection[str], number: int) -> str:
    """`dict.k=16,optim.lr=0.0003`: a run's overrides without the keys that all runs share.

    Characters that do not belong in a file name become `_`. If anything was changed or cut, a hash
    of the overrides follows, so that two runs never share a folder. A run without overrides is named
    by its `number`.
    """
    own = sorted(text for text in overrides if key(text) not in shared)
    whole = ",".join(own)
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", whole).lstrip(".-")[:LONGEST]
    if not safe:
        return str(number)
    if safe != whole:
        safe += f"-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
    return safe


def key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def conclude(folders: Sequence[Path], parent: Path | None, failed: Mapping[str, str]) -> None:
    """Writes the table and the page over a multirun's runs.

    Nothing if there is one run, or if none came to its end: an earlier page then stays.

    Args:
        folders: of the runs that have begun.
        parent: the multirun's folder, where the page goes, if it has one.
        failed: why the others have failed, by the runs' names.
    """
    done = [f for f in folders if f.name not in failed and (f / "figures.json").is_file()]
    if done and len(done) + len(failed) > 1:
        import_module("dictlearn.verbs.compare").conclude(done, parent, failed)
