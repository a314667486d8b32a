"""Store numbers in a floating-point dtype, or in 8 bits with a scale for every 64 of them.

In residual streams a dimension may be a hundred standard deviations out. One scale per row would then
lose 5% of the variance, one per 64 numbers loses a thousandth, and without such a dimension 5e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64  # numbers that share a scale
SCALE = ".scale"  # the suffix of the name of a site's scales
INT8 = "int8"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    INT8: torch.int8,
}


def packed(x_ND: Tensor, dtype: str) -> dict[str, Tensor]:
    """A site's tensors as they are stored, by the suffix of their names."""
    if dtype != INT8:
        return {"": x_ND.to(DTYPES[dtype])}
    grouped = _grouped(x_ND.float())
    scale = (grouped.abs().amax(2) / 127).to(torch.bfloat16)
    # The scale is rounded, so divide by the rounded one; the lower bound keeps zeros zero.
    steps = scale.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    whole = (grouped / steps).round().clamp(-127, 127).to(torch.int8)
    return {"": whole.flatten(1)[:, : x_ND.shape[1]].contiguous(), SCALE: scale}


def unpacked(whole_ND: Tensor, scale_NG: Tensor) -> Tensor:
    """The values of 8-bit numbers, in bfloat16, whose rounding is a tenth of theirs."""
    n, width = whole_ND.shape
    values = _grouped(whole_ND.float()) * scale_NG.float()[..., None]
    return values.flatten(1)[:, :width].to(torch.bfloat16).view(n, width)


def stored_shapes(rows: int, width: int, dtype: str) -> dict[str, tuple[torch.dtype, list[int]]]:
    """dtype and shape of a site's tensors, by the suffix of their names."""
    shapes = {"": (DTYPES[dtype], [rows, width])}
    if dtype == INT8:
        shapes[SCALE] = (torch.bfloat16, [rows, -(-width // GROUP)])
    return shapes


def bytes_per_row(width: int, dtype: str) -> int:
    shapes = stored_shapes(1, width, dtype).values()
    return sum(kind.itemsize * shape[1] for kind, shape in shapes)


def _grouped(x_ND: Tensor) -> Tensor:
    """[N, groups, 64], with zeros at the end of the last group."""
    padded = torch.nn.functional.pad(x_ND, (0, -x_ND.shape[1] % GROUP))
    return padded.unflatten(1, (-1, GROUP))
