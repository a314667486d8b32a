"""Documents streamed from a data set on the hub, or from a local folder in the hub's layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dictlearn.lm.hub import HUB_ID, REACH_SECONDS, explain_refusal
from dictlearn.sources.columns import Column, WrongField, column_of, top_columns
from dictlearn.sources.content import TextReader
from dictlearn.sources.documents import Document
from dictlearn.sources.left_out import LeftOut


def hub_documents(
    path: str,
    name: str | None = None,
    split: str = "train",
    field: str | Column = "text",
    revision: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Document]:
    """Streams the rows of a data set in its own order; the key of a document is its text.

    Args:
        path: hub id of the data set, or a folder with its files.
        name: one of its configurations, if it has several.
        split: the data set's own split, which we split into train and eval.
        field: the column of the text, or what makes a document of a row; no other column is read.
        revision: branch, tag or commit.
        left_out: counts rows without text.

    Raises ValueError, in one sentence that names the key.
    """
    import datasets  # the import takes most of a second, and only this kind of data needs it
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's
        OfflineModeIsEnabled,
    )

    where = f"data.path={path}"
    folder = Path(path).expanduser()
    left_out = LeftOut() if left_out is None else left_out
    column = column_of(field)
    if column is None:
        raise ValueError(f"data.field={field}: want the name of the column that holds the text")
    try:
        if not folder.exists():
            _check_exists(path, revision, where)
        with _naming_keys(f"{where} data.name={name} data.hub_split={split}"):
            builder = datasets.load_dataset_builder(
                str(folder) if folder.is_dir() else path, name=name, revision=revision
            )
        _check_files(builder, path, folder if folder.is_dir() else None)
        with _naming_keys(f"{where} data.name={name} data.hub_split={split}"):
            texts = _texts(builder, path, split, TextReader(where, column, None, left_out))
        for text in texts:
            yield Document(text, text)
    except (ConnectionError, OfflineModeIsEnabled, HTTPError) as error:
        remedy = "download it and pass data.path=<folder>"
        raise ValueError(
            explain_refusal(
                error, where, path, revision, what="data set", at="data.revision", remedy=remedy
            )
        ) from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{where}: no such folder with data files, and no data set of that name on the hub "
            f"that you may read (`hf auth login` for a private one)"
        ) from error
    except (DatasetGenerationError, pa.ArrowException, TypeError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def _check_files(builder: Any, path: str, folder: Path | None) -> None:
    """Refuses a data set whose README.md, written by anybody, names files outside the data set.

    The patterns in it are expanded by now, so these are the files that would be read.
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
    """Compares paths without following links: a snapshot in the hub's cache consists of links."""
    root = os.path.abspath(folder)
    return os.path.commonpath([root, os.path.abspath(file)]) == root


@contextmanager
def _naming_keys(keys: str) -> Iterator[None]:
    """Puts the keys and their values before the message of a ValueError of `datasets`."""
    try:
        yield
    except (pa.ArrowInvalid, WrongField):  # these are ValueErrors that name their cause
        raise
    except ValueError as error:
        raise ValueError(f"{keys}: {error}") from error


def _check_exists(path: str, revision: str | None, where: str) -> None:
    """Asks the hub for the data set once, as `datasets` would retry for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
    )

    if not HUB_ID.fullmatch(path):
        raise FileNotFoundError(path)
    try:
        url = hf_hub_url(path, "README.md", repo_type="dataset", revision=revision)
        get_hf_file_metadata(url, timeout=REACH_SECONDS)
    except RemoteEntryNotFoundError:
        return  # the data set exists, without a card
    except OfflineModeIsEnabled:
        return  # `datasets` doesn't retry then, and may have a local copy
    except HTTPError as error:
        remedy = "download it and pass data.path=<folder>"
        at, repo = "data.revision", f"datasets/{path}"
        sentence = explain_refusal(
            error, where, repo, revision, what="data set", at=at, remedy=remedy
        )
        raise ValueError(sentence) from error


def _texts(builder: Any, path: str, split: str, reader: TextReader) -> Iterator[str]:
    """The texts of one split. JSON is read here, as `datasets` wants equal columns in all files."""
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.utils.file_utils import xopen

    files = builder.config.data_files or {}
    if isinstance(builder, Json | Parquet) and split not in files:
        raise ValueError(f"there are {', '.join(map(str, files))}")
    if isinstance(builder, Json):
        return (
            text for name in files[split] for text in _file_texts(xopen(name, "rb"), name, reader)
        )
    if isinstance(builder, Parquet):
        with xopen(files[split][0], "rb") as file:
            names = pq.read_schema(file).names
        assert reader.column is not None
        columns = top_columns(reader.column, names)
        if columns is None:
            raise WrongField(reader.column, dict.fromkeys(names), f"row 0 of {path}")
        cast("Any", builder.config).columns = columns
    rows = enumerate(builder.as_streaming_dataset(split=split))
    return reader.of_rows((f"row {number} of {path}", row) for number, row in rows)


def _file_texts(file: Any, name: str, reader: TextReader) -> Iterator[str]:
    with file:
        yield from reader.texts(file, name)
