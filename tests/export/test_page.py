"""The report's page: sound HTML that reaches for nothing, and every number and word of the report on it."""

import itertools
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export import drawing, page
from export.artifacts import ImportanceUsed
from export.checks import Items, Observation
from export.checks.exact_match import ExactMatch
from export.checks.stops import Stops
from export.drawing import svg
from export.drawing.side_by_side import side_by_side
from export.licence import licence_of
from export.page import Details, _charts, _made, gather, render
from export.page._answers import worst_rows
from export.page._decision import decide
from export.report import SubjectRecord, write
from export.sampling import wilson_interval
from export.wording.values import about, check_name, plain, unit_of, with_error
from tests.export.page_reports import (
    FILES,
    comparison_report,
    findings,
    observation,
    observations,
    quantization,
    run_report,
)
from tests.html_reading import Element, parsed

EXPECTED = [f"answer {index}" for index in range(40)]
ADVERSARIAL = "<script>alert('x')</script>\"&' {{ 7 * 7 }} </td></table> 你好 <|im_end|>\n\t `x` &lt;b&gt;"


@pytest.fixture(scope="module")
def failed():
    return run_report(EXPECTED, findings=findings(list(FILES), broken="gguf/q8_0"))


@pytest.fixture(scope="module")
def reports(failed):
    """Reports of every kind, by name."""
    seen = {name: s for name, s in observations(EXPECTED, FILES).items() if name in ("merged", "gguf/q8_0")}
    many = [f"answer {index}" for index in range(400)]
    passed = run_report(
        many,
        seen={
            "merged": observation("merged", many, strays=None, changed=0.0),
            "gguf/q8_0": observation("gguf/q8_0", many, strays=1e-4, changed=0.0),
        },
        findings=findings(["gguf/q8_0"]),
    )
    without_divergence = run_report(EXPECTED, seen=seen, checks=(ExactMatch(), Stops()))
    report, _ = failed
    return {
        "fail": failed,
        "pass": passed,
        "cannot tell": run_report(EXPECTED, {"gptq/4bit": (0.008, 0.05)}),
        "two files of others": comparison_report(EXPECTED),
        "no divergence": (without_divergence[0], without_divergence[1].model_copy(update={"divergences": {}})),
        "no details": (report, Details()),
        "nothing measured": (_with_nothing_measured(report), Details()),
        "no subjects": (report.model_copy(update={"subjects": (), **_NOTHING}), Details()),
    }


_NOTHING = {"measurements": (), "comparisons": (), "retained": (), "merge_candidates": (), "verdict": "cannot tell"}
KINDS = (
    "fail",
    "pass",
    "cannot tell",
    "two files of others",
    "no divergence",
    "no details",
    "nothing measured",
    "no subjects",
)


def _with_nothing_measured(report):
    subjects = tuple(s.model_copy(update={"verdict": None, "tensor_types": {}, "tools": {}}) for s in report.subjects)
    return report.model_copy(update={"subjects": subjects, "recipe": {}, "environment": {}, "stages": (), **_NOTHING})


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_well_formed_and_can_be_found_ones_way_in(kind, reports):
    root = parsed(render(*reports[kind]))
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in root.all():
        for name in ("aria-labelledby", "href"):
            for target in element.attributes.get(name, "").split():
                assert target.removeprefix("#") in ids, f"{name} of <{element.tag}> leads nowhere: {target}"
    levels = [int(element.tag[1]) for element in root.all() if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert next(root.all("html")).attributes["lang"] == "en"
    assert next(root.all("title")).text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_and_chart_can_be_read_aloud(kind, reports):
    root = parsed(render(*reports[kind]))
    for table in root.all("table"):
        assert next(table.all("caption")).text().strip()
        assert all(cell.attributes.get("scope") in ("col", "row") for cell in table.all("th"))
        widths = {sum(c.tag in ("td", "th") for c in r.children if isinstance(c, Element)) for r in table.all("tr")}
        assert len(widths) == 1, f"rows of {widths} cells under {next(table.all('caption')).text()!r}"
    for box in root.all(class_="scroll"):
        assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "region")
        assert box.attributes["aria-label"]
    for chart in root.all("svg", role="img"):
        assert next(chart.all("title")).text() and next(chart.all("desc")).text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_reaches_for_nothing_and_runs_nothing(kind, reports):
    html = render(*reports[kind])
    for element in parsed(html).all():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "img", "base", "form")
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "style", "action"), (element.tag, name)
            assert name != "href" or value.startswith("#")
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|//|expression|</", style)


