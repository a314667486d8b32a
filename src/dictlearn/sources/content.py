"""The documents in one file, which its content tells apart: JSON lines, parquet or plain text.

Names say nothing reliable: JSON lines are called .jsonl, .ndjson, .json and .JSONL, and data sets
compress them or not under the same name.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from lzma import LZMAError
from typing import IO, Any, cast, final

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr

from dictlearn.disk.amiss import told
from dictlearn.sources.left_out import ROWS, LeftOut

PACKED = {  # what each begins with, by the name that fsspec opens it under
    "gzip": rb"\x1f\x8b",
    "bz2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\x00",
    "zstd": rb"\x28\xb5\x2f\xfd",
}
NO_TEXT = {"a zip archive": rb"PK\x03\x04", "a PDF": rb"%PDF-"}
PARQUET = b"PAR1"
BLANK = b"\xef\xbb\xbf \t\r\n\f\v"  # white space, and the mark that may stand before UTF-8
Rows = Iterable[tuple[str, Mapping[str, Any]]]  # (which row of which file, its fields)
NAMED_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$", re.IGNORECASE)


@final
@dataclass(frozen=True)
class TextReader:
    """Reads files by what they hold.

    Args:
        key: what a user's configuration calls the files, for sentences.
        field: of a row of JSON or parquet, a document each; None reads every file as plain text.
        split_on: what stands between the documents of plain text; None: a file is one document.
        left_out: counts rows without text.
    """

    key: str
    field: str | None
    split_on: str | None
    left_out: LeftOut

    def __post_init__(self) -> None:
        if self.split_on is not None and not (isinstance(self.split_on, str) and self.split_on):
            raise ValueError(
                f"data.split_on={self.split_on}: want null, or the text that stands between "
                f"documents, such as '\\n\\n'"
            )

    def texts(self, file: IO[bytes], name: str) -> Iterator[str]:
        """The documents of an open file. ValueError, with its name, where it cannot be read."""
        with self._named(name):
            yield from self._texts(file, name)

    def _texts(self, file: IO[bytes], name: str) -> Iterator[str]:
        inner = unpacked(file)
        head = _head(inner)
        for what, magic in NO_TEXT.items():
            if re.match(magic, head):
                raise ValueError(f"it is {what}; want text, JSON lines or parquet")
        if self.field is None:
            yield from self._pieces(inner.read())
        elif head.startswith(PARQUET):
            # It is read from its end: what is compressed has to be unpacked first.
            table = file if inner is file else io.BytesIO(inner.read())
            yield from self.column(_parquet(table, self.field, name))
        else:
            lines, is_json = _told_apart(inner)
            if is_json or NAMED_JSON_LINES.search(name):
                yield from self.column(_json_lines(lines, name))
                return
            whole = b"".join(lines)
            rows = _json_array(whole, name)
            yield from self._pieces(whole) if rows is None else self.column(rows)

    def column(self, rows: Rows) -> Iterator[str]:
        """The text of each row. One with text shows that the field is meant: later ones may lack it."""
        assert self.field is not None
        found = False
        for where, row in rows:
            text = row.get(self.field)
            if isinstance(text, str):
                found = True
                yield text
            elif found or (text is None and self.field in row):
                self.left_out[ROWS] += 1
            else:
                raise WrongField(self.field, row, where)

    def _pieces(self, whole: bytes) -> Iterator[str]:
        text = whole.decode("utf-8-sig")
        if self.split_on is None:
            yield text
        else:
            yield from re.split(_between(self.split_on), text)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except WrongField:
            raise
        except UnicodeDecodeError as error:
            why = f"it is not UTF-8 text at byte {error.start}"
            raise ValueError(f"{self.key}: {name} cannot be read: {why}") from error
        except (OSError, EOFError, ValueError, RecursionError, zlib.error, LZMAError) as error:
            raise ValueError(f"{self.key}: {name} cannot be read: {told(error)}") from error


class WrongField(ValueError):
    """A row has no text in the field: a sentence with the fields that it does have."""

    def __init__(self, wanted: str, row: Mapping[str, Any], where: str):
        if wanted in row:
            said = f"{where} holds {type(row[wanted]).__name__}; want a field of text"
        else:
            said = f"{where} has no such field, but {', '.join(map(str, row)) or 'none at all'}"
        super().__init__(f"data.field={wanted}: {said}")


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """The file itself, or what is compressed in it."""
    head = _head(file)
    for kind, magic in PACKED.items():
        if re.match(magic, head):
            if kind not in compr:
                raise ValueError(f"it is compressed with {kind}, which needs `pip install {kind}`")
            inner: Any = compr[kind](file, mode="rb")
            return cast("IO[bytes]", inner if hasattr(inner, "peek") else io.BufferedReader(inner))
    return file


def _head(file: IO[bytes]) -> bytes:
    """The first bytes, which are still to be read afterwards."""
    if hasattr(file, "peek"):
        return file.peek(16)[:16]  # type: ignore[attr-defined]
    head = file.read(16)
    file.seek(0)
    return head


def _told_apart(file: IO[bytes]) -> tuple[Iterator[bytes], bool]:
    """(all lines, whether they are JSON lines): their first two that are not blank tell."""
    seen: list[bytes] = []
    objects = 0
    for line in file:
        seen.append(line)
        if not line.strip(BLANK):
            continue
        if not line.lstrip(BLANK).startswith(b"{") or not _is_object(line):
            objects = 0
            break
        objects += 1
        if objects == 2:
            break
    return chain(seen, file), objects > 0


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(_loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _loads(line: bytes) -> Any:
    return json.loads(line.decode("utf-8-sig"))


def _json_lines(lines: Iterable[bytes], name: str) -> Rows:
    for number, line in enumerate(lines, start=1):
        if not line.strip(BLANK):
            continue
        try:
            row = _loads(line)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        yield f"{name} line {number}", row


def _json_array(whole: bytes, name: str) -> Rows | None:
    """The rows of a file that is one JSON array of objects; None for any other."""
    if not whole.lstrip(BLANK).startswith(b"["):
        return None
    try:
        rows = _loads(whole)
    except (ValueError, RecursionError):
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return [(f"{name} row {number}", row) for number, row in enumerate(rows)]


def _parquet(file: IO[bytes], wanted: str, name: str) -> Rows:
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        for batch in table.iter_batches(1024, columns=[wanted] if wanted in names else names):
            yield from ((name, row) for row in batch.to_pylist())
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _between(split_on: str) -> str:
    r"""A pattern for it: `\n` and `\t`, as a shell gives them, are what they stand for.

    A line may also end as Windows ends it.
    """
    meant = re.sub(
        r"\\([ntr\\])", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], "\\"), split_on
    )
    return re.escape(meant).replace("\\\n", "\n").replace("\n", "\r?\n")
