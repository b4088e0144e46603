# SPDX-License-Identifier: Apache-2.0
"""A browser without a window, by the WebDriver protocol: Debian's chromium and its driver."""

import base64
import http.client
import json
import re
import shutil
import subprocess
import tempfile

PAGES = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# no look-ups, updates or anything else that leaves the machine
PAGES += ["--disable-background-networking", "--no-first-run", "--no-default-browser-check"]
PAGES += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--hide-scrollbars"]


def missing():
    """Why there is no browser, or None."""
    for name in ("chromium", "chromedriver"):
        if not shutil.which(name):
            return f"{name} is not installed: tools/setup browser"
    return None


class Browser:
    def __init__(self, seconds=60):
        self.profile = tempfile.TemporaryDirectory(prefix="rr-browser-")
        self.seconds = seconds
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.session = None
        try:
            for line in self.driver.stdout:
                if match := re.search(rb"started successfully on port (\d+)", line):
                    self.port = int(match[1])
                    break
            options = {
                "binary": shutil.which("chromium"),
                "args": [*PAGES, f"--user-data-dir={self.profile.name}"],
            }
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            self.session = self.ask(
                "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}
            )["sessionId"]
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            if self.session:
                self.ask("DELETE", f"/session/{self.session}")
        finally:
            self.driver.terminate()
            self.driver.wait(20)
            self.profile.cleanup()

    def ask(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        c.request(method, path, None if method == "DELETE" else json.dumps(body or {}))
        answer = json.loads(c.getresponse().read())["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{path}: {answer['message']}")
        return answer

    def do(self, what, **body):
        return self.ask("POST", f"/session/{self.session}/{what}", body)

    def devtools(self, command, **params):
        return self.do("goog/cdp/execute", cmd=command, params=params)

    def open(self, url):
        self.do("url", url=url)

    def js(self, script):
        return self.do("execute/sync", script=script, args=[])

    def screen(self, width, height, scale=1):
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 700,
        )

    def scheme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def picture(self, whole=False):
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def complaints(self):
        """What the console says since the last time: errors of scripts, refusals of the policy."""
        return [e["message"] for e in self.do("se/log", type="browser") if e["level"] != "INFO"]
