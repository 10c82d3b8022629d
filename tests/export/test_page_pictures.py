"""The page as a browser shows it: light and dark, narrow and wide, without reaching for anything."""

import re

import pytest

from export.page import render
from tests.browsing import PREFERRED, WIDTHS, find_browser, measurable, measured, run
from tests.export.page_reports import FILES, comparison_report, findings, run_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    return find_browser()


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
        (folder / f"{name}-measured.html").write_text(measurable(html), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["run", "comparison"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_sideways(browser, pages, tmp_path, name, width):
    seen = measured(browser, tmp_path, pages / f"{name}-measured.html", width)
    assert seen["width"] == width
    assert seen["beyond"] == []
    assert seen["clipped"] == []
    assert seen["scroll"] <= width
    assert seen["widest_box"] <= width
    assert seen["smallest_text"] >= 12


def test_nothing_is_fetched(browser, pages, tmp_path):
    assert measured(browser, tmp_path, pages / "run-measured.html", 1400)["requests"] == []


def test_light_and_dark_follow_the_readers_preference(browser, pages, tmp_path):
    grounds = {}
    for scheme in PREFERRED:
        ground = measured(browser, tmp_path, pages / "run-measured.html", 1400, scheme)["ground"]
        grounds[scheme] = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert grounds["light"] > 200 > 60 > grounds["dark"]


def test_the_pictures_are_of_something_and_dark_is_dark(browser, pages, tmp_path):
    image = pytest.importorskip("PIL.Image")
    brightness = {}
    for scheme in PREFERRED:
        for width in (360, 1400):
            path = tmp_path / f"{scheme}-{width}.png"
            run(browser, tmp_path / "profile", pages / "run.html", width, scheme, f"--screenshot={path}")
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
