"""A browser without a window, driven through the DevTools protocol over a pair of pipes.

No driver and no package: `--remote-debugging-pipe` makes Chromium read JSON from descriptor 3 and
write it to 4, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # a container's root has no other way; the pages are our own
    "--disable-gpu",
    "--no-first-run",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
PATIENCE = 60.0  # seconds, for a slow machine; nothing waits this long where all is well


def find_chromium() -> str:
    """Its path: that of the variable CHROMIUM, or whichever is installed."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    raise FileNotFoundError(
        "these tests need Chromium or Chrome: install one (Debian: apt install chromium), "
        "or say where it is with CHROMIUM=/path/to/chrome"
    )


class Navigated(AssertionError):
    """The page that was asked is being left for another."""


@final
class Browser:
    """One tab. `errors`: what its console and scripts complained of; `loaded`: what it read."""

    def __init__(self, profile: Path):
        command_r, command_w = os.pipe()
        answer_r, answer_w = os.pipe()
        # The shell puts the pipes where the protocol wants them.
        started = f'exec "$0" "$@" 3</dev/fd/{command_r} 4>/dev/fd/{answer_w}'
        self._process = subprocess.Popen(
            ["sh", "-c", started, find_chromium(), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(command_r, answer_w),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_r)
        os.close(answer_w)
        self._write, self._read = command_w, answer_r
        self._rest = b""
        self._sent = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.loaded: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)  # Chromium leaves when nobody can talk to it
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what happens in between is noted."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated(method)
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def open(self, page: Path, address: str = "") -> None:
        """Opens a file in the tab anew and waits until it is ready."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{page.resolve().as_uri()}{address}")
        self.until("document.documentElement?.dataset.ready === 'true'")

    def value(self, expression: str) -> Any:
        """What JavaScript makes of `expression`; promises are waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits for `expression` to hold, on this page or the one that a click leads to."""
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(Navigated):
                if self.value(expression):
                    return
            assert time.monotonic() < end, f"never came true: {expression}"
            time.sleep(0.01)

    def press(self, key: str) -> None:
        """One key, as if struck: a letter, or a name such as Enter."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        codes = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "Tab": 9}
        codes |= {"ArrowLeft": 37, "ArrowRight": 39}
        code: Mapping[str, Any] = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def type(self, text: str) -> None:
        for letter in text:
            self.press(letter)

    def click(self, selector: str, meanwhile: str = "") -> None:
        """On the first element that `selector` finds; `meanwhile` runs while the button is down."""
        self.click_at(*self._middle(selector), meanwhile=meanwhile)

    def click_at(self, x: float, y: float, shift: bool = False, meanwhile: str = "") -> None:
        """At a place of the window, in CSS pixels."""
        modifiers = 8 if shift else 0
        button = {"x": x, "y": y, "button": "left", "clickCount": 1, "modifiers": modifiers}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **button)
        if meanwhile:
            self.value(meanwhile)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **button)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """From one place of the window to another, in four steps."""
        down = {"button": "left", "buttons": 1, "clickCount": 1}
        (a, b), (c, d) = start, end
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=a, y=b, **down)
        for part in (0.25, 0.5, 0.75, 1.0):
            x, y = a + part * (c - a), b + part * (d - b)
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **down)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=c, y=d, **down)

    def hover(self, selector: str) -> None:
        x, y = self._middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, in CSS pixels, and the scheme that the system prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(picture))

    def _middle(self, selector: str) -> tuple[float, float]:
        """The middle of the first element that `selector` finds, scrolled into sight and at rest."""
        found = self.value(
            f"""(async () => {{
                const frame = () => new Promise(requestAnimationFrame);
                const find = () => document.querySelector({json.dumps(selector)});
                find()?.scrollIntoView({{ block: "nearest" }});
                await frame(); // the page answers to sizes and scrolling at the end of a frame,
                await frame(); // so it has answered once the next one begins
                const element = find();
                if (!element) return null;
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        assert found is not None, f"nothing matches {selector}"
        return found[0], found[1]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            assert ready, "the browser says nothing"
            more = os.read(self._read, 1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Mapping[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            if parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(parameters["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.loaded.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(json.dumps(parameters["args"]))
