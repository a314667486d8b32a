"""Documents from local files, whose formats are detected from their content."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from dictlearn.sources.columns import Column, column_of
from dictlearn.sources.content import BLANK, CHUNK, UNREADABLE, TextReader, check_text, why_not
from dictlearn.sources.documents import Document
from dictlearn.sources.left_out import LeftOut

NAMED = 3  # of the files that cannot be read
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


def refuse_unreadable(files: Sequence[Path], limit: int | None = None) -> None:
    """Checks that files are text, reading `limit` bytes in all, before any work.

    Raises:
        ValueError: all are empty; or some are not text, which the sentence counts and names.
    """
    if all(_is_blank(path) for path in files):
        if len(files) == 1:
            raise ValueError(f"data.paths={files[0]}: there is no text in it")
        raise ValueError(f"data.paths: there is no text in any of the {len(files)} files")
    reasons: dict[Path, str] = {}
    for path in files:
        if limit is not None and limit <= 0:
            break
        try:
            with path.open("rb") as file:
                n = check_text(file, limit)
        except UNREADABLE as error:
            reasons[path] = why_not(error)
        else:
            limit = None if limit is None else limit - n
    if len(reasons) == 1:
        ((path, reason),) = reasons.items()
        raise ValueError(f"data.paths: {path} cannot be read: {reason}")
    if reasons:
        listed = [f"{path}: {reason}" for path, reason in reasons.items()][:NAMED]
        more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        raise ValueError(
            f"data.paths: {len(reasons)} of {len(files)} files cannot be read: "
            f"{'; '.join(listed)}{more}"
        )


def _is_blank(path: Path) -> bool:
    return path.stat().st_size <= CHUNK and not path.read_bytes().strip(BLANK)


def text_documents(
    paths: str | Sequence[str],
    field: str | Column | None = "text",
    split_on: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Document]:
    """The documents in files and globs; the key of a document is its text.

    In JSON lines, a JSON array or parquet, the `field` of each row is a document. Any other file is
    UTF-8 text and one document, or several that `split_on` separates. `left_out` counts rows without
    text. Raises ValueError, with the file's name and the reason, if a file cannot be read.
    """
    reader = TextReader(
        "data.paths", column_of(field), split_on, LeftOut() if left_out is None else left_out
    )
    files = find_files(paths)
    refuse_unreadable(files)
    for path in files:
        with path.open("rb") as file:
            for text in reader.texts(file, str(path)):
                yield Document(text, text)
