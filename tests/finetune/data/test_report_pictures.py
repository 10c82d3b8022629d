"""The rows' page as a browser shows it: light and dark, narrow and wide, without reaching for anything."""

import re

import pytest

from finetune.data.report import render
from tests.browsing import PREFERRED, WIDTHS, find_browser, measurable, measured, run
from tests.finetune.data.data_reports import broken, empty, filled

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    return find_browser()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    long = "unbroken" * 40
    overlaps = tuple(each.model_copy(update={"examples": ((long, f"{long}s"),)}) for each in filled().overlaps)
    texts = {"name": long, "path": long, "template": long, "licences": ((long, long),), "overlaps": overlaps}
    clauses = tuple(c.model_copy(update={"examples": (long,)}) for c in broken().clauses)
    reports = {"broken": broken(), "empty": empty(), "long": filled(clauses=clauses, **texts)}
    for name, report in reports.items():
        html = render(report).replace("<details", "<details open")  # what is folded must fit too
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
        (folder / f"{name}-measured.html").write_text(measurable(html), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["broken", "empty", "long"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_sideways(browser, pages, tmp_path, name, width):
    seen = measured(browser, tmp_path, pages / f"{name}-measured.html", width)
    assert seen["width"] == width
    assert seen["beyond"] == []
    assert seen["clipped"] == []
    assert seen["scroll"] <= width
    assert seen["widest_box"] <= width
    assert seen["smallest_text"] >= 12
    assert seen["requests"] == []


def test_the_pictures_are_of_something_and_dark_is_dark(browser, pages, tmp_path):
    image = pytest.importorskip("PIL.Image")
    brightness = {}
    for scheme in PREFERRED:
        for width in (360, 1400):
            path = tmp_path / f"{scheme}-{width}.png"
            run(browser, tmp_path / "profile", pages / "broken.html", width, scheme, f"--screenshot={path}")
            with image.open(path) as opened:
                picture = opened.convert("L")
            for top in range(0, 2000, 400):
                darkest, lightest = picture.crop((0, top, width, top + 400)).getextrema()
                assert lightest - darkest > 100, f"{scheme} at {width} px is blank from {top} px down"
            brightness[scheme, width] = sum(v * n for v, n in enumerate(picture.histogram())) / (width * 2000)
    for width in (360, 1400):
        assert brightness["light", width] > 200 > 60 > brightness["dark", width]


def test_the_ground_follows_the_readers_preference(browser, pages, tmp_path):
    for scheme, is_light in (("light", True), ("dark", False)):
        ground = measured(browser, tmp_path, pages / "broken-measured.html", 1400, scheme)["ground"]
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) / 3 > 128) == is_light
