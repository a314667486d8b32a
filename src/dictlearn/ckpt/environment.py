"""What produced a checkpoint: versions of the libraries, the machine's kind, the git commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_DISTRIBUTIONS = ("dictlearn-lm", "torch", "lightning", "numpy", "safetensors", "transformers")


@cache
def environment() -> dict[str, str | None]:
    """JSON-able; `git` is the commit of the source tree, "+changes" when files differ from it."""
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git": _git_commit(),
        **versions,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    here = Path(__file__).parent
    # An installed package may lie in somebody else's repository, which would not track this file.
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
