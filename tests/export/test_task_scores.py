"""A recipe's own task score is told wherever exact match is: in the terminal, on the page and in the cards."""

import re

import numpy as np
import pytest

from export.card import Background, card
from export.checks.fields import Fields
from export.checks.label import Label
from export.checks.number import LastNumber
from export.checks.overlap import Overlap
from export.checks.span import Span
from export.page import render
from export.page._figures import _interval_of_score
from export.sampling import wilson_interval
from export.wording.table import table
from export.wording.values import main_score
from tests.export.page_reports import CHECKS, run_report

WITHOUT_MATCH = tuple(check for check in CHECKS if type(check).__name__ != "ExactMatch")
LABELS = tuple("ABCD")
EXPECTED = [LABELS[n % 4] for n in range(40)]
TASKS = {
    "label": (Label(), EXPECTED, "right label", "right\nlabel %"),
    "number": (LastNumber(), [f"#### {n}" for n in range(40)], "right number", "right\nnumber %"),
    "fields": (Fields(), [f'{{"n":{n}}}' for n in range(40)], "all fields right", "all fields\nright %"),
    "span": (Span(), [f"room {n}" for n in range(40)], "right span", "right\nspan %"),
    "overlap": (Overlap(), [f"It is room {n}." for n in range(40)], "ROUGE-L", "\nROUGE-L %"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_score_is_told_with_its_rows_and_error(task):
    check, expected, name, heading = TASKS[task]
    report, details = run_report(expected, checks=(*WITHOUT_MATCH, check), labels=LABELS)
    headings, rows = table(report)
    cells = [row[headings.index(heading)] for row in rows]
    assert all(re.fullmatch(r"[\d.]+[±−+][\d.]+", cell) for cell in cells), cells
    assert "exact\nmatch %" not in headings
    text = render(report, details)
    score = next(m for m in report.measurements if m.subject == "merged" and m.check == main_score({m.check}))
    assert f"{name[:1].upper()}{name[1:]} with its 90 % " in text  # the chart of quality against size
    assert ("Wilson" in text.partition("with its 90 % ")[2][:10]) == (task != "overlap")
    assert score.n == 40
    q4 = next(subject for subject in report.subjects if subject.name == "gguf/q4_k_m")
    (line,) = [line for line in card(report, q4, Background()).splitlines() if line.startswith(f"| {name}, %")]
    assert re.search("[±−+]", line)
    assert "40 rows" in line


@pytest.mark.parametrize("task", ["number", "overlap"])
def test_a_charts_interval_is_wilsons_for_right_and_wrong_and_else_as_wide_as_the_error(task):
    check, expected, _, _ = TASKS[task]
    report, _ = run_report(expected, checks=(*WITHOUT_MATCH, check))
    found = next(m for m in report.measurements if m.subject == "gguf/q4_k_m" and m.check == main_score({m.check}))
    low, high = _interval_of_score(found)
    if task == "number":
        assert (low, high) == wilson_interval(found.value, 40)
    else:
        reach = 1.6448536 * np.std([score for (score,) in found.sample], ddof=1) / 40**0.5
        assert (low, high) == pytest.approx((found.value - reach, min(1, found.value + reach)))


def test_a_ratio_of_lengths_points_to_no_better_side():
    report, details = run_report(TASKS["overlap"][1], checks=(*WITHOUT_MATCH, Overlap()))
    text = re.sub(r"<[^>]+>|\s+", " ", render(report, details))
    assert re.search(r"length beside the reference\s+×\s+(?!↑|↓)", text)
    assert re.search(r"chrF\s+% ↑", text)


def test_worst_rows_say_how_much_a_row_scored():
    # a subject that answers part of a span: neither right nor wrong
    report, details = run_report(TASKS["overlap"][1], checks=(*WITHOUT_MATCH, Overlap()))
    assert "scored " in render(report, details)


def test_worst_rows_are_not_counted_by_a_score_that_only_some_rows_have():
    expected = ["plain text", *(f'{{"n":{n}}}' for n in range(39))]
    report, details = run_report(expected, checks=(*WITHOUT_MATCH, Fields()))
    assert "counted " not in render(report, details)
    every_row, details = run_report(expected[1:], checks=(*WITHOUT_MATCH, Fields()))
    assert "counted " in render(every_row, details)


def test_the_score_that_stands_for_all_is_the_recipes_own():
    assert main_score({"exact_match", "label_accuracy", "label_likelihood"}) == "label_accuracy"
    assert main_score({"exact_match", "perplexity"}) == "exact_match"
    assert main_score({"perplexity"}) is None
