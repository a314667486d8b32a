"""The dictionary in place of the model's own activations, with a graph through both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import Tensor

from dictlearn.lm.patch import Replacement
from dictlearn.types import Code

MODES = ("teacher_forced", "free_running")


def teacher_forced(
    dictionary: Any,
    y_hat_NTD: Tensor,
    output_scale_T: Tensor,
    valid_BP: Tensor,
    which: Iterable[int],
) -> dict[str, Replacement]:
    """Targets `which` become what the dictionary made of the clean run's activations."""

    def replacement(t: int) -> Replacement:
        return lambda _, clean_BPD: placed(y_hat_NTD[:, t] / output_scale_T[t], valid_BP, clean_BPD)

    return {dictionary.targets[t]: replacement(t) for t in which}


@final
class FreeRunning:
    """Targets `which` become what the dictionary makes of the patched run as it goes.

    Gradients flow through the encoders of later layers into what earlier ones wrote. One object
    serves one pass.
    """

    def __init__(
        self, dictionary: Any, input_scale_S: Tensor, output_scale_T: Tensor, valid_BP: Tensor
    ):
        self._dictionary, self._valid_BP = dictionary, valid_BP
        self._input_scale_S, self._output_scale_T = input_scale_S, output_scale_T
        self._codes: dict[int, Code] = {}
        self._x: dict[int, Tensor] = {}

    def replacements(self, which: Iterable[int]) -> dict[str, Replacement]:
        return {self._dictionary.targets[t]: self._replacement(t) for t in which}

    def _replacement(self, t: int) -> Replacement:
        def replace(seen: Mapping[str, Tensor], clean_BPD: Tensor) -> Tensor:
            for s in self._dictionary.reads(t):
                if s not in self._codes:
                    self._read(s, seen[self._dictionary.sources[s]])
            y_hat_ND = self._dictionary.decode_target(t, self._codes, self._x)
            return placed(y_hat_ND / self._output_scale_T[t], self._valid_BP, clean_BPD)

        return replace

    def _read(self, s: int, site_BPD: Tensor) -> None:
        scale = self._input_scale_S[s]
        self._x[s] = site_BPD[self._valid_BP].to(scale.dtype) * scale
        self._codes[s] = self._dictionary.encode_source(self._x[s], s).support


def placed(rows_ND: Tensor, valid_BP: Tensor, like_BPD: Tensor) -> Tensor:
    """Rows at the valid positions, in reading order, and zeros elsewhere; keeps their gradient."""
    whole_BPD = like_BPD.new_zeros(like_BPD.shape)
    return whole_BPD.index_put((valid_BP,), rows_ND.to(like_BPD.dtype))
