"""Documents streamed from a data set on the hub, or from a local folder in the hub's layout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dictlearn.sources.documents import Document
from dictlearn.sources.text_files import checked_text


def hub_documents(
    path: str,
    name: str | None = None,
    split: str = "train",
    field: str = "text",
    revision: str | None = None,
) -> Iterator[Document]:
    """Rows in the data set's own order, nothing downloaded ahead; the key of each is its text.

    Args:
        path: hub id of the data set, or a folder with its files.
        name: which of its configurations, where it has several.
        split: the data set's own split; ours, into train and eval, is within it.
        field: the column that holds the text.
        revision: branch, tag or commit.

    Raises ValueError, in one sentence that names the key.
    """
    import datasets  # most of a second, and only this kind of data needs it
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's
        OfflineModeIsEnabled,
    )

    where = f"data.path={path}"
    folder = Path(path).expanduser()
    try:
        try:
            builder = datasets.load_dataset_builder(
                str(folder) if folder.is_dir() else path, name=name, revision=revision
            )
            rows: Iterable[Any] = builder.as_streaming_dataset(split=split)
        except pa.ArrowInvalid:  # a ValueError too
            raise
        except ValueError as error:  # of datasets, about its arguments
            raise ValueError(f"{where} data.name={name} data.hub_split={split}: {error}") from error
        _check_files(builder, path, folder if folder.is_dir() else None)
        for number, row in enumerate(rows):
            text = checked_text(row, field, f"row {number} of {path}")
            yield Document(text, text)
    except (ConnectionError, OfflineModeIsEnabled, HTTPError) as error:
        raise ValueError(
            f"{where}: the hub cannot be reached and no local copy was found; download it and "
            f"pass data.path=<folder>"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{where}: no such folder with data files, and no data set of that name on the hub "
            f"that you may read (`hf auth login` for a private one)"
        ) from error
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def _check_files(builder: Any, path: str, folder: Path | None) -> None:
    """Refuses a data set whose README.md names files of another place: it comes from anybody.

    Its patterns are expanded by now, so what is looked at is what would be read.
    """
    inside = f"hf://datasets/{builder.repo_id}@" if folder is None else ""
    for files in (builder.config.data_files or {}).values():
        for file in map(str, files):
            if folder is None:
                own = file.startswith(inside)
            else:
                own = "://" not in file and _is_inside(file, folder)
            if not own:
                raise ValueError(
                    f"data.path={path}: names the data file {file}, which is not its own; want files "
                    f"in the data set itself"
                )


def _is_inside(file: str, folder: Path) -> bool:
    """By name: a snapshot of the hub's cache holds links to where its files are."""
    root = os.path.abspath(folder)
    return os.path.commonpath([root, os.path.abspath(file)]) == root
