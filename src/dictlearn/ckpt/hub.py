"""Download a dictionary from a hub repository, and only the files that it needs."""

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

from dictlearn.ckpt.foreign import alone_in, folders_with, importers, wanted, wanted_with
from dictlearn.lm.hub import HUB_ID, REACH_SECONDS, explain_refusal

OWN = ("dictionary.safetensors", "dictionary.json")
SUBFOLDERS = ("", "dictionary/")  # where our own files are; the second is in a run's folder
LISTED = 5  # folders with a dictionary that an error names


def download(name: str, revision: str | None) -> Path:
    """The local folder of `owner/name` or `owner/name/folder`, or the local path of a file in it.

    Only the files of the dictionary are downloaded, into the hub's own cache. If the hub cannot be
    reached, the cache is read.

    Raises:
        ValueError: one sentence, if there is no dictionary or the hub refuses.
    """
    pieces = name.split("/")
    repo, inner = "/".join(pieces[:2]), "/".join(pieces[2:])
    if len(pieces) < 2 or not HUB_ID.fullmatch(repo) or {"", ".", ".."} & {*pieces[:-1]}:
        raise ValueError(
            f"{name}: no such folder, and not a hub id (owner/name, or owner/name/folder)"
        )
    refusal, files = None, []
    try:
        files = _choose(name, inner.rstrip("/"), _listing(repo, revision))
    except (HTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        refusal = error
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[glob.escape(file) for file in files],
            local_files_only=refusal is not None,
        )
    except (LocalEntryNotFoundError, HTTPError, HFValidationError) as error:
        cause = refusal or error
        sentence = explain_refusal(
            cause,
            name,
            repo,
            revision,
            what="dictionary",
            at="revision",
            remedy=_by_hand(repo, inner.rstrip("/")),
        )
        raise ValueError(sentence) from cause
    return Path(folder) / inner


def _by_hand(repo: str, inner: str) -> str:
    """A sentence about downloading by hand, which keeps the folders' names that some readers need."""
    folder = repo.rpartition("/")[2]
    is_file = inner.endswith((".safetensors", ".pt", ".pth"))
    include = f" --include '{inner}{'' if is_file else '/*'}'" if inner else ""
    path = f"{folder}/{inner}" if inner else folder
    return (
        f"download it elsewhere, `hf download {repo}{include} --local-dir {folder}`, and "
        f"give <where it is>/{path}"
    )


def _listing(repo: str, revision: str | None) -> dict[str, int | None]:
    """The repository's files and their sizes, if the hub has them; doesn't retry."""
    api = HfApi()
    info = api.model_info(repo, revision=revision, timeout=REACH_SECONDS, files_metadata=True)
    return {file.rfilename: file.size for file in info.siblings or []}


def _choose(name: str, inner: str, listing: Mapping[str, int | None]) -> list[str]:
    """The files of the dictionary in the folder `inner`, or in the file `inner`, of any format."""
    if inner in listing and (files := wanted_with(inner, listing)):
        return files
    prefix = f"{inner}/" if inner else ""
    below = {f.removeprefix(prefix): size for f, size in listing.items() if f.startswith(prefix)}
    alone = [] if _own(below) else alone_in(below)
    if len(alone) > 1:
        raise ValueError(
            f"{name}: the repository holds {len(alone)} dictionaries, a file each; ask for one, such as "
            f"{name}/{alone[len(alone) // 2]}, or download the layers that you want and give their folder"
        )
    files = _own(below) or wanted(below)
    if files:
        return [prefix + file for file in files]
    usable = sorted((folders_with(below) | _own_folders(below)) - {""})
    hint = ""
    if usable:
        more = ", ..." if len(usable) > LISTED else ""
        hint = f"; there are some in {', '.join(usable[:LISTED])}{more}: ask for {name}/<folder>"
    raise ValueError(
        f"{name}: the repository holds no dictionary here; want dictionary.json, or what "
        f"{', '.join(importers())} wrote{hint}"
    )


def _own(below: Mapping[str, int | None]) -> list[str]:
    for folder in SUBFOLDERS:
        files = [folder + file for file in OWN]
        if all(file in below for file in files):
            return files
    return []


def _own_folders(below: Mapping[str, int | None]) -> set[str]:
    described = {file.rpartition("/")[0] for file in below if file.endswith(f"/{OWN[1]}")}
    return {folder for folder in described if f"{folder}/{OWN[0]}" in below}
