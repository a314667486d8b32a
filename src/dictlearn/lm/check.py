"""Check on the loaded model that its sites are what their names say."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel

SITES = ("resid_pre.0", "attn_out.0", "resid_mid.0", "mlp_out.0", "resid_post.0")
TOLERANCE = 0.02  # relative to the norm; rounding in bfloat16 gives 0.002


def check_sums(lm: LanguageModel) -> None:
    """Warns if resid_mid + mlp_out is not resid_post in the first block.

    A family that dictlearn does not know may scale a module's output before adding it (granite), or
    add it inside the module (bloom). The check runs one block on eight tokens.
    """
    tokens_BP = torch.arange(8).remainder(lm.info.vocab_size).unsqueeze(0)
    try:
        values = capture(lm, tokens_BP, SITES)
    except ValueError as error:
        warnings.warn(f"{lm.info.name}: {error}", stacklevel=3)
        return
    off = _distance(values["resid_mid.0"] + values["mlp_out.0"], values["resid_post.0"])
    if not off < TOLERANCE:
        warnings.warn(
            f"{lm.info.name}: in family {lm.info.family} attn_out, resid_mid and mlp_out are not "
            f"parts of the residual (resid_mid + mlp_out is {off:.0%} off resid_post); resid_pre, "
            f"mlp_in and resid_post are correct",
            stacklevel=3,
        )


def _distance(value: Tensor, expected: Tensor) -> float:
    return float((value.float() - expected.float()).norm() / expected.float().norm())
