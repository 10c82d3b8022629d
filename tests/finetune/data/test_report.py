"""The rows' report: every count of it on a sound page, in a dozen lines and in report.json; text of rows stays text."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.account import Clause, DataReport, Histogram, LengthLimit, Overlap, PersonalCount, ScriptCount
from finetune.data.report import lines, render, write_report
from finetune.data.report._charts import bins, range_text
from finetune.data.report._words import limit_text, share
from finetune.data.shown import in_one_line, visible
from tests.finetune.data.data_reports import broken, broken_clauses, clauses, empty, filled
from tests.html_reading import Element, parsed

HOSTILE = "<script>alert('x')</script>\"&' {{ 7 * 7 }} </td></table> 你好 <|im_end|> `x` &lt;b&gt;"
COMMANDS = "\x1b[31mred\x07\u202egnp"
REPORTS = {"filled": filled(), "broken": broken(), "empty": empty()}


def section(report, name):
    return next(parsed(render(report)).all("section", id=name))


def body_rows(part):
    """The cells of each row of the tables in a part of the page, as text."""
    rows = [row for body in part.all("tbody") for row in body.all("tr")]
    return [[cell.text() for cell in row.children if isinstance(cell, Element)] for row in rows]


@pytest.mark.parametrize("kind", REPORTS)
def test_the_page_is_well_formed_and_can_be_found_ones_way_in(kind):
    root = parsed(render(REPORTS[kind]))
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in root.all():
        for name in ("aria-labelledby", "href"):
            for target in element.attributes.get(name, "").split():
                assert target.removeprefix("#") in ids, f"{name} of <{element.tag}> leads nowhere: {target}"
    levels = [int(element.tag[1]) for element in root.all() if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for table in root.all("table"):
        assert next(table.all("caption")).text().strip()
        widths = {sum(c.tag in ("td", "th") for c in r.children if isinstance(c, Element)) for r in table.all("tr")}
        assert len(widths) == 1
    for chart in root.all("svg", role="img"):
        assert next(chart.all("title")).text() and next(chart.all("desc")).text()
    assert "Undefined" not in root.text() and "None" not in root.text()


@pytest.mark.parametrize("kind", REPORTS)
def test_the_page_reaches_for_nothing_and_runs_nothing(kind):
    for element in parsed(render(REPORTS[kind])).all():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "img", "base", "form")
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "style", "action"), (element.tag, name)
            assert name != "href" or value.startswith("#")


@pytest.mark.parametrize(
    ("report", "word", "sentence"),
    [
        (filled(), "kept", "The rows keep the contract: all 4 clauses."),
        (broken(), "broken", "The rows break the contract: 2 of 6 clauses."),
        (empty(), "not judged", "The contract sets no limit: nothing was judged."),
        (filled(clauses=broken_clauses()[:1]), "broken", "The rows break the contract: 1 of 1 clause."),
        (filled(clauses=clauses()[:1]), "kept", "The rows keep the contract: its one clause."),
    ],
)
def test_the_verdict_stands_at_the_top_in_words(report, word, sentence):
    first = next(parsed(render(report)).all("main")).children
    top = next(child for child in first if isinstance(child, Element))
    assert top.attributes["id"] == "verdict"
    assert next(top.all("h2")).text().split() == f"Verdict: {word}".split()
    assert next(top.all("p", class_="sentence")).text() == sentence
    assert lines(report)[2].startswith(sentence.removesuffix("."))


def test_every_clause_says_what_was_found_what_is_allowed_and_how_it_stands():
    report = broken()
    rows = body_rows(section(report, "contract"))
    assert [row[1] for row in rows] == ["broken"] * 2 + ["kept"] * 4 + ["no limit"]
    by_name = {row[0]: row for row in rows}
    for clause in report.clauses:
        row = by_name[clause.what + clause.name]
        assert row[2] == f"{share(clause.count, clause.n)}{clause.count:,} of {clause.n:,}"
        assert row[3] == limit_text(clause)
        assert all(example in row[4] for example in clause.examples[:5])
        assert (f"Remedy: {clause.remedy}" in row[4]) == (clause.ok is False), "a kept clause needs no remedy"
    assert "and 4 more in report.json" in by_name[report.broken[0].what + report.broken[0].name][4]
    shapes = [use.attributes["href"] for use in section(report, "contract").all("use")]
    assert shapes == ["#shape-fail"] * 2 + ["#shape-pass"] * 4


def test_what_is_broken_stands_in_the_verdict_with_its_remedy():
    text = section(broken(), "verdict").text()
    for clause in broken_clauses():
        assert clause.what in text and clause.remedy in text and f"{clause.count:,} of {clause.n:,}" in text


def test_the_account_of_the_rows_adds_up_as_it_is_shown():
    account, splits = list(section(filled(), "rows").all("table"))
    count = {row[0]: int(row[1].replace(",", "")) for row in body_rows(account)}
    dropped = sum(n for name, n in count.items() if name.startswith("dropped: "))
    left_out = count["left out by data.rows, not looked at"]
    assert count["rows read"] == count["kept"] + left_out + dropped == 1500
    not_drawn = next(n for name, n in count.items() if "not drawn" in name)
    assert sum(int(row[1]) for row in body_rows(splits)) + not_drawn == count["kept"]
    chart = next(section(filled(), "rows").all("svg", role="img"))
    assert [t.text() for t in chart.all("text")] == [
        *("read", "1,500", "left out by data.rows", "280", "empty answer", "12", "duplicate", "23", "too long", "5"),
        *("kept", "1,180", "train", "785", "validation", "59", "held out", "236", "not drawn", "100"),
    ]


def test_the_bars_of_the_account_lie_end_to_end():
    chart = next(section(filled(), "rows").all("svg", role="img"))
    bars = [(float(r.attributes["x"]), float(r.attributes["width"])) for r in chart.all("rect")]
    read, *dropped, kept, train, valid, held_out, not_drawn = bars
    for before, after in itertools.pairwise([read, *dropped]):
        edge = before[0] if before is not read else read[0] + read[1]
        assert abs(after[0] + after[1] - edge) < 1.6, "each loss ends where the one before begins"
    assert abs(dropped[-1][0] - (kept[0] + kept[1])) < 1.6
    for before, after in itertools.pairwise([train, valid, held_out, not_drawn]):
        assert abs(before[0] + before[1] - after[0]) < 0.3
    assert abs(not_drawn[0] + not_drawn[1] - kept[0] - kept[1]) < 0.3


def test_lengths_scripts_overlaps_and_personal_data_are_all_there_with_their_n():
    report = filled()
    lengths = [row for row in body_rows(section(report, "lengths")) if row[0].endswith("tokens")]
    assert lengths == [
        [f"{each.max_tokens:,} tokens", f"{each.rows}", "1,185", share(each.rows, each.n)] for each in report.lengths
    ]
    assert body_rows(section(report, "scripts"))[0] == ["Chinese", "700", "59.3\u00a0%", "90,000", "28,000", "3.21"]
    assert body_rows(section(report, "scripts"))[-1][-1] == "–"
    overlaps = body_rows(section(report, "overlaps"))
    assert overlaps[0] == ["within kept rows", "near copies", "31", "1,180", "2.6\u00a0%"]
    assert overlaps[2][:3] == ["held-out rows among training rows", "repeated to the letter", "0"]
    personal = body_rows(section(report, "personal"))
    assert personal[0] == ["e-mail addresses", "3", "4", "an***@***.org, b***@***.com"]
    source = section(report, "source").text()
    for text in (
        "nlu_home_commands",
        "the form of the first 200 rows",
        "utf-8, gb18030",
        "CC-BY-4.0",
        report.tokenizer,
    ):
        assert text in source


def test_whether_personal_data_is_replaced_is_said():
    assert "left in the rows as they are" in section(filled(), "personal").text()
    assert "replaced by their kind" in section(filled(masked=True), "personal").text()
    assert lines(filled(masked=True))[-1].endswith("(masked)")


def test_pairs_stand_side_by_side_and_of_near_copies_the_differences_are_marked():
    articles = list(section(filled(), "overlaps").all("article"))
    assert [[d.text() for d in a.all("dd")] for a in articles] == [
        ["turn on the kitchen light, please", "turn on the kitchen lights now, please"],
        ["请把客厅的窗帘拉上然后把空调调到二十六度\n好的", "好的,把客厅的窗帘拉上"],
    ]
    assert [e.text() for e in articles[0].all("del")] == ["light"]
    assert [e.text() for e in articles[0].all("ins")] == ["lights now"]
    assert not list(articles[1].all("del"))


def test_it_is_said_that_numbers_are_counts_and_of_what():
    text = section(filled(), "verdict").text()
    assert "count over all 1,220 rows" in text and "1,180 of them that were kept" in text and "estimate" in text
    assert all("n = " in t.text() or "all n" in t.text() or "; n is" in t.text() or "cut" in t.text()
               for t in parsed(render(filled())).all("caption"))  # fmt: skip


def hostile(text, size=1) -> DataReport:
    """A report in which every text is `text`, `size` times as many as usual."""
    clause = Clause(name=text, what=text, count=1, n=2, limit=0.1, ok=False, examples=(text,) * 9, remedy=text)
    pairs = ((text, f"{text}!"),) * 9
    return filled(
        **dict.fromkeys(("name", "path", "template", "template_chosen_by", "tokenizer"), text),
        encodings=(text,) * 5 * size,
        licences=((text, text),) * 5 * size,
        clauses=(clause,) * 11,
        scripts=(ScriptCount(script=text[:500], rows=1, bytes=1, tokens=1),),
        personal=(PersonalCount(kind="url", rows=1, findings=1, examples=(text,) * 9),),
        overlaps=tuple(
            Overlap(kind=kind, of="a", among="b", rows=9, n=9, examples=pairs)
            for kind in ("exact", "near", "ngram")
            for _ in range(size)
        ),
    )


def test_markup_in_any_text_stays_text():
    root = parsed(render(hostile(HOSTILE)))
    assert not list(root.all("script"))
    assert next(root.all("h1")).text() == HOSTILE
    for name in ("verdict", "contract", "scripts", "overlaps", "personal", "source"):
        assert HOSTILE[:50] in next(root.all("section", id=name)).text(), name
    assert "49" not in next(root.all("h1")).text()


def test_what_would_command_a_terminal_is_spelled_out():
    for shown in (render(hostile(COMMANDS)), "".join(lines(hostile(COMMANDS)))):
        assert not set(COMMANDS) & set("\x1b\x07\u202e") & set(shown)
        assert r"\x1b[31mred\x07\u202egnp" in shown
    assert visible("👩‍👩‍👧\t打开\n") == "👩‍👩‍👧\t打开\n"


def test_the_page_stays_under_a_megabyte_whatever_the_rows_are():
    html = render(hostile("<&\x00你" * 20_000, size=20))
    assert len(html.encode()) < 1_000_000
    parsed(html)


@given(st.text(max_size=80), st.integers(2, 40))
def test_one_line_is_one_line_and_no_longer_than_asked(text, characters):
    shown = in_one_line(text, characters)
    assert len(shown) <= characters and len(shown.splitlines()) <= 1
    assert shown.endswith("…") or text.strip() == "" or shown


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_share_is_never_written_as_none_or_all_when_it_is_not(count, n):
    count = min(count, n)
    value = float(share(count, n).removesuffix("\u00a0%"))
    assert (value == 0) == (count == 0) and (value == 100) == (count == n)
    assert abs(value - count / n * 100) <= 0.050001
    assert share(0, 0) == "–"


@pytest.mark.parametrize(
    ("limit", "at_least", "text"),
    [
        (0.0, False, "none"),
        (1.0, True, "all"),
        (0.05, False, "at most 5\u00a0%"),
        (0.01, True, "at least 1\u00a0%"),
        (0.003, False, "at most 0.3\u00a0%"),
        (1.0, False, "any"),
        (None, False, "no limit"),
    ],
)
def test_a_limit_in_words(limit, at_least, text):
    assert limit_text(Clause(name="x", what="x", count=0, n=1, limit=limit, at_least=at_least, ok=None)) == text


@given(st.lists(st.integers(0, 50), max_size=30))
def test_bins_lose_no_value_and_begin_and_end_with_one(counts):
    found = bins(Histogram(edges=tuple(range(0, 10 * len(counts), 10)), counts=tuple(counts)))
    assert sum(each.rows for each in found) == sum(counts)
    assert not found or (found[0].rows and found[-1].rows)
    if counts and counts[-1]:
        assert range_text(found[-1]).endswith("and more")


@pytest.mark.parametrize("count", [1, 5, 12, 13, 40])
def test_a_histogram_draws_every_bar_inside_and_its_labels_apart(count):
    edges = tuple(2**7 * index for index in range(count))
    chart = section(filled(tokens=Histogram(edges=edges, counts=(3,) * count)), "lengths")
    drawn = next(chart.all("svg", role="img"))
    assert len(list(drawn.all("rect"))) == count
    width = float(drawn.attributes["viewbox"].split()[2])
    labels = [t for t in drawn.all("text", class_="tick") if float(t.attributes["y"]) > 180]
    assert labels
    for before, after in itertools.pairwise(sorted(float(t.attributes["x"]) for t in labels)):
        assert after - before >= 30
    for r in drawn.all("rect"):
        assert 0 <= float(r.attributes["x"]) <= width - float(r.attributes["width"])


def test_the_lines_are_about_a_dozen_short_and_plain():
    many = filled(clauses=broken_clauses() * 4)
    for report in (*REPORTS.values(), many, hostile("打开" * 3000, size=20)):
        found = lines(report)
        assert len(found) <= 12
        assert all(line == line.rstrip() and "\n" not in line and len(line) <= 420 for line in found)
    assert "  and 5 more broken clauses: see report.html" in lines(many)


def test_the_lines_say_each_broken_clause_with_example_and_remedy():
    text = "\n".join(lines(broken()))
    for clause in broken_clauses():
        assert f"{clause.what}: " in text and clause.examples[0] in text and clause.remedy in text
    assert "1,500 read, 1,180 kept (dropped: empty answer 12, duplicate 23, too long 5" in text
    assert "template nlu_home_commands (chosen by the form of the first 200 rows)" in text
    assert "near copies 2.6 % (31 of 1,180)" in text
    assert "phone numbers in 4 rows" in text and "id numbers" not in text


@pytest.mark.parametrize("kind", REPORTS)
def test_both_files_are_written_whole_and_the_json_reads_back(kind, tmp_path):
    write_report(REPORTS[kind], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert DataReport.model_validate(json.loads(text)) == REPORTS[kind]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(REPORTS[kind])


def test_a_length_nobody_was_encoded_for_has_no_share():
    rows = body_rows(section(filled(lengths=(LengthLimit(max_tokens=512, rows=0, n=0),)), "lengths"))
    assert rows[-1] == ["512 tokens", "0", "0", "–"]
