"""Looks at a page with a headless browser: measures what stands where, and takes pictures. For the slow tier."""

import json
import os
import re
import shutil
import subprocess

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (360, 700, 1400, 1600)
PREFERRED = {"dark": 0, "light": 1}  # Blink's own numbers of prefers-color-scheme
# What is measured in the page, where only this test puts it: a reader's page has no script.
MEASURE = """<script>
const beyond = [...document.querySelectorAll("body *")].filter(e => {
  if (e.closest(".visually-hidden, .step caption")) return false;
  for (let p = e.parentElement; p; p = p.parentElement) if (getComputedStyle(p).overflowX === "auto") return false;
  return e.getBoundingClientRect().right > innerWidth + 0.5;
});
const boxes = [...document.querySelectorAll(".scroll, .chart")];
parent.postMessage({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  beyond: beyond.slice(0, 5).map(e => e.outerHTML.slice(0, 200)),
  widest_box: Math.max(0, ...boxes.map(e => e.getBoundingClientRect().right)),
  clipped: [...document.querySelectorAll("main *:not(svg, svg *, .visually-hidden)")].filter(
    e => getComputedStyle(e).overflowX === "hidden" && e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1
  ).slice(0, 5).map(e => e.outerHTML.slice(0, 200)),
  requests: performance.getEntriesByType("resource").map(e => e.name),
  ground: getComputedStyle(document.body).backgroundColor,
  smallest_text: Math.min(...[...document.querySelectorAll("main *:not(svg *)")].map(
    e => parseFloat(getComputedStyle(e).fontSize))),
}, "*");
</script></body>"""
# A browser's window has a least width; a frame in it has none.
FRAME = """<!doctype html><title>not yet</title><script>
onmessage = message => { document.title = "MEASURED " + JSON.stringify(message.data) + " END"; };
</script><iframe src="PAGE" style="width: WIDTHpx; height: 2000px; border: 0"></iframe>"""


def find_browser():
    """The browser to look with; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(BROWSERS)} is installed")
    return found


def measurable(html):
    """The page with the script that measures it."""
    return html.replace("</body>", MEASURE)


def run(browser, profile, page, width, scheme, *arguments):
    """What the browser prints. Every connection is sent to a port where nothing listens."""
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",  # a container's root may not have one
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={PREFERRED[scheme]}",
        f"--window-size={width},2000",
        *arguments,
        page.as_uri(),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measured(browser, profile, page, width, scheme="light"):
    frame = profile / "frame.html"
    frame.write_text(FRAME.replace("PAGE", page.as_uri()).replace("WIDTH", str(width)), encoding="utf-8")
    dom = run(browser, profile, frame, width, scheme, "--virtual-time-budget=5000", "--dump-dom")
    found = re.search(r"<title>MEASURED (.*?) END</title>", dom, re.S)
    assert found, dom[:500]
    text = found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(text)
