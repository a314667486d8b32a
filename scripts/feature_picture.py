r"""Takes the picture of a feature's page for the docs, with Chromium.

dictlearn train name=demo
dictlearn features run=runs/demo tokens=300000
dictlearn explain run=runs/demo limit=600
python scripts/feature_picture.py runs/demo '#resid_post.1/2192?q=def&sort=score' docs/img/feature.png
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.browser.devtools import Browser

SECONDS = 3  # for the feature's own file to be read and drawn


def main(run: str, address: str, picture: str, scheme: str = "light") -> None:
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            browser.look(1280, 900, dark=scheme == "dark")
            browser.open(Path(run, "features/index.html"), address)
            time.sleep(SECONDS)
            if scheme == "dark":
                browser.value("document.querySelector('main details').open = true")
                time.sleep(SECONDS)
            browser.screenshot(Path(picture))
        finally:
            browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
