"""The format of a feature store: names of files and tensors, and their description.

    <run>/features/store/
        store.json               the fields of `Info`
        windows.safetensors      tokens, documents int32 [W, P], numbers int64 [W]
        block-<s>-<n>.safetensors   features n * rows to (n + 1) * rows - 1 of source s
        sample.safetensors       all firings in some of the windows, by feature
        hashes.safetensors       hashes of a few features at a time (see hashes.py)
        manifest.json            sizes and SHA-256 of all of these

A row of a block is a feature, an entry of an example is a slot. An example's place is row * P +
position of its peak in windows.safetensors, -1 in an empty slot. Its activations are float16 shares
of the largest one in the context, which is in `example_scales`: they don't overflow and have 11 bits
of precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from dictlearn.names import code_names

FORMAT = 1
FOLDER = "store"  # in <run>/features
INFO, WINDOWS, SAMPLE = "store.json", "windows.safetensors", "sample.safetensors"


@dataclass(frozen=True)
class Info:
    """The description of a store; plain JSON on disk."""

    kind: str  # of the dictionary
    sources: tuple[str, ...]  # site names
    targets: tuple[str, ...]
    code_sources: int  # rows of a code per token: the sources, or 1 that all share
    n_features: int  # F, per row of the code
    reaches: tuple[tuple[int, ...], ...]  # by row of the code: the targets that it writes to
    ranks: tuple[int, ...]  # of a MOLT's transforms
    model: str  # hub id, folder or `pico`
    revision: str | None
    data: Mapping[str, Any]  # the settings that its held-out text came from
    dictionary_sha256: str
    windows: int  # number of windows read
    context: int  # P, tokens per window
    documents: int  # number of documents read
    tokens: int  # valid tokens read: neither special nor padding
    sampled_tokens: int  # valid tokens in the windows whose firings are all kept
    examples: int  # strongest examples kept of each feature
    intervals: int
    per_interval: int
    before: int  # tokens of context before an example's peak
    after: int
    bins: int  # of histograms
    quantile_levels: tuple[float, ...]
    promoted: int  # tokens kept of each feature's effect on the logits
    unembedding: str  # how effects on logits were computed, or why there are none
    neighbours: int
    cofiring: str  # the measure of co-firing
    directions: int  # singular directions kept of each transform
    rows: int  # features in a block
    versions: Mapping[str, str]
    signature: str | None = None  # of the user who gathered it; see store/tokenizer.py

    @property
    def code_names(self) -> tuple[str, ...]:
        """Name of each row of the code: its site, or one name where all sites share it."""
        return code_names(self.sources, self.code_sources)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def info_from_json(description: Any, where: str) -> Info:
    """`Info` from the output of `to_json`. Raises ValueError for anything else."""
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{where}: want a dictlearn feature store of format {FORMAT}")
    names = {field.name for field in fields(Info)}
    if odd := sorted((names ^ (description.keys() - {"format"})) - {"signature"}):
        raise ValueError(f"{where}: does not describe a feature store; look at {odd[0]}")
    types = get_type_hints(Info)
    plain = {name: _frozen(description[name]) for name in names & description.keys()}
    wrong = [name for name in sorted(plain) if not _holds(plain[name], types[name])]
    if not wrong:
        info = Info(**plain)
        wrong = [name for name, fits in _fits(info).items() if not fits]
        if not wrong:
            return info
    raise ValueError(f"{where}: does not describe a feature store; look at {wrong[0]}")


def layer_of(info: Info, source: int) -> int | None:
    """The layer of a source, or None if the code is shared or the site's name has none."""
    if info.code_sources != len(info.sources):
        return None
    match = re.fullmatch(r"[a-z_]+\.(\d+)", info.sources[source])
    return None if match is None else int(match[1])


def _fits(info: Info) -> dict[str, bool]:
    """Whether the numbers of a description, which index each other, agree; by name."""
    targets = range(len(info.targets))
    return {
        "sources": len(info.sources) > 0,
        "code_sources": info.code_sources in (1, len(info.sources)),
        "reaches": len(info.reaches) == info.code_sources
        and all(t in targets for reached in info.reaches for t in reached),
        "ranks": len(info.ranks) in (0, info.n_features),
        **{name: getattr(info, name) > 0 for name in ("n_features", "context", "rows")},
    }


def _holds(value: Any, wanted: Any) -> bool:
    """Whether a value of JSON, with tuples for lists, has a type; integers are at least 0."""
    kind, inner = get_origin(wanted) or wanted, get_args(wanted)
    if kind is UnionType:
        return any(_holds(value, part) for part in inner)
    if kind is tuple:
        return isinstance(value, tuple) and all(_holds(item, inner[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    return isinstance(value, kind)


def block_name(source: int, number: int) -> str:
    return f"block-{source}-{number}.safetensors"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
