"""The comparison's own code lives in scripts/, which no package holds. Tests that need the peers
installed are marked `peers`, and are not collected where they aren't: they would say nothing."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # sparsify's kernels, where triton is, want a GPU
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers: needs make test-peers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("peers")]
    for item in needing:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # theirs, when they are imported
    if all(map(find_spec, ("sae_lens", "sparsify", "dictionary_learning"))):
        return
    items[:] = [item for item in items if item not in needing]
    config.hook.pytest_deselected(items=needing)
