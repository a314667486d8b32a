"""Our feature files through circuit-tracer's own server, read as its page reads them."""

# pyright: reportMissingImports=false
from __future__ import annotations

import gzip
import json
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from circuit_tracer.frontend.feature_models import Model
from circuit_tracer.frontend.local_server import serve

PORT = 8139
LAYERS, FEATURES = 4, 512


@pytest.fixture
def served(trained: Path) -> Iterator[str]:
    server = serve(str(trained / "served"), port=PORT)
    yield f"http://localhost:{PORT}"
    server.stop()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def cantor(layer: int, feature: int) -> int:
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def packed(folder: Path, layer: int, feature: int) -> dict:
    """As loadFeatureFromBinary of init-feature-examples.js: its range holds one byte too many."""
    index = json.loads(gzip.decompress((folder / "features/index.json.gz").read_bytes()))
    entry = index[str(layer)]
    low, high = entry["offsets"][feature : feature + 2]
    found = (folder / "features" / entry["filename"]).read_bytes()[low : high + 1]
    return json.loads(zlib.decompress(found[4 : 4 + int.from_bytes(found[:4], "little")]))


def test_a_node_of_the_page_opens(served: str, trained: Path):
    """scan `./data/plain`: the page asks for ./data/plain/<feature>.json, a graph node's number."""
    assert b"feature-detail" in get(f"{served}/attribution_graph/init-cg-feature-detail.js")
    opened = 0
    for path in sorted((trained / "served/plain").glob("*.json"))[:40]:
        Model.model_validate_json(get(f"{served}/data/plain/{path.name}"))
        opened += 1
    assert opened == 40


def test_a_record_is_the_same_packed_and_plain(trained: Path):
    compared = 0
    for layer in range(LAYERS):
        for feature in range(0, FEATURES, 64):
            record = packed(trained / "packed", layer, feature)
            Model.model_validate(record)
            plain = trained / "served/plain" / f"{cantor(layer, feature)}.json"
            if plain.is_file():  # it fired
                assert json.loads(plain.read_bytes()) == record
                assert record["examples_quantiles"][0]["examples"]
                compared += 1
    assert compared
