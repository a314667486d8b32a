"""Which arrays are the activations of which sites."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn.activations.arrays import Array, as_array, names_of, open_arrays

GIVEN = "(activations)"  # the path of arrays that Python passes
LAYER = re.compile(r"(?:resid_pre|resid_mid|resid_post|attn_out|mlp_in|mlp_out|mlp_norm)\.(\d+)")

_given: dict[str, Array] | None = None


@contextmanager
def given(activations: Any) -> Iterator[None]:
    """Makes arrays of numpy or torch, one or several by name, what the path GIVEN means.

    Raises ValueError for anything else.
    """
    global _given
    several = isinstance(activations, Mapping)
    by_name = activations if several else {"activations": activations}
    if not by_name:
        raise ValueError("activations={}: want at least one array")
    before, _given = (
        _given,
        {
            str(name): as_array(f"activations[{name!r}]" if several else "activations", value)
            for name, value in by_name.items()
        },
    )
    try:
        yield
    finally:
        _given = before


@final
@dataclass(frozen=True, eq=False)
class SiteRows:
    """The rows of one site: [N, D], or one of the sites of [N, S, D]."""

    name: str  # of the array, for messages
    array: Array
    index: int | None = None

    def rows(self, low: int, high: int) -> Tensor:
        """Rows low to high - 1, of at most 32 bits. Raises ValueError if one is not finite."""
        rows = self.array.rows(low, high)
        rows = rows if self.index is None else rows[:, self.index]
        rows = rows.float() if rows.dtype == torch.float64 else rows
        if not rows.isfinite().all():
            bad = int((~rows.isfinite().all(1)).nonzero()[0]) + low
            raise ValueError(
                f"source.path: NaN or Inf in row {bad} of {self.name}, counted from 0; want arrays of "
                f"numbers that are finite in float32"
            )
        return rows


@final
@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays at a path, and what they are of."""

    by_name: Mapping[str, Array]
    sites: Mapping[str, SiteRows]  # of the sites that were asked for
    rows: int
    width: int


def open_sites(key: str, path: str, names: Mapping[str, str], sites: tuple[str, ...]) -> Arrays:
    """The arrays at a path; `names` maps sites to arrays, and others have the array of their name.

    Without `sites` only sizes are checked. Raises ValueError, in one sentence that names `key`.
    """
    where, arrays = f"{key}={path}", _opened(key, path)
    for site, name in names.items():
        if name not in arrays:
            raise ValueError(
                f"source.names={{{site}: {name}}}: {path} has no {name}; it has {_listed(arrays)}"
            )
    found = _named(arrays, names, sites, where)
    used = {one.name: one.array for one in found.values()}
    if not sites:
        used = {
            name: array
            for name, array in arrays.items()
            if name in set(names.values()) or not names
        }
    if len({array.shape[-1] for array in used.values()}) > 1:
        raise ValueError(
            f"{where}: its arrays have several widths ({_listed(used)}), and a dictionary has one; want "
            f"source.names to name the arrays of one width"
        )
    if len({array.shape[0] for array in used.values()}) > 1:
        raise ValueError(
            f"{where}: its arrays have several numbers of rows ({_listed(used)}), and rows of several "
            f"arrays belong together; want source.names to name the arrays that do"
        )
    rows, *_, width = next(iter(used.values())).shape
    return Arrays(arrays, found, rows, width)


def _opened(key: str, path: str) -> dict[str, Array]:
    if path == GIVEN:
        if _given is None:
            raise ValueError(
                f"{key}={GIVEN}: no arrays were passed; want dictlearn.train(..., activations=x)"
            )
        return _given
    try:
        return open_arrays(Path(path).expanduser())
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error


def _named(
    arrays: Mapping[str, Array], names: Mapping[str, str], sites: tuple[str, ...], where: str
) -> dict[str, SiteRows]:
    """The rows of each site. Raises ValueError if it isn't clear which they are."""
    chosen = {site: names.get(site, site) for site in sites}
    if all(name in arrays for name in chosen.values()):
        found = {site: SiteRows(name, arrays[name]) for site, name in chosen.items()}
        for site, one in found.items():
            if len(one.array.shape) == 3:
                raise ValueError(
                    f"{where}: {one.name} is {one.array}, and {site} is one site; want [N, width], with "
                    f"positions in N too"
                )
        return found
    if not names and len(arrays) == 1:
        name, array = next(iter(arrays.items()))
        if len(array.shape) == 3 and array.shape[1] == len(sites):
            return {site: SiteRows(name, array, i) for i, site in enumerate(sites)}
        if len(array.shape) == 2 and len(sites) == 1 and LAYER.fullmatch(name) is None:
            return {sites[0]: SiteRows(name, array)}
        if len(array.shape) == 3:
            raise ValueError(
                f"{where}: {name} is {array}, rows of {array.shape[1]} sites, and the dictionary has "
                f"{len(sites)}; want [N, {len(sites)}, width], or [N, width] with positions in N too"
            )
    missing = next(name for name in chosen.values() if name not in arrays)
    example = ", ".join(f"{site}: <array>" for site in sites[:2]) + (", ..." * (len(sites) > 2))
    raise ValueError(
        f"{where}: has no {missing}, which the dictionary reads or writes; it has {_listed(arrays)}; "
        f"want arrays by these names, a dictionary of other sites, or source.names={{{example}}}"
    )


def layers(arrays: Mapping[str, Array], names: Mapping[str, str]) -> int:
    """The number of layers up to the last that a name has, or of sites in the only array."""
    found = [LAYER.fullmatch(name) for name in (*names, *arrays)]
    numbers = [int(one[1]) for one in found if one]
    only = next(iter(arrays.values()))
    if not numbers and len(arrays) == 1 and len(only.shape) == 3:
        return only.shape[1]
    return max([0, *numbers]) + 1


def _listed(arrays: Mapping[str, Array]) -> str:
    return names_of(f"{name} {array}" for name, array in arrays.items())
