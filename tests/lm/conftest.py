"""Fixtures over the families of tests/families.py."""

from __future__ import annotations

import pytest
import torch

from dictlearn.lm.language_model import LanguageModel
from tests import families


@pytest.fixture(params=families.FAMILIES)
def example(request: pytest.FixtureRequest) -> families.Example:
    """Every family in turn."""
    return families.example(request.param)


@pytest.fixture(params=families.DECODERS)
def decoder(request: pytest.FixtureRequest) -> families.Example:
    """Every decoder family in turn."""
    return families.example(request.param)


@pytest.fixture
def qwen3() -> families.Example:
    return families.example("qwen3")


@pytest.fixture
def bert() -> families.Example:
    return families.example("bert")


@pytest.fixture
def gpt2() -> families.Example:
    return families.example("gpt2")


@pytest.fixture(params=["qwen3", "gemma2", "gpt_neox", "gpt_oss", "olmo2"])
def bf16_lm(request: pytest.FixtureRequest) -> LanguageModel:
    lm = families.build(request.param)
    lm.model.to(torch.bfloat16)  # type: ignore[arg-type]
    return lm
