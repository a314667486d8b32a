"""Stochastic rounding of moments in a kernel of Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_bfloat16(x, noise):
    """Rounds up or down by 16 bits of noise, without bias."""
    noise = (noise & 0xFFFF).to(tl.int32)
    bits = (x.to(tl.int32, bitcast=True) + noise) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _between(x, low, high, noise):
    """Whether x with low <= x < high is rounded up, drawn without bias."""
    return x - low > (noise & 0xFFFF).to(tl.float32) * 2**-16 * (high - low)


@triton.jit
def to_codes(first, second, first_scale, second_scale, noise):
    """The codes of `EightBit` for both moments."""
    x = tl.sqrt(tl.abs(first) * (1 / tl.maximum(first_scale, 1.1754944e-38))) * 127
    c = tl.floor(x)
    c += _between(x * x, c * c, (c + 1) * (c + 1), noise).to(tl.float32)
    first_code = tl.where(first < 0, -c, c).to(tl.int8)
    x = tl.sqrt(tl.sqrt(second * (1 / tl.maximum(second_scale, 1.1754944e-38)))) * 255
    c = tl.floor(x)
    low, high = c * c * c * c, (c + 1) * (c + 1) * (c + 1) * (c + 1)
    c += _between(x * x * x * x, low, high, noise >> 16).to(tl.float32)
    second_code = tl.where(second > 0, tl.maximum(c, 1.0), 0.0).to(tl.int32).to(tl.uint8)
    return first_code, second_code
