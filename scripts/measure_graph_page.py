"""How long the page of a large graph takes: to open, to answer a click, a slider and a question.

    python scripts/measure_graph_page.py

Makes a random graph of 2,000 features and 100,000 links over 26 layers and 60 tokens, writes its page
and uses it in Chromium, from the disk: medians of several samples, in milliseconds of the browser's own
clock, until the next frame is on the screen. The share of the cores that other processes used
meanwhile is recorded too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from benches import machine  # noqa: E402
from peers import results  # noqa: E402

from dictlearn.attribution.page import write_page  # noqa: E402
from tests.browser.devtools import Browser  # noqa: E402
from tests.pages.graphs import made_graph  # noqa: E402

LAYERS, TOKENS = 26, 60
# What is done, as JavaScript; each is timed until the frame after the one that draws it has begun.
DONE = {
    "click": "click(influential()[{i}])",
    "slider": "change(() => {{ state.nodeShare = 0.99 - 0.01 * {i}; state.linkShare = 0.9; }})",
    "hover": "(view.hovered = influential()[{i}], drawSoon('hover'))",
    "suggest": "suggestions()",
}
TIMED = """(async () => {{
    const frame = () => new Promise(requestAnimationFrame);
    await frame();
    const start = performance.now();
    {act};
    await frame();
    await frame();
    return performance.now() - start;
}})()"""


def used(page: Path, samples: int, profile: Path) -> dict[str, float]:
    """Milliseconds of what somebody does with the page."""
    browser = Browser(profile)
    taken: dict[str, list[float]] = {"open": []}
    try:
        browser.look(1400, 900)
        for _ in range(samples):
            start = time.perf_counter()
            browser.open(page)
            taken["open"].append(1000 * (time.perf_counter() - start))
        for name, act in DONE.items():
            browser.open(page)
            taken[name] = [
                browser.value(TIMED.format(act=act.format(i=i))) for i in range(1, 1 + samples)
            ]
        assert not browser.errors, browser.errors
    finally:
        browser.close()
    return {
        **{f"{name}_ms": statistics.median(values) for name, values in taken.items()},
        **{f"{name}_ms_slowest": max(values) for name, values in taken.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument(
        "--results", type=Path, default=results.RESULTS, help="folder of graph_page.json"
    )
    options = parser.parse_args()
    watch = machine.Watch()
    tokens = [f" t{position}" for position in range(TOKENS)]
    graph = made_graph(LAYERS, options.features, options.links, tokens, n_indices=20)
    with tempfile.TemporaryDirectory() as scratch:
        page = write_page(Path(scratch) / "graph", graph)
        size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file())
        record: dict[str, Any] = {
            "nodes": len(graph["nodes"]),
            "links": len(graph["links"]),
            "page_mb": size / 2**20,
            **used(page, options.samples, Path(scratch) / "profile"),
        }
    record["busy_elsewhere"] = watch.share()
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in record.items()
    }
    print(json.dumps(rounded, indent=1))
    print(f"appended to {results.append('graph_page', rounded, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
