"""The page over several graphs, and the summary of each that it is made of.

attribution/index.html
            pages/*.js, *.css      copies of list/ of this package and of site/ of dictlearn.pages
                  graphs.js        the summaries of <slug>/summary.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dictlearn.attribution.page.columns import FEATURE, LOGIT, Node
from dictlearn.ckpt.commit import commit
from dictlearn.disk.replace import check_file_replaceable, check_replaceable
from dictlearn.disk.strict_json import read_json
from dictlearn.disk.whole import write_bytes
from dictlearn.pages.scripts import PAGE, copy_site, page_in, script

PACKAGE, FOLDER, SITE = "dictlearn.attribution.page", "pages", "list"
SORT = "a page over attribution graphs"
OURS = b'src="pages/list.js"'  # only in our index.html
SUMMARY, FORMAT = "summary.json", 1
OUTPUTS = 5  # of each graph, the likeliest


def summary(about: Mapping[str, Any], nodes: Sequence[Node], n_links: int) -> dict[str, Any]:
    """What the page over all graphs says of one; JSON. `about` is that of columns.py."""
    outputs = sorted((n for n in nodes if n.type == LOGIT), key=lambda n: -n.probability)
    return {
        "format": FORMAT,
        **{key: about[key] for key in ("title", "of", "prompt", "scores")},
        "tokens": len(about["tokens"]),
        "features": sum(node.type == FEATURE for node in nodes),
        "links": n_links,
        "outputs": [[node.label, node.probability] for node in outputs[:OUTPUTS]],
    }


def is_summary(value: Any) -> bool:
    """Whether JSON is such a summary."""
    keys = {"title", "of", "prompt", "scores", "tokens", "features", "links", "outputs"}
    return isinstance(value, dict) and value.get("format") == FORMAT and keys <= value.keys()


def write_index(folder: Path, overwrite: bool | None = None) -> Path:
    """Writes index.html and pages/ into `folder`, over the graphs in its folders; returns the page.

    Raises SaveError where index.html or pages/ is not ours, unless `overwrite`.
    """
    check_file_replaceable(folder / PAGE, lambda data: OURS in data, overwrite)
    check_replaceable(folder / FOLDER, SORT, overwrite)

    def write(temporary: Path) -> None:
        copy_site(PACKAGE, temporary, SITE)
        script(temporary / "graphs.js", "graphs", list(_summaries(folder)))

    commit(folder / FOLDER, write, sort=SORT, overwrite=overwrite)
    write_bytes(folder / PAGE, page_in(PACKAGE, SITE))
    return folder / PAGE


def _summaries(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the summaries, by name of their folder; folders without one are left out."""
    for inner in sorted(folder.iterdir()):
        if not (inner / SUMMARY).is_file() or not (inner / PAGE).is_file():
            continue
        known = read_json(inner / SUMMARY)
        if is_summary(known):
            yield known | {"address": quote(f"{inner.name}/{PAGE}")}
