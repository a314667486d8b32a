"""What every test of a verb gets: a small sample for scales, biases and thresholds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dictlearn.verbs import train


@pytest.fixture(autouse=True, scope="module")
def _small_sample() -> Iterator[None]:
    """Runs read 16,384 tokens, twice, for good estimates. This is still two shuffle buffers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAMPLE_TOKENS", 4096)
        yield