def test_the_page_stays_under_a_megabyte_whatever_the_answers_are():
    files = {f"gguf/q{bits}_0": (0.01 * bits, 0.5) for bits in range(1, 9)}
    rows = [ADVERSARIAL * 60 + str(index) for index in range(400)]
    seen = observations(rows, files)
    for name in files:  # every other character differs, and each is written with five
        broken = [item.model_copy(update={"generated": "<&" * 4000}) for item in seen[name].items]
        seen[name] = seen[name].model_copy(update={"items": tuple(broken)})
    html = render(*run_report(rows, files, seen=seen, checks=(ExactMatch(), Stops()), prompts=rows))
    assert len(html.encode()) < 1_000_000
    parsed(html)


def test_markup_in_any_text_stays_text():
    rows = [f"{ADVERSARIAL} {index}" for index in range(20)]
    name = f"gguf/{ADVERSARIAL}"
    report, details = run_report(rows, {name: (0.01, 0.5)}, findings=findings([name], broken=name), prompts=rows)
    renamed = report.model_copy(update={"recipe": {"name": ADVERSARIAL, "data": {"path": ADVERSARIAL}}})
    root = parsed(render(renamed, details))
    assert not list(root.all("script"))
    assert "49" not in next(root.all("h1")).text()
    # HTML makes one newline of its own kinds and keeps the rest
    assert next(root.all("h1")).text() == ADVERSARIAL
    assert ADVERSARIAL in next(root.all("section", id="answers")).text()
    assert ADVERSARIAL in next(root.all("section", id="identity")).text()
    assert any(ADVERSARIAL in title.text() for title in root.all("title") if title.parent.tag == "svg")


def _value_tables(root):
    """The exact numbers in the subject tables, by subject, in the order of their columns."""
    found = {}
    for table in next(root.all("section", id="subjects")).all("table"):
        names = [next(cell for cell in th.children if isinstance(cell, str)) for th in table.all("th", scope="col")]
        for row in next(table.all("tbody")).all("tr"):
            cells = [child for child in row.children if isinstance(child, Element)]
            for name, cell in zip(names, cells, strict=True):
                for data in cell.all("data"):
                    found[cells[0].children[0], name] = (data.attributes["value"], data.text())
    return found


@pytest.mark.parametrize("kind", ["fail", "pass", "two files of others", "no divergence"])
def test_every_number_of_the_subject_table_is_the_one_in_report_json(kind, reports, tmp_path):
    report, details = reports[kind]
    written = json.loads(write(report, tmp_path).read_text(encoding="utf-8"))
    shown = _value_tables(parsed(render(report, details)))
    assert shown
    elsewhere = {"kl_median", "kl_percentile_99", "kl_max"}
    expected = {
        (m["subject"], check_name(m["check"])): m for m in written["measurements"] if m["check"] not in elsewhere
    }
    assert {cell: float(value) for cell, (value, _) in shown.items()} == {c: m["value"] for c, m in expected.items()}
    for cell, (_, text) in shown.items():
        measured = expected[cell]
        factor = unit_of(measured["unit"]).factor
        if measured["unit"] == "share" and measured["value"] in (0, 1):  # all rows agree: there is no standard error
            low, high = wilson_interval(measured["value"], measured["n"])
            value, reach = re.fullmatch(r"([\d.]+)[−+]([\d.]+)", text).groups()
            assert float(value) == 100 * measured["value"]
            assert float(reach) == pytest.approx(100 * (high - low), abs=0.06)
            continue
        assert _agrees(text, measured["value"], measured["stderr"], factor), (cell, text, measured)


