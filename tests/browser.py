"""A headless Chromium by its own protocol: opens a page, gives it files, presses keys, and keeps its complaints."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
SECONDS = 30.0
KEYS = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowUp": 38, "ArrowDown": 40}


class Browser:
    """One tab. complaints: exceptions, refused resources and errors on the console since it was opened."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.number = socket, 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=SECONDS))
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        facts = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(facts["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif message.get("method") == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """The value of the expression once it is true; of an element, True."""
        deadline, node = time.monotonic() + seconds, "found instanceof Node || found"
        tried = f"(() => {{ try {{ const found = {expression}; return {node} }} catch {{ return null }} }})()"
        while not (value := self.ask(tried)):
            seen = self.ask("document.body?.innerText")
            assert time.monotonic() < deadline, (expression, seen, self.complaints)
            time.sleep(0.05)
        return value

    def give(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in an input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"])

    def press(self, key: str) -> None:
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        facts = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def draw(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse over an element. start, end: in shares of its sides."""
        element = f"document.querySelector({json.dumps(selector)})"
        frame = self.ask(f"(f => [f.left, f.top, f.width, f.height])({element}.getBoundingClientRect())")
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            at = {"x": frame[0] + x * frame[2], "y": frame[1] + y * frame[3]}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def emulate(self, width: int, height: int, **media: str) -> None:
        """A window of this size, and settings such as prefers_color_scheme="dark"."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def photograph(self, path: Path, whole: bool = True) -> None:
        """A PNG of the whole page, or of the window."""
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])
        )


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A tab of a browser of its own. folder: for its profile."""
    assert CHROMIUM
    command = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _wait_for_port(folder / "DevToolsActivePort", process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
            (tab,) = [row for row in json.loads(answer.read()) if row["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=None, open_timeout=SECONDS) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(SECONDS)


def _wait_for_port(file: Path, process: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "Chromium ended"
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("Chromium opened no port")
