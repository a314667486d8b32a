"""Finds the local folder of the model that `model.path` names, downloading it if need be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's: the hub's choice
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dictlearn.disk.errors import content_error

PICO_PATH = Path(__file__).parent / "pico"
SHAPES = Path(__file__).parent / "shapes"  # config.json of the presets' models: sizes, no weights

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
REACH_SECONDS = 5.0  # one request; the hub's own client would retry for half a minute

Part = Literal["config", "tokenizer", "weights"]  # each includes the parts before it
TOKENIZER = ["*.json", "*.model", "*.txt", "*.jinja"]
WANTED = [*TOKENIZER, "*.safetensors"]
# Subfolders and `consolidated` files hold the same weights once more, in other people's layouts.
UNWANTED = ["*/*", "consolidated*"]


def locate(
    path: str, revision: str | None, part: Part, *, shape: bool = False
) -> tuple[Path, str | None]:
    """The model's folder and its revision: the commit for a hub id, else `revision` as given.

    For a hub id, `part` is downloaded into the hub's own cache, or read from there if the hub cannot
    be reached. With `shape`, a config.json that ships with dictlearn is the last resort; there is
    one for every preset. Raises ValueError, in a sentence that says what to do.
    """
    if path == "pico":
        folder = PICO_PATH
    elif path and Path(path).expanduser().exists():
        folder = Path(path).expanduser()
    elif path and HUB_ID.fullmatch(path):
        try:
            folder = _from_hub(path, revision, part)
        except ValueError:
            if shape and revision is None and (SHAPES / path / "config.json").is_file():
                return SHAPES / path, None
            raise
        return folder, folder.name
    else:
        raise ValueError(f"model.path={path}: no such folder, and not a hub id (owner/name)")
    read_json(path, folder, "config.json")
    return folder, revision


def read_json(path: str, folder: Path, name: str) -> dict[str, object]:
    """The JSON object in one file of the model's folder; errors name `path`, the user's own."""
    file = folder / name
    if not file.is_file():
        raise ValueError(
            f"model.path={path}: no {name} in {folder}; want a folder in the hub's layout "
            f"(config.json, *.safetensors, tokenizer.json)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"model.path={path}: {file} is not valid JSON: {content_error(error)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"model.path={path}: {file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"model.path={path}: {file} holds no JSON object")
    return content


def _from_hub(path: str, revision: str | None, part: Part) -> Path:
    refusal = _refusal(path, revision)
    local_only = refusal is not None
    try:
        if part == "config":
            file = hf_hub_download(
                path, "config.json", revision=revision, local_files_only=local_only
            )
            return Path(file).parent
        folder = snapshot_download(
            path,
            revision=revision,
            allow_patterns=WANTED if part == "weights" else TOKENIZER,
            ignore_patterns=UNWANTED,
            local_files_only=local_only,
        )
        return Path(folder)
    except (LocalEntryNotFoundError, HTTPError, HFValidationError) as error:
        cause = refusal or error
        sentence = explain_refusal(
            cause,
            f"model.path={path}",
            path,
            revision,
            what="model",
            at="model.revision",
            remedy="download it and pass model.path=<folder>",
        )
        raise ValueError(sentence) from cause


def _refusal(path: str, revision: str | None) -> Exception | None:
    """The error that the hub answers a request for this model with, or None. It doesn't retry."""
    try:
        url = hf_hub_url(path, "config.json", revision=revision)
        get_hf_file_metadata(url, timeout=REACH_SECONDS)
    except (HTTPError, OfflineModeIsEnabled, HFValidationError) as error:
        return error
    return None


def explain_refusal(
    error: Exception,
    where: str,
    repo: str,
    revision: str | None,
    *,
    what: str,
    at: str,
    remedy: str,
) -> str:
    """One sentence that says why the hub refused a download, and what to do.

    Args:
        error: the exception that the hub's client raised.
        where: the key and value that named the download; the sentence begins with it.
        what: the kind of repository: model, data set or dictionary.
        at: the key of the revision.
        remedy: what to do if the hub cannot be reached.
    """
    if looks_local(repo.removeprefix("datasets/")) and not isinstance(
        error, HFValidationError | RepositoryNotFoundError
    ):
        where = f"{where}: no such folder; as a hub id"
        remedy = f"want a folder that is there, or the hub id of a {what}"
    here = f" at revision {revision}" if revision else ""
    match error:
        case HFValidationError():
            return f"{where}: no such folder, and not a hub id (owner/name)"
        case GatedRepoError():
            return (
                f"{where}: its owner wants its terms accepted at https://huggingface.co/{repo}; do "
                f"that and log in with `hf auth login`"
            )
        case RevisionNotFoundError():
            return f"{at}={revision}: {repo} has no such branch, tag or commit"
        case RepositoryNotFoundError():
            return (
                f"{where}: no such folder here and no such {what} on the hub, unless it is private: "
                f"then log in with `hf auth login`"
            )
        case RemoteEntryNotFoundError():
            return f"{where}: the repository has no config.json{here}; want a transformers model"
        case HfHubHTTPError():
            return f"{where}: {_explain_status(error, here)}"
        case _:
            return f"{where}: the hub cannot be reached and no local copy was found{here}; {remedy}"


def looks_local(path: str) -> bool:
    """Whether what could be a hub id is rather a path here: in runs/, or in a folder that there is."""
    first, slash, _ = path.partition("/")
    return first in ("runs", ".", "..", "~", "") or bool(slash) and Path(first).is_dir()


def _explain_status(error: HfHubHTTPError, here: str) -> str:
    status = error.response.status_code
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        return (
            "the hub does not accept your token; log in anew with `hf auth login`, or unset HF_TOKEN "
            "where that holds an old one"
        )
    if status in (401, 403):
        return "the hub refuses access to it; log in with `hf auth login`"
    if status == 429:
        return (
            "the hub takes no more requests from here for now (rate limit); try again in some "
            "minutes, or log in with `hf auth login`, which allows more"
        )
    return (
        f"the hub answers with status {status} and no local copy was found{here}; try again later"
    )
