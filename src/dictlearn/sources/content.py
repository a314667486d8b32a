"""Read the documents of one file, whose format is detected from its content, not from its name.

The formats are JSON lines, a JSON array, parquet and plain text, compressed or not. Names are not
reliable: JSON lines are called .jsonl, .ndjson, .json and .JSONL, with or without compression.
"""

from __future__ import annotations

import codecs
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

from dictlearn.disk.errors import error_text
from dictlearn.sources.columns import ABSENT, Column, WrongField, top_columns, value_at
from dictlearn.sources.left_out import LeftOut

COMPRESSED = {  # fsspec's name of the compression, and the first bytes of its files
    "gzip": rb"\x1f\x8b",
    "bz2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\x00",
    "zstd": rb"\x28\xb5\x2f\xfd",
}
NO_TEXT = {"a zip archive": rb"PK\x03\x04", "a PDF": rb"%PDF-"}
PARQUET = b"PAR1"
BLANK = b"\xef\xbb\xbf \t\r\n\f\v"  # white space, and the byte order mark of UTF-8
Rows = Iterable[tuple[str, Mapping[str, Any]]]  # (which row of which file, its fields)
UNREADABLE = (OSError, EOFError, ValueError, RecursionError, zlib.error, LZMAError)
CHUNK = 1 << 20  # bytes that are decoded at once
NAMED_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$", re.IGNORECASE)


@final
@dataclass(frozen=True)
class TextReader:
    """Reads the documents of files.

    Args:
        key: the configuration's key for the files, for errors.
        column: makes documents from rows of JSON or parquet; None reads every file as text.
        split_on: the separator of documents in plain text; None makes a file one document.
        left_out: counts rows without a document.
    """

    key: str
    column: Column | None
    split_on: str | None
    left_out: LeftOut

    def __post_init__(self) -> None:
        if self.split_on is not None and not (isinstance(self.split_on, str) and self.split_on):
            raise ValueError(
                f"data.split_on={self.split_on}: want null, or the text that stands between "
                f"documents, such as '\\n\\n'"
            )

    def texts(self, file: IO[bytes], name: str) -> Iterator[str]:
        """The documents of an open file. Raises ValueError, with its name, if it cannot be read."""
        with self._named(name):
            yield from self._texts(file, name)

    def _texts(self, file: IO[bytes], name: str) -> Iterator[str]:
        inner = unpacked(file)
        head = _head(inner)
        _refuse_other(head)
        if self.column is None:
            yield from self._pieces(inner.read())
        elif head.startswith(PARQUET):
            # Parquet is read from the end, so a compressed file is unpacked first.
            table = file if inner is file else io.BytesIO(inner.read())
            yield from self.of_rows(_parquet(table, self.column, name))
        else:
            lines, is_json = _detect_json_lines(inner)
            if is_json or NAMED_JSON_LINES.search(name):
                yield from self.of_rows(_json_lines(lines, name))
                return
            content = b"".join(lines)
            rows = _json_array(content, name)
            yield from self._pieces(content) if rows is None else self.of_rows(rows)

    def of_rows(self, rows: Rows) -> Iterator[str]:
        """The document of each row; rows without one are left out, but the first must have one."""
        assert self.column is not None
        has_document = False
        for where, row in rows:
            text = self.column.document(row)
            if text is not None:
                has_document = True
                yield text
            elif has_document or _is_null(row, self.column):
                self.left_out[self.column.lacking] += 1
            else:
                raise WrongField(self.column, row, where)

    def _pieces(self, content: bytes) -> Iterator[str]:
        text = content.decode("utf-8-sig")
        if self.split_on is None:
            yield text
        else:
            yield from re.split(_separator(self.split_on), text)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except WrongField:
            raise
        except UNREADABLE as error:
            raise ValueError(f"{self.key}: {name} cannot be read: {why_not(error)}") from error


def why_not(error: BaseException) -> str:
    """The reason why a file cannot be read, from an error of UNREADABLE."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text at byte {error.start:,} (iconv -f latin1 -t utf-8 converts Latin-1)"
    return error_text(error)


def check_text(file: IO[bytes], limit: int | None = None) -> int:
    """Checks that a file, or its first `limit` bytes, is UTF-8 or parquet; returns bytes read.

    Raises:
        UnicodeDecodeError: `start` is the byte's offset in the file's decompressed content.
        OSError, EOFError, ValueError, ...: the file is damaged, or not text.
    """
    inner = unpacked(file)
    head = _head(inner)
    _refuse_other(head)
    decoder, n = codecs.getincrementaldecoder("utf-8")(), 0
    while not head.startswith(PARQUET) and (limit is None or n < limit):
        chunk = inner.read(CHUNK)
        before = n - len(decoder.getstate()[0])  # a character may begin in the chunk before
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            error.start += before
            raise
        if not chunk:
            break
        n += len(chunk)
    return n


def _is_null(row: Mapping[str, Any], column: Column) -> bool:
    """Whether the row has all fields, and one of them is null."""
    values = [value_at(row, field) for field in column.fields.values()]
    return None in values and ABSENT not in values


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """The file itself, or a reader of its decompressed content."""
    head = _head(file)
    for kind, magic in COMPRESSED.items():
        if re.match(magic, head):
            if kind not in compr:
                raise ValueError(f"it is compressed with {kind}, which needs `pip install {kind}`")
            inner: Any = compr[kind](file, mode="rb")
            return cast("IO[bytes]", inner if hasattr(inner, "peek") else io.BufferedReader(inner))
    return file


def _refuse_other(head: bytes) -> None:
    for kind, magic in NO_TEXT.items():
        if re.match(magic, head):
            raise ValueError(f"it is {kind}; want text, JSON lines or parquet")


def _head(file: IO[bytes]) -> bytes:
    """The first bytes, without moving the file's position."""
    if hasattr(file, "peek"):
        return file.peek(16)[:16]  # type: ignore[attr-defined]
    head = file.read(16)
    file.seek(0)
    return head


def _detect_json_lines(file: IO[bytes]) -> tuple[Iterator[bytes], bool]:
    """(all lines, whether they are JSON lines), judged by the first two that are not blank."""
    lines: list[bytes] = []
    objects = 0
    for line in file:
        lines.append(line)
        if not line.strip(BLANK):
            continue
        if not line.lstrip(BLANK).startswith(b"{") or not _is_object(line):
            objects = 0
            break
        objects += 1
        if objects == 2:
            break
    return chain(lines, file), objects > 0


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


def _json_array(content: bytes, name: str) -> Rows | None:
    """The rows of a file that is one JSON array of objects; None for any other file."""
    if not content.lstrip(BLANK).startswith(b"["):
        return None
    try:
        rows = _loads(content)
    except (ValueError, RecursionError):
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return [(f"{name} row {number}", row) for number, row in enumerate(rows)]


def _parquet(file: IO[bytes], column: Column, name: str) -> Rows:
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        for batch in table.iter_batches(1024, columns=top_columns(column, names) or names):
            yield from ((name, row) for row in batch.to_pylist())
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _separator(split_on: str) -> str:
    r"""The pattern for `split_on`, in which backslash escapes such as `\n` may stand for characters.

    A line may also end with Windows' CR LF.
    """
    text = re.sub(
        r"\\([ntr\\])", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], "\\"), split_on
    )
    return re.escape(text).replace("\\\n", "\n").replace("\n", "\r?\n")
