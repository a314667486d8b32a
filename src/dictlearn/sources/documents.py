"""Documents, and the split of documents into train and eval.

The hash of a document's key decides its split, so adding, removing or reordering documents moves no
other document. In the standard library the key is the relative path, so that a file stays in its
split from one Python version to the next. Elsewhere the key is the text, so that copies are in the
same split.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dictlearn.sources.left_out import EMPTY, FILES, HALVES, REPEATED, LeftOut

HALF = re.compile("[\ud800-\udfff]")


class Document(NamedTuple):
    key: str
    text: str


def is_held_out(key: str, fraction: float, salt: str = "") -> bool:
    """Whether the document is in eval, not in train; a pure function of the arguments.

    A larger fraction holds out the same documents and more.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"data.held_out={fraction}: want a fraction of the documents from 0 to 1")
    return int.from_bytes(_digest(f"{salt}{key}")[:8], "big") < fraction * 2**64


def without_duplicates(
    documents: Iterable[Document], left_out: LeftOut | None = None
) -> Iterator[Document]:
    """The documents without those that are empty or repeat an earlier text.

    Half a character (a lone surrogate, from an emoji that was cut in two) becomes U+FFFD.
    """
    left_out = LeftOut() if left_out is None else left_out
    seen: set[bytes] = set()
    for document in documents:
        if HALF.search(document.text):
            left_out[HALVES] += 1
            document = Document(*map(with_whole_characters, document))
        digest = _digest(document.text)
        if not document.text or document.text.isspace():
            left_out[EMPTY] += 1
        elif digest in seen:
            left_out[REPEATED] += 1
        else:
            seen.add(digest)
            yield document


def with_whole_characters(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, which no tokenizer accepts."""
    return HALF.sub("\ufffd", text)


def stdlib_files() -> list[Path]:
    """The source files of the running interpreter's standard library, sorted by relative path."""
    installed = {"site-packages", "dist-packages", "__pycache__"}
    files: list[Path] = []
    for folder, below, names in os.walk(_stdlib()):
        below[:] = [name for name in below if name not in installed]  # os.walk skips these
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


def stdlib_documents(left_out: LeftOut | None = None) -> list[Document]:
    """The running interpreter's standard library, with its tests if they are installed.

    The key is the path relative to the library. Repeated contents are left out, and the few test
    files that are deliberately not text in the encoding that they declare.
    """
    left_out = LeftOut() if left_out is None else left_out
    documents = []
    for path in stdlib_files():
        try:
            with tokenize.open(path) as file:
                documents.append(Document(path.relative_to(_stdlib()).as_posix(), file.read()))
        except (SyntaxError, UnicodeDecodeError):
            left_out[FILES] += 1
    return list(without_duplicates(documents, left_out))


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
