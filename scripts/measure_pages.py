"""How long the pages of many features take: to write, to open, to search, to look at a feature.

    python scripts/measure_pages.py

Makes a store of 50,000 features with text of random tokens, half of them described, writes the site
and uses it in Chromium, from the disk: medians of several samples, in milliseconds of the browser's own
clock. The share of the cores that other processes used meanwhile is recorded beside them.
"""

from __future__ import annotations

import argparse
import json
import random
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

from dictlearn.features.pages import write_pages  # noqa: E402
from dictlearn.store.explanations import Explanation  # noqa: E402
from tests.browser.devtools import Browser  # noqa: E402
from tests.browser.many import many_features  # noqa: E402
from tests.store.made import pico_tokenizer  # noqa: E402

WORDS = ["token", "number", "class", "name", "self", "def", "return", "string", "comment", "inside"]
SEARCHED = ("s", "se", "sel", "self", "self n", "self nu", "self num")
SEARCH = """((text) => {
    const query = document.getElementById("query"), start = performance.now();
    query.value = text;
    query.form.dispatchEvent(new Event("input"));
    document.body.offsetHeight;  // laid out
    return performance.now() - start;
})"""
OPEN = """((row) => new Promise((done) => {
    const start = performance.now(), view = document.getElementById("view");
    go(row);
    const look = () => (view.dataset.row === String(row)
        ? done(view.offsetHeight && performance.now() - start) : setTimeout(look));
    look();
}))"""


def described(n_features: int) -> dict[tuple[int, int], Explanation]:
    found = {}
    for index in range(0, n_features, 2):
        score = 0.5 + random.random() / 2
        found[0, index] = Explanation(
            0, index, " ".join(random.choices(WORDS, k=10)), "made up",
            scores={"balanced_accuracy": score}, baselines={"shuffled": 0.5}, reliable=score > 0.7,
        )  # fmt: skip
    return found


def used(page: Path, n_features: int, samples: int, profile: Path) -> dict[str, float]:
    """Milliseconds of what somebody does with the site."""
    browser = Browser(profile)
    try:
        browser.look(1400, 900)
        opened = []
        for _ in range(samples):
            start = time.perf_counter()
            browser.open(page)
            opened.append(1000 * (time.perf_counter() - start))
        keys = [browser.value(f"{SEARCH}({json.dumps(text)})") for text in SEARCHED * samples]
        browser.value(f"{SEARCH}('')")
        rows = random.sample(range(n_features), 4 * samples)
        features = [browser.value(f"{OPEN}({row})") for row in rows]
        heap = browser.value("performance.memory.usedJSHeapSize") / 2**20
        assert not browser.errors, browser.errors
    finally:
        browser.close()
    taken = {"open_page": opened, "keystroke": keys, "open_feature": features}
    return {
        **{f"{name}_ms": statistics.median(values) for name, values in taken.items()},
        **{f"{name}_ms_slowest": max(values) for name, values in taken.items()},
        "browser_mb": heap,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--features", type=int, default=50_000)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument(
        "--results", type=Path, default=results.RESULTS, help="folder of pages.json"
    )
    options = parser.parse_args()
    random.seed(0)
    watch = machine.Watch()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = many_features(folder, options.features)
        explanations = described(options.features)
        start = time.perf_counter()
        page = write_pages(store, explanations, pico_tokenizer(), store.folder)
        written = time.perf_counter() - start
        files = list((page.parent / "pages").glob("*.js"))
        record: dict[str, Any] = {
            "features": options.features,
            "write_seconds": written,
            "write_peak_mb": machine.peak_resident() / 2**20,
            "files": len(files),
            "site_mb": sum(file.stat().st_size for file in files) / 2**20,
            **used(page, options.features, options.samples, folder / "profile"),
        }
    record["busy_elsewhere"] = watch.share()
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in record.items()
    }
    print(json.dumps(rounded, indent=1))
    print(f"appended to {results.append('pages', rounded, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
