"""How Adam's two moments are stored: in full, in bfloat16, or as 8-bit codes with a scale for each row.

bfloat16 and 8 bits are rounded stochastically. With beta2 = 0.999 a second moment moves by a thousandth
in a step, less than half of bfloat16's last place, and rounding to nearest would leave it where it is.
A seed fixes the draws, so that a run which resumes repeats them. Kernels and compiled loops draw by a
number's position and agree with one another; `store` draws by torch, in the order of its calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol, final

import torch
from torch import Tensor


class Moments(Protocol):
    """Both moments of one parameter [rows, D], which are read and written a range of rows at a time."""

    form: str
    first: Tensor  # [rows, D]
    second: Tensor

    @staticmethod
    def zeros(parameter: Tensor) -> dict[str, Tensor]:
        """The stored tensors before the first step."""
        ...

    def __init__(self, stored: Mapping[str, Tensor], width: int, seed: int): ...

    def load(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """(first, second) [high - low, D] in the parameter's dtype. The caller may write to them."""
        ...

    def store(self, low: int, high: int, first: Tensor, second: Tensor) -> None: ...


@final
class Full:
    """Moments in the parameter's own dtype, as in torch.optim.Adam."""

    form = "float32"

    @staticmethod
    def zeros(parameter: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}

    def __init__(self, stored: Mapping[str, Tensor], width: int, seed: int):
        self.first, self.second = (stored[k].view(-1, width) for k in ("exp_avg", "exp_avg_sq"))

    def load(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        return self.first[low:high], self.second[low:high]

    def store(self, low: int, high: int, first: Tensor, second: Tensor) -> None:
        """Does nothing: `load` gives the stored tensors themselves."""


@final
class BFloat16:
    """Moments in half of float32's memory: 8 bits of mantissa, stochastically rounded."""

    form = "bfloat16"

    @staticmethod
    def zeros(parameter: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros_like(parameter, dtype=torch.bfloat16)
        return {"exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    def __init__(self, stored: Mapping[str, Tensor], width: int, seed: int):
        self.first, self.second = (stored[k].view(-1, width) for k in ("exp_avg", "exp_avg_sq"))
        self.seed = seed

    @cached_property
    def draws(self) -> torch.Generator:
        return torch.Generator(self.first.device).manual_seed(self.seed)

    def load(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        return self.first[low:high].float(), self.second[low:high].float()

    def store(self, low: int, high: int, first: Tensor, second: Tensor) -> None:
        for kept, moment in ((self.first, first), (self.second, second)):
            noise = torch.randint(
                2**16, moment.shape, dtype=torch.int32, device=moment.device, generator=self.draws
            )
            bits = moment.contiguous().view(torch.int32).add_(noise).bitwise_and_(-(2**16))
            kept[low:high] = bits.view(torch.float32)


@final
class EightBit:
    """Moments in a quarter of float32's memory: a byte for each number, and a scale for each row.

    The scale is the row's largest magnitude. A code c stands for a power, so that small numbers keep
    some digits: the first moment is +-(c / 127)^2 of the scale, the second (c / 255)^4. A positive
    second moment never rounds to 0, which would make the next step as large as eps allows.
    """

    form = "8bit"

    @staticmethod
    def zeros(parameter: Tensor) -> dict[str, Tensor]:
        scales = parameter.new_zeros(parameter.shape[:-1], dtype=torch.float32)
        return {
            "exp_avg": torch.zeros_like(parameter, dtype=torch.int8),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.uint8),
            "exp_avg_scale": scales,
            "exp_avg_sq_scale": scales.clone(),
        }

    def __init__(self, stored: Mapping[str, Tensor], width: int, seed: int):
        self.first, self.second = (stored[k].view(-1, width) for k in ("exp_avg", "exp_avg_sq"))
        names = ("exp_avg_scale", "exp_avg_sq_scale")
        self.first_scale, self.second_scale = (stored[k].view(-1, 1) for k in names)
        self.seed = seed

    @cached_property
    def draws(self) -> torch.Generator:
        return torch.Generator(self.first.device).manual_seed(self.seed)

    def load(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        first = self.first[low:high].float().div_(127)
        first = first * first.abs() * self.first_scale[low:high]
        second = self.second[low:high].float().div_(255).square_().square_()
        return first, second.mul_(self.second_scale[low:high])

    def store(self, low: int, high: int, first: Tensor, second: Tensor) -> None:
        scale = first.abs().amax(-1, keepdim=True)
        fraction = first / scale.clamp_min(torch.finfo(torch.float32).tiny)
        codes = self._rounded(fraction.abs().sqrt_().mul_(127), power=2)
        self.first[low:high] = codes.copysign_(fraction).to(torch.int8)
        self.first_scale[low:high] = scale
        scale = second.amax(-1, keepdim=True)
        fraction = second / scale.clamp_min(torch.finfo(torch.float32).tiny)
        codes = self._rounded(fraction.sqrt_().sqrt_().mul_(255), power=4)
        self.second[low:high] = codes.clamp_min_(1).mul_(second > 0).to(torch.uint8)
        self.second_scale[low:high] = scale

    def _rounded(self, codes: Tensor, power: int) -> Tensor:
        """The code below or above, drawn so that the mean of the power is the exact value."""
        below = codes.floor()
        low, high = below**power, (below + 1) ** power
        draws = torch.rand(codes.shape, device=codes.device, generator=self.draws)
        return below.add_((codes**power - low) > draws * (high - low))


FORMS: dict[str, type[Full] | type[BFloat16] | type[EightBit]] = {
    form.form: form for form in (Full, BFloat16, EightBit)
}
