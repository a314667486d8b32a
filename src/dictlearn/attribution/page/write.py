"""Writes the page of one graph.

    attribution/<slug>/index.html
                       pages/*.js, *.css       copies of site/ of this package and of dictlearn.pages
                             graph.js          the graph, in columns
                             features-*.js     records of its features
                       summary.json            what the page over all graphs says of it (listing.py)

The folder can be moved or sent alone; only links to the site of all features lead out of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dictlearn.attribution.page import columns
from dictlearn.attribution.page.features import Features, written
from dictlearn.attribution.page.listing import SUMMARY, is_summary, summary
from dictlearn.ckpt.commit import commit
from dictlearn.disk.replace import check_file_replaceable, check_replaceable
from dictlearn.disk.whole import write_bytes, write_json
from dictlearn.pages.record import short
from dictlearn.pages.scripts import PAGE, copy_site, page_in, script

PACKAGE, FOLDER = "dictlearn.attribution.page", "pages"
SORT = "a page of an attribution graph"
OURS = b'src="pages/main.js"'  # only in our index.html
GRAPH = "graph.js"


def write_page(
    folder: Path,
    graph: Any,
    features: Features | None = None,
    *,
    listed: bool = False,
    overwrite: bool | None = None,
) -> Path:
    """Writes index.html, summary.json and pages/ into `folder`; returns the page.

    `graph` is circuit-tracer's JSON, with or without keys of ours (columns.py). `features` adds
    descriptions, examples and logits; without them a node shows its `clerp`. `listed` links to the page
    over all graphs in the folder above (`write_index`). An earlier page stays until the new one is
    whole.

    Raises:
        ValueError: the graph is not one; the sentence names the node or link.
        SaveError: other files would be lost; see `check_page_replaceable`.
    """
    check_page_replaceable(folder, overwrite)
    nodes = columns.nodes_of(graph)
    links, about = columns.links_of(graph, nodes), columns.about(graph)

    def write(temporary: Path) -> None:
        copy_site(PACKAGE, temporary)
        known = {} if features is None else written(nodes, features, folder, temporary)
        data = about | {"listed": listed, "nodes": _columns(nodes), "links": links} | known
        script(temporary / GRAPH, "graph", data)

    commit(folder / FOLDER, write, sort=SORT, overwrite=overwrite)
    write_bytes(folder / PAGE, page_in(PACKAGE))
    write_json(folder / SUMMARY, summary(about, nodes, len(links["weight"])))
    return folder / PAGE


def check_page_replaceable(folder: Path, overwrite: bool | None = None) -> None:
    """Raises SaveError where a file that `write_page` writes is not ours, unless `overwrite`."""
    check_file_replaceable(folder / PAGE, lambda data: OURS in data, overwrite)
    check_file_replaceable(folder / SUMMARY, lambda data: is_summary(json.loads(data)), overwrite)
    check_replaceable(folder / FOLDER, SORT, overwrite)


def _columns(nodes: list[columns.Node]) -> dict[str, list[Any]]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else short(value, 6)

    return {
        "name": [node.name for node in nodes],
        "row": [node.row for node in nodes],
        "position": [node.position for node in nodes],
        "type": [node.type for node in nodes],
        "index": [node.index for node in nodes],
        "influence": [rounded(node.influence) for node in nodes],
        "activation": [rounded(node.activation) for node in nodes],
        "probability": [rounded(node.probability) for node in nodes],
        "label": [node.label for node in nodes],
    }
