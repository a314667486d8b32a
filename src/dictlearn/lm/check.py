"""Ask the model itself whether its sites mean what their names say."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel

SITES = ("resid_pre.0", "attn_out.0", "resid_mid.0", "mlp_out.0", "resid_post.0")
ALLOWED = 0.02  # of the norm: a bf16 sum is off by 0.002


def check_sums(lm: LanguageModel) -> None:
    """Warns where the first block's sums fail: resid_mid + mlp_out must be resid_post.

    A family that dictlearn does not know may scale what a module returns before it adds it
    (granite), or add it inside the module (bloom). Costs one block on eight tokens.
    """
    tokens_BP = torch.arange(8).remainder(lm.info.vocab_size).unsqueeze(0)
    try:
        at = capture(lm, tokens_BP, SITES)
    except ValueError as error:
        warnings.warn(f"{lm.info.name}: {error}", stacklevel=3)
        return
    off = _distance(at["resid_mid.0"] + at["mlp_out.0"], at["resid_post.0"])
    if not off < ALLOWED:
        warnings.warn(
            f"{lm.info.name}: in family {lm.info.family} attn_out, resid_mid and mlp_out are not "
            f"parts of the residual (resid_mid + mlp_out is {off:.0%} off resid_post); resid_pre, "
            f"mlp_in and resid_post are what they say",
            stacklevel=3,
        )


def _distance(found: Tensor, want: Tensor) -> float:
    return float((found.float() - want.float()).norm() / want.float().norm())
