"""The dictionary in place of the model's own activations, with a graph through both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from torch import Tensor

from dictlearn.lm.patch import Replacement
from dictlearn.types import Code, DictionaryLike


def teacher_forced(
    dictionary: DictionaryLike,
    y_hat_NTD: Tensor,
    output_scale_T: Tensor,
    valid_BP: Tensor,
    which: Iterable[int],
) -> dict[str, Replacement]:
    """Replaces targets `which` by their reconstructions from the clean run's activations."""

    def replacement(t: int) -> Replacement:
        return lambda _, clean_BPD: placed(y_hat_NTD[:, t] / output_scale_T[t], valid_BP, clean_BPD)

    return {dictionary.targets[t]: replacement(t) for t in which}


@final
class FreeRunning:
    """Replaces targets by their reconstructions from the patched run, layer by layer.

    A source is encoded once, on valid tokens, when the first target asks for it. Gradients flow
    through the encoders of later layers into what earlier ones wrote. One object serves one pass of
    the model. The scales belong to a dictionary in normalised units; without them the dictionary
    reads and writes the model's own units.
    """

    def __init__(
        self,
        dictionary: DictionaryLike,
        valid_BP: Tensor,
        input_scale_S: Tensor | None = None,
        output_scale_T: Tensor | None = None,
    ):
        self._dictionary, self._valid_BP = dictionary, valid_BP
        self._input_scale_S, self._output_scale_T = input_scale_S, output_scale_T
        self._codes: dict[int, Code] = {}
        self._x: dict[int, Tensor] = {}

    def replacements(self, which: Iterable[int]) -> dict[str, Replacement]:
        """The replacements to give to `patched`, which must read `reads(which)`."""
        return {self._dictionary.targets[t]: self._replacement(t) for t in which}

    def reads(self, which: Iterable[int]) -> list[str]:
        """The sites that these targets are decoded from, in order."""
        sources = {s for t in which for s in self._dictionary.reads(t)}
        return [self._dictionary.sources[s] for s in sorted(sources)]

    def _replacement(self, t: int) -> Replacement:
        def replace(seen: Mapping[str, Tensor], clean_BPD: Tensor) -> Tensor:
            for s in self._dictionary.reads(t):
                if s not in self._codes:
                    self._read(s, seen[self._dictionary.sources[s]])
            y_hat_ND = self._dictionary.decode_target(t, self._codes, self._x)
            if self._output_scale_T is not None:
                y_hat_ND = y_hat_ND / self._output_scale_T[t]
            return placed(y_hat_ND, self._valid_BP, clean_BPD)

        return replace

    def _read(self, s: int, site_BPD: Tensor) -> None:
        x_ND = site_BPD[self._valid_BP]
        if self._input_scale_S is None:
            self._x[s] = x_ND.float()
        else:
            scale = self._input_scale_S[s]
            self._x[s] = x_ND.to(scale.dtype) * scale
        self._codes[s] = self._dictionary.encode_source(self._x[s], s).support


def placed(rows_ND: Tensor, valid_BP: Tensor, like_BPD: Tensor) -> Tensor:
    """Puts rows at the valid positions, in reading order, and zeros elsewhere; keeps their gradient."""
    whole_BPD = like_BPD.new_zeros(like_BPD.shape)
    return whole_BPD.index_put((valid_BP,), rows_ND.to(like_BPD.dtype))
