"""The files of a store in our own format, and their content.

    store.json                             model, text and settings; written first
    shards/000017.safetensors              a shard: rows of all sites, with tokens, positions, documents
    shards/000017.statistics.safetensors   mean and variance of its sites, float64
    shards/000017.json                     written last: rows, and sizes and SHA-256 of the files above
    statistics.safetensors                 mean and variance of all shards, when the store is complete
    complete.json                          their number

A shard without its record is absent. Shard i has windows i*w to (i+1)*w - 1 of the text in an order
drawn from the seed, so it doesn't depend on who writes it and on the number of shards.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from dictlearn.activations.packing import DTYPES, stored_shapes
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import Origin
from dictlearn.activations.statistics import Moments
from dictlearn.disk.errors import content_error

FORMAT, VERSION = "dictlearn activations", 1
ABOUT, COMPLETE = "store.json", "complete.json"
STATISTICS, SHARDS = "statistics.safetensors", "shards"
ABOUT_BYTES, RECORD_BYTES = 1 << 20, 1 << 16  # the largest files that are read
LARGEST = 1 << 40  # the largest number in these files
SHUFFLED, WINDOWS = "shuffled", "windows"
TOKENS, POSITIONS, DOCUMENTS = "tokens", "positions", "documents"  # int32 [rows]
WINDOW_TOKENS, KEPT = "window_tokens", "kept"  # int32 and uint8 [windows, P], for order=windows
COLUMNS = (TOKENS, POSITIONS, DOCUMENTS)

Shapes = dict[str, tuple[torch.dtype, list[int]]]


@dataclass(frozen=True)
class About:
    """The content of store.json: model, text and settings of all shards."""

    origin: Origin
    sites: tuple[str, ...]
    width: int  # D of every site
    dtype: str
    order: Literal["shuffled", "windows"]
    special: Literal["leave_out", "keep"]
    nonfinite: Literal["error", "drop"]
    context: int  # P
    windows: int  # in the text
    shard_windows: int
    seed: int
    vocabulary: int

    def text(self) -> str:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        """The hash of `text`; every record has it, so this file is checked too."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def shards(self) -> int:
        """The number of shards of the whole text."""
        return -(-self.windows // self.shard_windows)

    def windows_of(self, shard: int) -> int:
        return min(self.shard_windows, self.windows - shard * self.shard_windows)

    def shapes(self, rows: int, windows: int) -> Shapes:
        """dtype and shape of every tensor of a shard, by name."""
        shapes: Shapes = {column: (torch.int32, [rows]) for column in COLUMNS}
        for site in self.sites:
            for end, shape in stored_shapes(rows, self.width, self.dtype).items():
                shapes[site + end] = shape
        if self.order == WINDOWS:
            shapes[WINDOW_TOKENS] = (torch.int32, [windows, self.context])
            shapes[KEPT] = (torch.uint8, [windows, self.context])
        return shapes


@dataclass(frozen=True)
class Record:
    """The content of shards/<number>.json."""

    rows: int
    bytes: int
    sha256: str
    statistics_bytes: int
    statistics_sha256: str
    store: str  # SHA-256 of store.json

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def statistics_shapes(sites: tuple[str, ...], width: int) -> Shapes:
    """dtype and shape of the tensors in a file of statistics, by name."""
    shapes: Shapes = {}
    for site in sites:
        shapes[f"{site}.mean"] = shapes[f"{site}.squares"] = (torch.float64, [width])
        shapes[f"{site}.norm"] = shapes[f"{site}.rows"] = (torch.float64, [1])
    return shapes


def moments_as_tensors(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for site, m in moments.items():
        tensors |= {f"{site}.mean": m.mean_D, f"{site}.squares": m.squares_D}
        for name, value in {"norm": m.norm, "rows": m.rows}.items():
            tensors[f"{site}.{name}"] = torch.tensor([value], dtype=torch.float64)
    return tensors


def moments_in(tensors: Mapping[str, Tensor], sites: tuple[str, ...]) -> dict[str, Moments]:
    return {
        site: Moments(
            int(tensors[f"{site}.rows"].nan_to_num()),
            tensors[f"{site}.mean"],
            tensors[f"{site}.squares"],
            float(tensors[f"{site}.norm"]),
        )
        for site in sites
    }


@dataclass(frozen=True)
class Complete:
    """The content of complete.json: the number of shards when the store was last complete."""

    shards: int
    store: str  # SHA-256 of store.json

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def data_name(shard: int) -> str:
    return f"{SHARDS}/{shard:06d}.safetensors"


def statistics_name(shard: int) -> str:
    return f"{SHARDS}/{shard:06d}.statistics.safetensors"


def record_name(shard: int) -> str:
    return f"{SHARDS}/{shard:06d}.json"


def read_about(place: Place, name: str = ABOUT) -> About:
    """Reads store.json, or a file `name` like it.

    Raises ValueError, which names the file, if no writer of ours wrote it.
    """
    content = _read_json(place, name, ABOUT_BYTES)
    where = f"{place.address}/{name}"
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"{where} does not describe a store of activations")
    if (version := content.pop("version", None)) != VERSION:
        raise ValueError(f"{where} has version {version!r}: this dictlearn reads version {VERSION}")
    origin, sites = content.get("origin"), content.get("sites")
    _check(where, About, content, skip=("origin", "sites"))
    if not isinstance(origin, dict):
        raise ValueError(f"{where} has origin={_shown(origin)}, which was never written there")
    _check(f"{where}, origin,", Origin, origin)
    listed = isinstance(sites, list) and all(isinstance(s, str) and 0 < len(s) < 200 for s in sites)
    if not listed or not sites or len(set(sites)) != len(sites) or set(sites) & {*COLUMNS, KEPT}:
        raise ValueError(f"{where} has sites={_shown(sites)}: want names, each once")
    about = About(**{**content, "origin": Origin(**origin), "sites": tuple(sites)})
    choices = {
        "dtype": tuple(DTYPES),
        "order": (SHUFFLED, WINDOWS),
        "special": ("leave_out", "keep"),
        "nonfinite": ("error", "drop"),
    }
    for key, known in choices.items():
        if getattr(about, key) not in known:
            raise ValueError(
                f"{where} has {key}={_shown(getattr(about, key))}: want {' or '.join(known)}"
            )
    return about


def read_record(place: Place, shard: int, about: About) -> Record:
    """Reads a shard's record. Raises ValueError, which names the file."""
    where = f"{place.address}/{record_name(shard)}"
    content = _read_json(place, record_name(shard), RECORD_BYTES)
    _check(where, Record, content, smallest=0)
    record = Record(**content)
    if record.store != about.sha256:
        raise ValueError(f"{where} belongs to another store than {ABOUT}")
    positions = about.windows_of(shard) * about.context
    if positions <= 0 or record.rows > positions:
        raise ValueError(
            f"{where} has rows={record.rows}: more than the {max(0, positions)} positions of the shard"
        )
    shapes = about.shapes(record.rows, about.windows_of(shard)).values()
    size = sum(kind.itemsize * math.prod(shape) for kind, shape in shapes)
    if not size < record.bytes <= size + (16 << 20):
        raise ValueError(f"{where} has bytes={record.bytes}, but its tensors take {size}")
    return record


def read_complete(place: Place, about: About) -> int:
    """The number of shards when the store was last complete; 0 if it never was."""
    if COMPLETE not in place.listed():
        return 0
    where = f"{place.address}/{COMPLETE}"
    content = _read_json(place, COMPLETE, RECORD_BYTES)
    _check(where, Complete, content)
    complete = Complete(**content)
    if complete.store != about.sha256 or complete.shards > about.shards:
        raise ValueError(f"{where} belongs to another store than {ABOUT}")
    return complete.shards


def _read_json(place: Place, name: str, limit: int) -> dict[str, Any]:
    data = place.read(name, limit)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place.address}/{name} is not readable: {content_error(error)}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{place.address}/{name} is not readable: no JSON object")
    return content


def _check(
    where: str, kind: Any, content: dict[str, Any], skip: tuple[str, ...] = (), smallest: int = 1
) -> None:
    """Raises ValueError unless names and types are those of the fields of a dataclass."""
    known = {field.name: str(field.type) for field in fields(kind)}
    for name in sorted({*known, *content}):
        if name not in known or name not in content:
            raise ValueError(f"{where} has {'no ' if name in known else ''}{_shown(name)}")
        if name in skip:
            continue
        value, annotation = content[name], known[name]
        if annotation == "int":
            lowest = 0 if name == "seed" else smallest
            fits = type(value) is int and lowest <= value <= LARGEST
        else:
            fits = (type(value) is str and len(value) < 4096) or (
                value is None and "None" in annotation
            )
        if not fits:
            raise ValueError(f"{where} has {name}={_shown(value)}, which was never written there")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
