"""Find the files that a list in a downloaded folder names, downloading them from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's: the hub's choice
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from dictlearn.dicts.description import shown
from dictlearn.lm.hub import REACH_SECONDS, explain_refusal

LISTED = re.compile(
    r"hf://([\w.-]+/[\w.-]+)/([\w./-]+\.(?:npz|safetensors))(?:\?revision=([\w.-]+))?"
)
BESIDE = re.compile(r"[\w-][\w.-]*\.(?:npz|safetensors)")


def listed_file(where: Path, entry: object) -> Path:
    """The local path of `hf://owner/name/file`, or of a file beside the list `where`.

    An entry can name no other file of this machine. The hub's cache is tried first.

    Raises:
        ValueError: one sentence: the entry is neither, or the hub refuses the file.
    """
    text = entry if isinstance(entry, str) and ".." not in entry else ""
    if BESIDE.fullmatch(text):
        return where.parent / text
    match = LISTED.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{where}: transcoders lists {shown(entry)}; want hf://<owner>/<name>/<file>, or the name "
            f"of a file beside it, of .npz or .safetensors"
        )
    repository, name, revision = match[1], match[2], match[3]
    try:
        try:
            path = hf_hub_download(repository, name, revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            url = hf_hub_url(repository, name, revision=revision)
            get_hf_file_metadata(url, timeout=REACH_SECONDS)  # one request: a download would retry
            path = hf_hub_download(repository, name, revision=revision)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, HFValidationError) as error:
        sentence = explain_refusal(
            error,
            f"{where}: {name} of {repository}, which it lists",
            repository,
            revision,
            what="dictionary",
            at="revision",
            remedy=f"download it elsewhere, `hf download {repository} {name}`, and copy "
            f"the hub's cache",
        )
        raise ValueError(sentence) from error
    return Path(path)
