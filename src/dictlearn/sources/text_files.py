"""Documents from local files, whose formats are detected from their content."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from dictlearn.sources.content import TextReader
from dictlearn.sources.documents import Document
from dictlearn.sources.left_out import LeftOut

KINDS = "text, JSON lines or parquet, compressed or not"


def find_files(paths: str | Sequence[str]) -> list[Path]:
    """The files that paths and globs name, without repeats, in order; a glob's files are sorted.

    `**` in a glob matches any number of folders.
    """
    matched: list[Path] = []
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
                f"data.paths={pattern}: no file matches; want files or globs of {KINDS}"
            )
        matched += files
    if not matched:
        raise ValueError(f"data.paths=[]: want files or globs of {KINDS}")
    return list(dict.fromkeys(path.resolve() for path in matched))


def text_documents(
    paths: str | Sequence[str],
    field: str | None = "text",
    split_on: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Document]:
    """The documents in files and globs; the key of a document is its text.

    In JSON lines, a JSON array or parquet, the `field` of each row is a document. Any other file is
    UTF-8 text and one document, or several that `split_on` separates. `left_out` counts rows without
    text. Raises ValueError, with the file's name and the reason, if a file cannot be read.
    """
    reader = TextReader("data.paths", field, split_on, LeftOut() if left_out is None else left_out)
    for path in find_files(paths):
        with path.open("rb") as file:
            for text in reader.texts(file, str(path)):
                yield Document(text, text)