def _agrees(text, value, stderr, factor):
    """Whether a text is a value and its error, rounded to the digits it shows."""
    plain_text = text.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")).replace(",", "")
    found = re.fullmatch(r"\(?(?P<v>-?[\d.]+)(?:±(?P<e>[\d.]+))?\)?(?:×10(?P<p>-?\d+))?", plain_text)
    power = 10.0 ** int(found["p"] or 0)
    half = 0.5000001 * 10.0 ** -len(found["v"].partition(".")[2]) * power
    is_right = abs(float(found["v"]) * power - value * factor) <= half
    if stderr is None:
        return is_right and found["e"] is None
    return is_right and abs(float(found["e"]) * power - stderr * factor) <= half


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_are_words_and_shapes(kind, reports):
    report, details = reports[kind]
    root = parsed(render(report, details))
    heading = next(root.all("h2", id="verdict-heading"))
    assert heading.text().strip() == f"Verdict: {report.verdict}"
    shapes = {"pass", "fail", "cannot-tell"}
    for element in root.all("span"):
        classes = set(element.attributes.get("class", "").split())
        if "verdict" in classes and classes & shapes:
            (word,) = classes & shapes
            assert element.text() == word.replace("-", " ")
            assert [use.attributes["href"] for use in element.all("use")] == [f"#shape-{word}"]
    table = next(next(root.all("section", id="subjects")).all("tbody"), None)
    if table is not None:
        for subject in report.subjects:
            (row,) = [r for r in table.all("tr") if next(r.all("th")).children[0] == subject.name]
            assert next(row.all("td")).text() == (subject.verdict or "not judged")


def test_each_subject_is_there_even_when_it_could_not_be_measured(failed):
    report, details = failed
    left = tuple(m for m in report.measurements if m.subject != "gguf/q8_0")
    unmeasured = report.model_copy(update={"measurements": left})
    text = next(parsed(render(unmeasured, details)).all("section", id="subjects")).text()
    assert all(subject.name in text for subject in report.subjects)


def test_identity_failures_stand_in_the_open_and_what_passed_is_folded(failed):
    section = next(parsed(render(*failed)).all("section", id="identity"))
    rows = [row for body in section.all("tbody") for row in body.all("tr")]
    open_rows = [row.text() for row in rows if not any(a.tag == "details" for a in row.ancestors())]
    assert len(rows) == len(FILES) * 3
    assert len(open_rows) == 1
    assert all(part in open_rows[0] for part in ("gguf/q8_0", "stop ids", "[151643]", "[151645]", "never end"))


def test_the_verdict_names_what_decided_it(reports):
    failed = decide(reports["fail"][0])
    assert "stop ids" in failed.sentence and "gguf/q8_0" in failed.reasons[0]
    passed = decide(reports["pass"][0])
    assert len(passed.reasons) == 1 and "of what is allowed" in passed.reasons[0]
    assert "1 of" not in passed.sentence and "gguf/q8_0 stays within" in passed.sentence
    undecided_report = reports["cannot tell"][0]
    needed = [c.rows_needed for c in undecided_report.comparisons if c.verdict == "cannot tell"]
    assert undecided_report.verdict == "cannot tell" and any(needed)
    undecided = decide(undecided_report)
    assert about(max(n for n in needed if n)) in " ".join(undecided.reasons).lower()
    assert "40 held-out rows" in undecided.sentence


def test_the_nearest_check_of_a_pass_is_the_one_with_least_room(reports):
    report = reports["pass"][0]
    judged = [c for c in report.comparisons if c.verdict and c.bound_limit and c.interval]
    room = {}
    for c in judged:
        start = 1.0 if c.scale == "ratio" else 0.0
        worst = -c.interval[0] if c.check in ("exact_match", "same_top_token") else c.interval[1] - start
        room[c.check] = worst / (c.bound_limit - start)
    nearest = max(room, key=room.get)
    assert nearest.replace("_", " ") in decide(report).reasons[0]


