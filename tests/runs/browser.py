"""A real browser for tests, driven by its own debugging protocol; chromium where one is installed."""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]


class Page:
    """One page: what it asked for, what went wrong, and what its scripts say."""

    def __init__(self, socket):
        self.socket, self.number, self.events = socket, 0, []
        for domain in ("Network", "Runtime", "Page", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.number:
                return answer["result"]
            self.events.append(answer)

    def open(self, file, width, height=900, theme="light"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.call("Page.navigate", url=Path(file).as_uri())

    def value(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"{script} did not become true"
            time.sleep(0.1)

    def picture(self):
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    @property
    def requests(self):
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    @property
    def errors(self):
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        return thrown + [entry for entry in logged if entry["level"] == "error"]


@contextlib.contextmanager
def browser():
    """Start chromium and give its one page."""
    from websockets.sync.client import connect

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        words = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, end = Path(folder) / "DevToolsActivePort", time.monotonic() + 60
            while not port.exists() or len(port.read_text().split()) < 2:
                assert time.monotonic() < end, "the browser did not start"
                time.sleep(0.1)
            address, path = port.read_text().split()
            with connect(f"ws://127.0.0.1:{address}{path}", max_size=None) as socket:
                socket.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
                targets = json.loads(socket.recv(timeout=60))["result"]["targetInfos"]
            (page,) = [one["targetId"] for one in targets if one["type"] == "page"]
            with connect(f"ws://127.0.0.1:{address}/devtools/page/{page}", max_size=None) as socket:
                yield Page(socket)
        finally:
            process.kill()
            process.wait()
