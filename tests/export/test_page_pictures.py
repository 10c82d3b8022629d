"""The page as a browser shows it: light and dark, narrow and wide, without reaching for anything."""

import json
import os
import re
import shutil
import subprocess

import pytest

from export.page import render
from tests.export.page_reports import FILES, comparison_report, findings, run_report

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(BROWSERS)} is installed")
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    long = [f'{{"task":"mop","note":"{"unbroken" * 30} 请把客厅打扫干净 {index}"}}' for index in range(40)]
    many = {f"gguf/q{bits}_k_with_a_long_name_{bits}": (0.002 * bits, 0.05) for bits in range(2, 8)}
    reports = {
        "run": run_report(long, {**FILES, **many}, findings=findings(list(FILES), broken="gguf/q8_0")),
        "comparison": comparison_report([f"answer {index}" for index in range(40)]),
    }
    for name, (report, details) in reports.items():
        html = render(report, details)
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
        (folder / f"{name}-measured.html").write_text(html.replace("</body>", MEASURE), encoding="utf-8")
    return folder


def _run(browser, profile, page, width, scheme, *arguments):
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


def _measured(browser, profile, page, width, scheme="light"):
    frame = profile / "frame.html"
    frame.write_text(FRAME.replace("PAGE", page.as_uri()).replace("WIDTH", str(width)), encoding="utf-8")
    dom = _run(browser, profile, frame, width, scheme, "--virtual-time-budget=5000", "--dump-dom")
    found = re.search(r"<title>MEASURED (.*?) END</title>", dom, re.S)
    assert found, dom[:500]
    text = found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(text)


@pytest.mark.parametrize("name", ["run", "comparison"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_sideways(browser, pages, tmp_path, name, width):
    measured = _measured(browser, tmp_path, pages / f"{name}-measured.html", width)
    assert measured["width"] == width
    assert measured["beyond"] == []
    assert measured["clipped"] == []
    assert measured["scroll"] <= width
    assert measured["widest_box"] <= width
    assert measured["smallest_text"] >= 12


def test_nothing_is_fetched(browser, pages, tmp_path):
    assert _measured(browser, tmp_path, pages / "run-measured.html", 1400)["requests"] == []


def test_light_and_dark_follow_the_readers_preference(browser, pages, tmp_path):
    grounds = {}
    for scheme in PREFERRED:
        ground = _measured(browser, tmp_path, pages / "run-measured.html", 1400, scheme)["ground"]
        grounds[scheme] = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert grounds["light"] > 200 > 60 > grounds["dark"]


def test_the_pictures_are_of_something_and_dark_is_dark(browser, pages, tmp_path):
    image = pytest.importorskip("PIL.Image")
    brightness = {}
    for scheme in PREFERRED:
        for width in (360, 1400):
            path = tmp_path / f"{scheme}-{width}.png"
            _run(browser, tmp_path / "profile", pages / "run.html", width, scheme, f"--screenshot={path}")
            with image.open(path) as opened:
                picture = opened.convert("L")
            assert picture.size == (width, 2000)
            # no band of the picture is empty: text, tables and rules all the way down
            for top in range(0, 2000, 400):
                darkest, lightest = picture.crop((0, top, width, top + 400)).getextrema()
                assert lightest - darkest > 100, f"{scheme} at {width} px is blank from {top} px down"
            brightness[scheme, width] = sum(v * n for v, n in enumerate(picture.histogram())) / (width * 2000)
    for width in (360, 1400):
        assert brightness["light", width] > 200 > 60 > brightness["dark", width]
