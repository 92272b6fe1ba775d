"""Headless Chromium, driven through a pair of pipes as its DevTools protocol has it: JSON, each
message closed by a zero byte.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOUND = [path for name in ("chromium", "chromium-browser", "google-chrome")
         if (path := shutil.which(name))]  # fmt: skip
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--remote-debugging-pipe"]  # fmt: skip


class Browser:
    """One page. `requests` has the address of each thing that it asked for."""

    def __init__(self, sends: int, hears: int) -> None:
        self.sends, self.hears = sends, os.fdopen(hears, "rb")
        self.count, self.session, self.requests, self.errors = 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Network", "Page", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.sends, json.dumps(message).encode() + b"\0")
        while (answer := self.hear()).get("id") != self.count:
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def hear(self) -> dict:
        message = b""
        while not message.endswith(b"\0"):
            byte = self.hears.read(1)
            assert byte, "the browser is gone"
            message += byte
        return json.loads(message[:-1])

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        while self.run("document.readyState") != "complete":
            pass

    def run(self, script: str) -> object:
        """What an expression of JavaScript is worth."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector: str, text: str) -> None:
        """Over all that stands there."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.run("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)


# Chromium reads from 3 and writes to 4.
START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); " \
        "os.execv(sys.argv[3], sys.argv[3:])"  # fmt: skip


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """With an empty profile; it ends with the block."""
    (its_in, sends), (hears, its_out) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (its_in, its_out)]
    words = [sys.executable, "-c", START, *map(str, high), FOUND[0], *QUIET]
    process = subprocess.Popen(
        [*words, f"--user-data-dir={profile}"], pass_fds=high, stderr=subprocess.DEVNULL
    )
    for fd in (its_in, its_out, *high):
        os.close(fd)
    try:
        yield Browser(sends, hears)
    finally:
        process.kill()
        process.wait()
        os.close(sends)
