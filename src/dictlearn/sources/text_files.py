"""Documents from local files: plain text, JSON lines and parquet, each also gzipped."""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dictlearn.sources.documents import Document


def find_files(paths: str | Sequence[str]) -> list[Path]:
    """The files that paths and globs name, each once, in the order given; a glob's are sorted.

    `**` in a glob stands for any number of folders.
    """
    found: list[Path] = []
    for pattern in [paths] if isinstance(paths, str) else paths:
        expanded = Path(pattern).expanduser()
        if expanded.is_dir():
            raise ValueError(
                f"data.paths={pattern}: is a folder; want files, or a glob such as "
                f"{expanded / '**' / '*.txt'}"
            )
        names = (
            [expanded] if expanded.exists() else sorted(glob.glob(str(expanded), recursive=True))
        )
        files = [path for path in map(Path, names) if path.is_file()]
        if not files:
            raise ValueError(
                f"data.paths={pattern}: no file matches; want files or globs of text, .jsonl or "
                f".parquet, each also with .gz"
            )
        found += files
    if not found:
        raise ValueError("data.paths=[]: want files or globs of text, .jsonl or .parquet")
    return list(dict.fromkeys(path.resolve() for path in found))


def text_documents(paths: str | Sequence[str], field: str = "text") -> Iterator[Document]:
    """The documents in files and globs; the key of each is its text.

    One document per row of a .jsonl or .parquet, in its `field`, and one per file of any other
    kind, which is read as UTF-8. Each also with .gz behind its name.
    """
    for path in find_files(paths):
        try:
            for text in _texts(path, field):
                yield Document(text, text)
        except UnicodeDecodeError as error:
            raise _unreadable(path, f"it is not UTF-8 text at byte {error.start}") from error
        except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
            raise _unreadable(path, str(error)) from error


def checked_text(row: dict[str, Any], field: str, where: str) -> str:
    """The row's text, or a sentence with the fields that it does have."""
    if field not in row:
        raise ValueError(
            f"data.field={field}: {where} has no such field, but {', '.join(map(str, row))}"
        )
    if not isinstance(row[field], str):
        raise ValueError(
            f"data.field={field}: {where} holds {type(row[field]).__name__}; want a field of text"
        )
    return row[field]


def _texts(path: Path, field: str) -> Iterator[str]:
    zipped = path.suffix == ".gz"
    kind = Path(path.stem).suffix if zipped else path.suffix
    with cast(IO[bytes], gzip.open(path) if zipped else path.open("rb")) as file:
        if kind == ".jsonl":
            yield from _json_lines(file, field, path)
        elif kind == ".parquet":
            # A parquet file is read from its end: the zipped kind has to be unpacked first.
            yield from _parquet(io.BytesIO(file.read()) if zipped else file, field, path)
        else:
            yield file.read().decode("utf-8-sig")


def _json_lines(lines: Iterable[bytes], field: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise _unreadable(path, f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise _unreadable(path, f"line {number} is not a JSON object")
        yield checked_text(row, field, f"{path} line {number}")


def _parquet(file: IO[bytes], field: str, path: Path) -> Iterator[str]:
    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    columns = [field] if field in names else names
    for batch in table.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            yield checked_text(row, field, str(path))


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"data.paths: {path} cannot be read: {why}")
