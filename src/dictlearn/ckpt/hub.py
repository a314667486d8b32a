"""A dictionary of a hub repository: which of its files are wanted, and where they are once here."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's: the hub's choice
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from dictlearn.ckpt.foreign import importers, wanted
from dictlearn.lm.hub import HUB_ID, REACH_SECONDS, explain_refusal

OWN = ("dictionary.safetensors", "dictionary.json")
PLACES = ("", "dictionary/")  # of our own form: the folder itself, or a run's
LISTED = 5  # folders named where there is no dictionary in the one asked for


def fetched(name: str, revision: str | None) -> Path:
    """The local folder with the files of `owner/name`, or of `owner/name/folder`.

    Only what a reader reads is downloaded, into the hub's own cache; what was downloaded once serves
    when the hub doesn't.

    Raises:
        ValueError: one sentence: there is none, or why the hub does not give it.
    """
    pieces = name.split("/")
    repo, inner = "/".join(pieces[:2]), "/".join(pieces[2:])
    if len(pieces) < 2 or not HUB_ID.fullmatch(repo) or {"", ".", ".."} & {*pieces[:-1]}:
        raise ValueError(
            f"{name}: no such folder, and not a hub id (owner/name, or owner/name/folder)"
        )
    trouble, files = None, []
    try:
        files = _chosen(name, inner.rstrip("/"), _listing(repo, revision))
    except (HTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        trouble = error
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[glob.escape(file) for file in files],
            local_files_only=trouble is not None,
        )
    except (LocalEntryNotFoundError, HTTPError, HFValidationError) as error:
        cause = trouble or error
        sentence = explain_refusal(
            cause,
            name,
            repo,
            revision,
            what="dictionary",
            at="revision",
            remedy="download it and give its folder",
        )
        raise ValueError(sentence) from cause
    return Path(folder) / inner


def _listing(repo: str, revision: str | None) -> dict[str, int | None]:
    """The repository's files and their sizes, where the hub says them. One look, no retries."""
    api = HfApi()
    info = api.model_info(repo, revision=revision, timeout=REACH_SECONDS, files_metadata=True)
    return {one.rfilename: one.size for one in info.siblings or []}


def _chosen(name: str, inner: str, listing: Mapping[str, int | None]) -> list[str]:
    """The files that a reader wants of `inner`."""
    above = f"{inner}/" if inner else ""
    below = {f.removeprefix(above): size for f, size in listing.items() if f.startswith(above)}
    found = _own(below) or wanted(below)
    if found:
        return [above + file for file in found]
    folders = sorted({file.rpartition("/")[0] for file in below if "/" in file})
    inside = [folder for folder in folders if _holds(folder, below)]
    hint = ""
    if inside:
        more = ", ..." if len(inside) > LISTED else ""
        hint = f"; there are some in {', '.join(inside[:LISTED])}{more}: ask for {name}/<folder>"
    raise ValueError(
        f"{name}: the repository holds no dictionary here; want dictionary.json, or what "
        f"{', '.join(importers())} wrote{hint}"
    )


def _own(below: Mapping[str, int | None]) -> list[str]:
    for place in PLACES:
        files = [place + file for file in OWN]
        if all(file in below for file in files):
            return files
    return []


def _holds(folder: str, below: Mapping[str, int | None]) -> bool:
    start = f"{folder}/"
    inside = {f.removeprefix(start): size for f, size in below.items() if f.startswith(start)}
    return bool(_own(inside) or wanted({f: s for f, s in inside.items() if "/" not in f}))
