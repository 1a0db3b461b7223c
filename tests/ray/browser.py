"""A real browser, spoken to over its debugging port. Knows nothing of the page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

START_S = 60.0


class Page:
    """One page; what it complained about is in `complaints`, the addresses that it asked in `asked`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        self.asked: list[str] = []
        for domain in ("Runtime", "Page", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """As a keyboard does; text: what the key writes."""
        for kind in ("keyDown", "keyUp"):
            told = {"type": kind, "key": key, "code": key, "text": text if kind == "keyDown" else ""}
            codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowDown": 40}
            self._ask("Input.dispatchKeyEvent", **told, windowsVirtualKeyCode=codes.get(key, 0))

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, wide: int, high: int) -> None:
        size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, file: Path, wide: int = 1280, high: int = 1100) -> None:
        self.resize(wide, high)
        time.sleep(1.5)
        file.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(timeout=60))
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("method") in (
                "Runtime.exceptionThrown",
                "Log.entryAdded",
                "Runtime.consoleAPICalled",
            ):
                self.complaints.append(json.dumps(told["params"])[:300])
            if told.get("id") == self._number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result


@contextmanager
def browser(directory: Path, port: int) -> Iterator[Page]:
    """Chromium without a window; skips where there is none."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory}"]
    command = [binary, *flags, f"--remote-debugging-port={port}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with connect(_socket_of(port), max_size=None, ping_interval=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(30)


def _socket_of(port: int) -> str:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                return str(next(p["webSocketDebuggerUrl"] for p in json.load(answer) if p["type"] == "page"))
        except (OSError, StopIteration):
            assert time.monotonic() < deadline_s, "the browser does not start"
            time.sleep(0.2)