def test_parts_that_are_missing_are_said_to_be_or_left_out(reports):
    two_files = parsed(render(*reports["two files of others"]))
    assert not list(two_files.all("section", id="loss"))
    assert "reference" in next(two_files.all("section", id="subjects")).text()
    without = parsed(render(*reports["no divergence"]))
    assert "not measured" in next(without.all("section", id="divergence")).text()
    assert "gguf/q8_0" in next(without.all("section", id="answers")).text()
    bare = parsed(render(*reports["no details"]))
    assert list(next(bare.all("section", id="divergence")).all("table"))
    assert "No answers" in next(bare.all("section", id="answers")).text()


def test_a_value_that_is_not_finite_is_said_in_words(failed):
    report, details = failed
    broken = [m.model_copy(update={"value": math.inf, "stderr": None}) for m in report.measurements]
    comparisons = [c.model_copy(update={"delta": math.nan, "interval": None}) for c in report.comparisons]
    html = render(report.model_copy(update={"measurements": broken, "comparisons": comparisons}), details)
    root = parsed(html)
    assert "not finite" in next(root.all("section", id="subjects")).text()
    assert not re.search(r"\b(nan|inf)\b", root.text(), re.I)
    diverged = {"gguf/q8_0": tuple((math.inf, 0.1) for _ in EXPECTED)}
    text = parsed(render(report, details.model_copy(update={"divergences": diverged}))).text()
    assert "KL not finite" in text and "40 of them not finite" in text


def test_worst_rows_are_the_lost_ones_then_the_most_divergent(failed):
    report, details = failed
    (found,) = [w for w in worst_rows(report, details) if w.subject == "gguf/q4_k_m"]
    answers, reference = details.answers["gguf/q4_k_m"], details.answers["merged"]
    changed = {index for index in range(40) if answers[index] != reference[index]}
    lost = {index for index in changed if reference[index] == EXPECTED[index]}
    shown = [row.number - 1 for row in found.rows]
    assert found.differing == len(changed) > 0
    assert set(shown[: len(lost)]) == lost
    assert set(shown[: len(changed)]) == changed
    means = np.array([np.mean(tokens) for tokens in details.divergences["gguf/q4_k_m"]])
    others = [index for index in np.argsort(-means) if index not in changed]
    assert shown[len(changed) :] == others[: 8 - len(changed)]


TEXTS = st.text("ab 你<\n", max_size=60)


@given(TEXTS, TEXTS, TEXTS, st.integers(5, 80))
def test_side_by_side_shows_a_window_of_both_answers_with_their_first_difference(common, one, other, characters):
    first, second = common + one, common + other
    shown = side_by_side(first, second, characters)
    for text, whole in zip(shown, (first, second), strict=True):
        seen = "".join(passage.text for passage in text.passages)
        start = text.left_out_before
        assert whole[start : start + characters] == seen
        assert start + len(seen) + text.left_out_behind == max(len(whole), start)
        assert len(seen) <= characters
    same = ["".join(p.text for p in text.passages if p.kind == "same") for text in shown]
    assert same[0] == same[1]
    difference = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if difference is not None:
        assert all(text.left_out_before <= difference < text.left_out_before + characters for text in shown)
        assert any(p.kind == "differs" for text in shown for p in text.passages)


def test_differences_are_marked_by_elements_not_by_colour_alone(failed):
    section = next(parsed(render(*failed)).all("section", id="answers"))
    marked = [element.text() for element in section.all("ins") if any(a.tag == "dd" for a in element.ancestors())]
    assert any("instead" in text for text in marked)
    style = drawing.style()
    for tag in ("ins", "del"):
        assert re.search(rf"^{tag} {{[^}}]*underline", style, re.M)


