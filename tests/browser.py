"""A headless Chromium, driven over the DevTools protocol on a pair of pipes: no package needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --mute-audio --no-first-run "
    "--disable-extensions --disable-background-networking --disable-component-update --remote-debugging-pipe"
)
KEYS = {" ": ("Space", 32, " "), "Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, "")}
KEYS |= {digit: (f"Digit{digit}", ord(digit), digit) for digit in "12345"}


class Browser:
    """One page. Use as a context manager."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 900, mobile: bool = False):
        assert CHROMIUM is not None
        command_read, self.command_end = above_ten(os.pipe())
        self.event_end, event_write = above_ten(os.pipe())

        def hand_over() -> None:  # Chromium reads commands from 3 and writes to 4
            os.dup2(command_read, 3)
            os.dup2(event_write, 4)

        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdout=quiet, stderr=quiet, preexec_fn=hand_over, close_fds=False, start_new_session=True
        )
        os.close(command_read)
        os.close(event_write)
        self.unread, self.count, self.session, self.in_frame = b"", 0, None, False
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.resize(width, height, mobile)

    def resize(self, width: int, height: int, mobile: bool) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error) -> None:
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(20)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.command_end)
        os.close(self.event_end)

    def call(self, method: str, **parameters) -> dict:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.command_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def receive(self, seconds: float = 60) -> dict:
        while b"\0" not in self.unread:
            if not select.select([self.event_end], [], [], seconds)[0]:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self.event_end, 1 << 20)
            if not piece:
                raise OSError("Chromium has ended")
            self.unread += piece
        message, self.unread = self.unread.split(b"\0", 1)
        return json.loads(message)

    def run(self, script: str):
        """The value of a JavaScript expression, in the first frame inside the page where `in_frame` is set."""
        if self.in_frame:
            script = f"frames[0].eval({json.dumps(script)})"
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState == 'complete'")

    def wait_for(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came: {condition}; the page says: {self.text()[-500:]}"
            time.sleep(0.03)

    def text(self) -> str:
        return self.run("document.body.innerText")

    def press(self, key: str) -> None:
        code, number, text = KEYS[key]
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def middle_of(self, selector: str) -> list[float]:
        """x, y on the screen, after scrolling there."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
        if self.in_frame:
            offset = self.run("(r => [r.x, r.y])(frameElement.getBoundingClientRect())")
            box = [box[0] + offset[0], box[1] + offset[1]]
        return box

    def click(self, selector: str) -> None:
        """With a mouse."""
        x, y = self.middle_of(selector)
        event = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **event)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **event)

    def tap(self, selector: str) -> None:
        """With a finger."""
        x, y = self.middle_of(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(result["data"]))


def above_ten(ends: tuple[int, int]) -> tuple[int, int]:
    """The same pipe on descriptors that 3 and 4 do not fall on."""
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
