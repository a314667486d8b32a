"""Writes the site: index.html, and a folder of scripts and of data in the form of scripts.

    <run>/features/index.html, summary.json (digest.py)
    <run>/features/pages/*.js, style.css     copies of site/ of this package and of dictlearn.pages
                         info.js             description of the store
                         index-*.js          columns over all features, for search and sorting
                         features-*.js       records of consecutive features, about CHUNK_BYTES

Data are scripts (dictlearn/pages/scripts.py). Features are read one by one, and at most one file
of them is in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dictlearn.ckpt.commit import commit
from dictlearn.disk.replace import check_file_replaceable, check_replaceable
from dictlearn.disk.whole import write_bytes, write_json
from dictlearn.features.pages.digest import FILE as SUMMARY
from dictlearn.features.pages.digest import Digest, is_summary
from dictlearn.pages.record import Pieces, main_score, page_of, short, spread, summary
from dictlearn.pages.scripts import CHUNK_BYTES, PAGE, Chunks, copy_site, numbered, page_in, script
from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore

PACKAGE, FOLDER = "dictlearn.features.pages", "pages"
REPORT = "report.html"  # in the run's folder; the site links to it if it exists
SORT = "a site of features"
OURS = b'src="pages/main.js"'  # only in our index.html
INDEX_ROWS = 16384
NONE, RELIABLE, UNRELIABLE = 0, 1, 2  # as in site/data.js
KINDS = {
    "sae": "SAE",
    "plt": "PLT",
    "clt": "CLT",
    "molt": "MOLT",
}  # other kinds are shown as they are

Explanations = Mapping[tuple[int, int], Explanation]


def write_pages(
    store: FeatureStore,
    explanations: Explanations,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool | None = None,
) -> Path:
    """Writes index.html and pages/ into `folder`, usually `store.folder`; returns the page.

    An earlier site stays until the new one is whole. `explanations` are by (source, index);
    `progress` is called with (features done, total). Raises SaveError where other files would be
    lost: see `check_pages_replaceable`.
    """
    check_pages_replaceable(folder, overwrite)

    pieces, digest = Pieces(tokenizer), Digest(store)
    report = store.folder.parent / REPORT
    linked = report.is_file() and folder.resolve() == store.folder.resolve()

    def write(temporary: Path) -> None:
        copy_site(PACKAGE, temporary)
        _write_data(temporary, store, explanations, pieces, digest, linked, progress)

    commit(folder / FOLDER, write, sort=SORT, overwrite=overwrite)
    write_bytes(folder / PAGE, page_in(PACKAGE))
    write_json(folder / SUMMARY, digest.to_json(explanations, pieces))
    return folder / PAGE


def check_pages_replaceable(folder: Path, overwrite: bool | None) -> None:
    """Raises SaveError where index.html, summary.json or pages/ is not ours, unless `overwrite`."""
    check_file_replaceable(folder / PAGE, lambda data: OURS in data, overwrite)
    check_file_replaceable(folder / SUMMARY, is_summary, overwrite)
    check_replaceable(folder / FOLDER, SORT, overwrite)


def _write_data(
    folder: Path,
    store: FeatureStore,
    explanations: Explanations,
    pieces: Pieces,
    digest: Digest,
    linked: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    index, chunks = _Index(folder, len(store.info.targets) > 1), Chunks(folder, CHUNK_BYTES)
    for done, feature in enumerate(store, start=1):
        explanation = explanations.get((feature.source, feature.index))
        page = page_of(feature, explanation, pieces, store.info.n_features)
        output = store.output_score(feature.source, feature.index)
        page["output"] = None if output is None else short(output)
        chunks.add(page)
        digest.add(feature, explanation)
        index.add(page, summary(feature, pieces), explanation, spread(feature, store.info.targets))
        if progress is not None:
            progress(done, len(store))
    index.flush()
    chunks.flush()
    info = _about(store, explanations) | {
        "index_files": index.files,
        "chunk_rows": chunks.first_rows,
        "report": f"../{REPORT}" if linked else None,
    }
    script(folder / "info.js", "info", info)


class _Index:
    """Writes columns over all features, INDEX_ROWS features per file."""

    def __init__(self, folder: Path, several: bool):
        """With `several` targets there are columns for them."""
        self.files = 0
        self._several = several
        self._folder = folder
        self._first = 0
        self._columns: defaultdict[str, list[Any]] = defaultdict(list)

    def add(
        self,
        page: Mapping[str, Any],
        tokens: str,
        explanation: Explanation | None,
        spread: tuple[int, float, float] | None,
    ) -> None:
        reliability = status(explanation)
        score = main_score(explanation) if explanation is not None and reliability != NONE else None
        row = {
            "density": page["density"],
            "maximum": page["maximum"],
            "output": page["output"],
            "score": None if score is None else short(score[1]),
            "status": reliability,
            "text": "" if explanation is None else explanation.text,
            "tokens": tokens,
        }
        if self._several:
            target, part, centre = spread or (None, None, None)
            row |= {
                "target": target,
                "part": part and short(part),
                "centre": centre and short(centre),
            }
        for name, value in row.items():
            self._columns[name].append(value)
        if len(self._columns["text"]) == INDEX_ROWS:
            self.flush()

    def flush(self) -> None:
        if rows := len(self._columns["text"]):
            script(numbered(self._folder, "index", self.files), "index", self._first, self._columns)
            self._first += rows
            self.files += 1
            self._columns.clear()


def status(explanation: Explanation | None) -> int:
    """NONE also for an explanation without text, whose search found no description."""
    if explanation is None or not explanation.text:
        return NONE
    return RELIABLE if explanation.reliable else UNRELIABLE


def _about(store: FeatureStore, explanations: Explanations) -> dict[str, Any]:
    info = store.info
    scores = [main_score(e) for e in explanations.values() if e.text]
    names = {score[0].replace("_", " ") for score in scores if score is not None}
    where = f"{_path(info.sources, info.targets)} of {info.model}"
    return {
        "title": store.folder.resolve().parent.name,
        "what": f"{KINDS.get(info.kind, info.kind)} on {where}",
        "code_sources": info.code_sources,
        "n_features": info.n_features,
        "sites": list(info.code_names),
        "targets": list(info.targets),
        "paths": [
            _path(
                (store.site(source),) if info.code_sources > 1 else info.sources,
                store.target_sites(source),
            )
            for source in range(info.code_sources)
        ],
        "tokens": info.tokens,
        "documents": info.documents,
        "quantile_levels": list(info.quantile_levels),
        "cofiring": info.cofiring,
        "output_scores": store.output_scores is not None,
        "score": names.pop() if len(names) == 1 else "score",
        "baselines": _means(explanations),
    }


def _means(explanations: Explanations) -> list[list[Any]]:
    """(name, mean) of each baseline, over the explanations that have it."""
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    for explanation in explanations.values():
        for name, value in explanation.baselines.items():
            by_name[name].append(value)
    return [[name, short(sum(values) / len(values))] for name, values in by_name.items()]


def _path(sources: tuple[str, ...], targets: tuple[str, ...]) -> str:
    """Sources and targets in words, as one name where they are the same."""
    read, written = (
        ", ".join(names) if len(names) <= 2 else f"{names[0]} to {names[-1]}"
        for names in (sources, targets)
    )
    return read if read == written else f"{read} \N{RIGHTWARDS ARROW} {written}"