def _contrast(first, second):
    """The contrast ratio of two colours: WCAG 2.2's definition."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_text_colour_stands_out_from_what_it_is_written_on():
    style = drawing.style()
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    themes = [theme for theme in themes if "ground" in theme]
    assert len(themes) == 2  # light and dark; print is plain black on white
    for theme in themes:
        for text in ("ink", "soft", "accent", "pass", "fail", "unsure"):
            for under in ("ground", "sheet", "faint"):
                assert _contrast(theme[text], theme[under]) >= 4.5, (text, under)
        assert _contrast(theme["ink"], theme["mark"]) >= 4.5
        assert _contrast(theme["bar"], theme["sheet"]) >= 3


@given(st.lists(st.floats(0, 50), min_size=1, max_size=200), st.integers(-10, -1), st.integers(1, 6))
def test_bin_shares_are_those_of_numpys_histogram(values, low, decades):
    shares = _charts.bin_shares(values, (low, low + decades))
    assert math.isclose(sum(shares), 1)
    edges = np.logspace(low, low + decades, decades * 4 + 1)
    clipped = np.clip(values, edges[0] * 1.0001, edges[-1] * 0.9999)
    counts, _ = np.histogram(clipped, bins=edges)
    assert (
        np.abs(np.array(shares) * len(values) - counts).sum()
        <= 2 * np.isclose(np.log10(clipped) * 4 % 1 % 0.999, 0, atol=2e-3).sum()
    )


@given(
    st.lists(st.tuples(st.floats(0.1, 900), st.floats(0, 1), st.floats(0, 0.3)), min_size=2, max_size=10),
    st.booleans(),
)
def test_everything_drawn_lies_inside_the_drawing(drawn, logarithmic):
    points = [
        _charts.Point(f"gguf/q{i}", "circle", i == 0, size, y or 1e-9, max(0.0, y - e), min(1.0, y + e) or 1e-9, 0.05)
        for i, (size, y, e) in enumerate(drawn)
    ]
    make = _charts.divergence_against_size if logarithmic else _charts.scores_against_size
    drawing = make("x", points, "a check")
    for element in ElementTree.fromstring(str(drawing)).iter():
        xs = [float(element.attrib[a]) for a in ("x", "x1", "x2", "cx") if a in element.attrib]
        ys = [float(element.attrib[a]) for a in ("y", "y1", "y2", "cy") if a in element.attrib]
        assert all(0 <= x <= drawing.width for x in xs) and all(0 <= y <= drawing.height for y in ys)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(4, 9))
def test_ticks_are_few_round_and_inside(low, span, most):
    ticks = svg.linear_ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most + 1
    rounding = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - rounding <= tick <= low + span + rounding for tick in ticks)


@pytest.mark.parametrize(
    ("value", "stderr", "unit", "text"),
    [
        (0.9475, 0.01117, "share", "94.8±1.1"),
        (0.999412, 0.00024, "share", "99.941±0.024"),
        (1.0, 0.0, "share", "100.0±0.0"),
        (1041.84, 30.6, "perplexity", "1,042±31"),
        (1.01298, 0.001634, "perplexity", "1.0130±0.0016"),
        (1.045e-4, 8.9e-6, "nats", "(1.045±0.089)×10⁻⁴"),
        (0.0, 0.0, "nats", "0.0000±0.0000"),
        (9.97e-5, 1e-6, "nats", "(9.97±0.10)×10⁻⁵"),
        (11542528, None, "bytes", "11.5"),
        (4.683e9, None, "bytes", "4,683"),
        (7.2e-4, None, "nats", "7.2×10⁻⁴"),
        (math.inf, None, "nats", "not finite"),
        (3.5, 0.25, "furlongs", "3.50±0.25"),
    ],
)
def test_values_are_written_to_the_digits_their_error_allows(value, stderr, unit, text):
    assert with_error(value, stderr, unit_of(unit)) == text


@given(st.floats(1e-12, 1e9), st.sampled_from([None, 0, 1, 2, 3]))
def test_a_number_that_is_not_zero_is_never_written_as_nothing_but_zeros(value, digits):
    assert re.search(r"[1-9]", plain(value, digits).partition("×")[0])


@pytest.mark.parametrize(
    ("rows", "text"),
    [(7, "about 7 held-out rows"), (1621, "about 1,700 held-out rows"), (100, "about 100 held-out rows")],
)
def test_rows_that_are_needed_are_rounded_up(rows, text):
    assert about(rows) == text


def test_the_page_is_the_same_every_time_and_written_whole(failed, tmp_path):
    report, details = failed
    path = page.write(report, details, tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(report, details)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_details_are_gathered_from_what_a_run_has_in_hand(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(300)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    report, expected = run_report(EXPECTED)
    rows = tuple({"ids": (0, 1, 2), "scored": (2,), "prompt": (5, i), "answer": e} for i, e in enumerate(EXPECTED))
    items = Items(
        items=rows,
        vocabulary_size=300,
        max_new_tokens=4,
    )
    place = tmp_path / "export" / "gptq-4bit"
    place.mkdir(parents=True)
    (place / "quantization.json").write_text(expected.quantization["gptq/4bit"].model_dump_json())
    (tmp_path / "export" / "gguf-f16").mkdir()
    (tmp_path / "export" / "gguf-f16" / "quantization.json").write_text("{broken")
    seen: dict[str, Observation] = observations(EXPECTED, FILES)
    details = gather(report, items, seen, tokenizer=tmp_path, folder=tmp_path)
    assert details.rows[7].prompt == "w5 w7" and details.rows[7].expected == EXPECTED[7]
    assert details.quantization == expected.quantization
    assert details.losses == expected.losses
    assert details.answers == expected.answers and details.divergences == expected.divergences
    assert details.licences == {}


@pytest.mark.parametrize(
    ("file", "content", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("README.md", "# A model\n---\nlicense: mit\n---\n", None),
        ("README.md", "---\nlicense: [mit\n---\n", None),
        ("README.md", "---\nlicense: mit\n", None),
        ("LICENSE", "\n   Apache License\n  Version 2.0\n", "Apache License"),
        ("LICENSE", "x" * 200, None),
        ("NOTICE", "mit", None),
    ],
)
def test_a_licence_is_what_the_folder_states(file, content, licence, tmp_path):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert licence_of(tmp_path) == licence


def test_the_page_of_full_fine_tuning_speaks_of_no_adapter():
    report, details = run_report(EXPECTED, whole=True)
    report = report.model_copy(update={"merge_candidates": ()})
    text = render(report, details)
    assert "adapter" not in text
    assert "all weights as they were trained (full fine-tuning)" in text
    assert "the trained weights in 16 bits: the reference" in text
    assert "full fine-tuning: all weights were trained, in float32" in text
    assert (
        "the merged model stays within what it may lose against the model as it was trained"
        in decide(report.model_copy(update={"verdict": "pass"})).sentence
    )


def test_what_importance_data_reaches_is_told_by_its_worst_matrix():
    used = ImportanceUsed(
        rows=9, tokens=100, tensors=3, without=("blk.0.x.weight",), never_active_channels={"blk.1.a": 2, "blk.1.b": 30}
    )
    subject = SubjectRecord.model_construct(importance=used)
    assert _made._importance(subject) == (
        "importance measured on 9 training rows (100 tokens) for 3 matrices, none for blk.0.x.weight, 32 channels of 2 "
        "matrices never active (most in blk.1.b: 30)"
    )


def test_tuned_rounding_is_told_in_place_of_damping():
    record = quantization()
    assert "damping" in _made._settings(record)
    told = _made._settings(record.model_copy(update={"tuning_steps": 200}))
    assert "rounding tuned in 200 steps (AutoRound)" in told and "damping" not in told
