"""Documents from local files, which are told apart by their content."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from dictlearn.sources.content import TextReader
from dictlearn.sources.documents import Document
from dictlearn.sources.left_out import LeftOut

KINDS = "text, JSON lines or parquet, compressed or not"


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
                f"data.paths={pattern}: no file matches; want files or globs of {KINDS}"
            )
        found += files
    if not found:
        raise ValueError(f"data.paths=[]: want files or globs of {KINDS}")
    return list(dict.fromkeys(path.resolve() for path in found))


def text_documents(
    paths: str | Sequence[str],
    field: str | None = "text",
    split_on: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Document]:
    """The documents in files and globs; the key of each is its text.

    One document per row of JSON lines, of a JSON array or of parquet, in its `field`. Any other file
    is UTF-8 text: one document, or the pieces between which `split_on` stands. Rows without text are
    counted in `left_out`.

    Raises ValueError, with the file's name and the reason, for one that cannot be read.
    """
    reader = TextReader("data.paths", field, split_on, LeftOut() if left_out is None else left_out)
    for path in find_files(paths):
        with path.open("rb") as file:
            for text in reader.texts(file, str(path)):
                yield Document(text, text)
