"""When it pays to store activations: their bytes and the forward pass that computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dictlearn.activations.packing import bytes_per_row
from dictlearn.verbs import costs
from dictlearn.verbs.gpus import Gpu
from dictlearn.verbs.units import as_bytes

DISK = (
    1e9  # bytes/s that are written or read: a local disk, or several connections to an object store
)
COLUMNS = 3 * 4  # bytes of a row's token, position and document
MILLION = 1_000_000


def row_bytes(sites: int, width: int, dtype: str) -> int:
    """Bytes of a token in a store."""
    return COLUMNS + sites * bytes_per_row(width, dtype)


def least_dictionaries(forward: float, disk: float) -> int | None:
    """The smallest number of dictionaries for which one forward pass, one write and a read for each take
    less time than a forward pass for each; None where reading takes longer than computing.

    Args:
        forward, disk: seconds of computing, and of writing or reading, the same tokens.
    """
    if forward <= disk:
        return None
    return math.floor((forward + disk) / (forward - disk)) + 1


def facts(run: costs.Run, device: Gpu, on_gpu: bool) -> Mapping[str, str]:
    """What a plan says of it, for a run that computes its activations on `device`."""
    size = row_bytes(len(run.sites), run.dictionary.width, "bfloat16") * MILLION
    forward = costs.work(run, on_gpu)["language model"].seconds(device) * MILLION
    disk = size / DISK
    least = least_dictionaries(forward, disk)
    if least is None:
        verdict = "reading stored ones takes longer, however many dictionaries share them"
    else:
        verdict = (
            f"stored ones pay from {least} dictionaries on, which read them at different times"
        )
    return {
        "activations, stored": (
            f"{as_bytes(size)} per million tokens in bfloat16, {disk:.3g} s at {as_bytes(DISK)}/s"
        ),
        "activations, computed": f"{forward:.3g} s per million tokens; {verdict}",
    }
