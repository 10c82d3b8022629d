"""Sets measured beside the held-out rows, and scores by category: what is told of them, and what they may decide."""

import json

import pytest

from export import gate
from export.categories import by_category
from export.check_names import of_companion, read_name
from export.checks import Check, Item, Items, measurement, share
from export.companions import CompanionSet, measure_companions
from export.compare import Gate, compare_steps, worst_by_subject
from export.engines import Subject
from export.measure import Candidate, Measured
from export.page import render
from export.page._tables import subject_table
from export.report import held_out_rows, write
from export.subjects import Described
from export.wording.table import category_lines, table
from export.wording.values import check_name, counted
from tests.export.page_reports import CHECKS, items_of, observation, record, run_report

EXPECTED = [f"answer {index}" for index in range(40)]
FILES = {"gguf/q8_0": (1e-4, 0.0), "gguf/q4_k_m": (0.01, 0.9)}


def _compare(limits):
    return lambda measured: compare_steps(measured, limits, four_bit_base=False, seed=0)


@pytest.fixture
def measured_beside(monkeypatch, tmp_path):
    """What a set of forty rows gives on which one file loses nine answers of ten, under a gate or under none."""
    places = []

    def measure(candidates, items, checks, folder, **_):
        places.append(folder.name)
        seen = {"merged": observation("merged", EXPECTED, strays=None, changed=0.0)}
        seen |= {name: observation(name, EXPECTED, strays=kl, changed=changed) for name, (kl, changed) in FILES.items()}
        return Measured(
            items=items,
            measurements={name: tuple(m for c in checks for m in c.measure(items, s)) for name, s in seen.items()},
            observations=seen,
        )

    def look(limits, name="turn 1", *, checks=CHECKS, broken=None):
        monkeypatch.setattr(
            "export.companions.measure",
            lambda *given, **named: measure(*given, **named).model_copy(update={"broken": broken or {}}),
        )
        companion = CompanionSet(name, items_of(EXPECTED), checks, _compare(limits))
        found = measure_companions((companion,), (), tmp_path, tokenizer=tmp_path, threads=1, say=lambda _: None)
        return found, places

    return look


def test_a_name_says_on_which_rows_a_check_was_made():
    assert of_companion("turn 1", "exact_match") == "turn 1/exact_match"
    assert read_name("turn 1/exact_match") == ("turn 1", "exact_match")
    assert read_name("exact_match") == ("", "exact_match")
    assert check_name("general/number_match") == "general: right number"
    assert counted("general/perplexity", 7) == "7 tokens"


def test_of_a_set_its_scores_and_its_perplexity_are_told_and_nothing_else(measured_beside):
    found, places = measured_beside(Gate())
    assert {m.check for m in found.measurements} == {"turn 1/exact_match", "turn 1/perplexity"}
    assert {c.check for c in found.comparisons} == {"turn 1/exact_match", "turn 1/perplexity"}
    assert places == ["beside-turn-1"]


def test_a_share_that_is_never_judged_is_not_told(measured_beside):
    found, _ = measured_beside(Gate(), checks=(*CHECKS, _Explains()))
    assert {m.check for m in found.measurements} == {"turn 1/exact_match", "turn 1/perplexity"}


class _Explains(Check):
    """A share of which no limit is asked."""

    def measure(self, work, seen):
        return (share("explains", seen, [0.5] * len(work.items), judged=False),)


def test_under_a_gate_a_set_decides_and_under_none_it_does_not(measured_beside):
    judged, _ = measured_beside(Gate())
    told, _ = measured_beside(None, "general")
    assert worst_by_subject(judged.comparisons)["gguf/q4_k_m"] == "fail"
    assert worst_by_subject(told.comparisons) == {}
    lost = {c.after: c.delta for c in told.comparisons if c.check == "general/exact_match"}
    assert lost["gguf/q4_k_m"] < -0.5
    assert lost["gguf/q8_0"] == 0


def _report(beside):
    report, details = run_report(EXPECTED, {name: (kl, 0.0) for name, (kl, _) in FILES.items()})
    measurements = (*report.measurements, *beside.measurements)
    return report.model_copy(
        update={"measurements": measurements, "comparisons": (*report.comparisons, *beside.comparisons)}
    ), details


def test_both_scores_stand_in_one_table_and_the_rows_are_still_those_of_the_domain(measured_beside):
    report, details = _report(measured_beside(None, "general")[0])
    headings, rows = table(report)
    assert headings[-3:-1] == ("general:\nexact match %", "general:\nperplexity")
    by_name = {row[0]: row for row in rows}
    assert by_name["gguf/q8_0"][-3].startswith("100.0")
    assert float(by_name["gguf/q4_k_m"][-3].partition("±")[0]) < 50
    assert by_name["base"][-3] == "-"
    more = report.model_copy(update={"measurements": (*report.measurements, _many("general/exact_match"))})
    assert held_out_rows(more) == 40
    columns = [column.check for column in subject_table(report).columns]
    assert columns[:4] == ["exact_match", "general/exact_match", "general/perplexity", "perplexity"]
    assert "general: exact match" in render(report, details)


def _many(check):
    return measurement(check, "merged", [[1.0]] * 500, unit="share", higher_is_better=True)


def test_a_reason_names_the_set_that_decided(measured_beside):
    report, details = _report(measured_beside(Gate())[0])
    subjects = tuple(
        s.model_copy(update={"verdict": "fail"}) if s.name == "gguf/q4_k_m" else s for s in report.subjects
    )
    page = render(report.model_copy(update={"subjects": subjects, "verdict": "fail"}), details)
    assert "gguf/q4_k_m must not ship. More lost than allowed: turn 1: " in page


# Six rows of history, of which 2 are right, and four of physics, of which all are; by hand with z = 1.6449 (Wilson
# 1927): 2 of 6: centre (1/3 + z²/12) / (1 + z²/6) = 0.3851, half 0.2679; 4 of 4: lower end 4 / (4 + z²) = 0.5965.
RIGHT = [1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
SUBJECT_OF_ROW = ["history"] * 6 + ["physics"] * 4


def _by_subject():
    items = Items(
        items=tuple(Item(ids=(1, 2), scored=(1,), prompt=(1,), answer="A", category=c) for c in SUBJECT_OF_ROW),
        vocabulary_size=9,
        max_new_tokens=4,
    )
    score = measurement("label_accuracy", "merged", [[r] for r in RIGHT], unit="share", higher_is_better=True)
    free = measurement("rouge_l", "merged", [[0.5]] * 10, unit="share", higher_is_better=True)
    explains = score.model_copy(update={"check": "label_given", "judged": False})
    stops = score.model_copy(update={"check": "stops"})
    return Measured(items=items, measurements={"merged": (score, free, explains, stops)}, observations={})


def test_scores_by_category_with_their_intervals():
    history, physics = by_category(_by_subject())
    assert (history.category, history.value, history.n) == ("history", pytest.approx(1 / 3), 6)
    assert (history.low, history.high) == (pytest.approx(0.1173, abs=1e-3), pytest.approx(0.6530, abs=1e-3))
    assert (physics.value, physics.low, physics.high) == (1.0, pytest.approx(0.5965, abs=1e-3), 1.0)
    assert {score.check for score in (history, physics)} == {"label_accuracy"}


def test_rows_of_one_category_are_not_told_apart():
    measured = _by_subject()
    items = tuple(item.model_copy(update={"category": "history"}) for item in measured.items.items)
    alike = measured.model_copy(update={"items": measured.items.model_copy(update={"items": items})})
    assert by_category(alike) == ()


def test_categories_reach_the_terminal_the_page_and_the_record(tmp_path):
    report, details = run_report(EXPECTED, {"gguf/q8_0": (1e-4, 0.0)})
    scores = by_category(_by_subject())
    report = report.model_copy(update={"by_category": scores})
    heading, history, physics = category_lines(report)
    assert heading.startswith("right label by category")
    assert history == "  history, 6 rows: merged 33.3 (12–65)"
    assert physics == "  physics, 4 rows: merged 100.0 (60–100)"
    page = render(report, details)
    assert "By category: right label" in page
    assert ">33.3</data>" in page
    assert [s["category"] for s in json.loads(write(report, tmp_path).read_text())["by_category"]] == [
        "history",
        "physics",
    ]


def test_the_gate_joins_the_verdicts_of_the_sets(monkeypatch, measured_beside, tmp_path):
    """A file that keeps the last answer and loses the first one fails."""
    judged = _judged(measured_beside(Gate())[0], monkeypatch, tmp_path)
    assert judged.verdicts["gguf/q4_k_m"] == "fail"
    assert {m.check for m in judged.measurements} >= {"exact_match", "turn 1/exact_match"}


def test_a_file_that_cannot_be_run_on_a_set_beside_fails(monkeypatch, measured_beside, tmp_path):
    beside, _ = measured_beside(None, "general", broken={"gguf/q8_0": "it ended with a signal"})
    assert beside.broken == {"gguf/q8_0": "it ended with a signal"}
    judged = _judged(beside, monkeypatch, tmp_path)
    assert judged.verdicts["gguf/q8_0"] == "fail"
    assert any("it ended with a signal" in finding.found for finding in judged.findings)


def _judged(beside, monkeypatch, tmp_path):
    """What the gate says of files that are good on the held-out rows, and so on the sets beside them."""
    seen = {name: observation(name, EXPECTED, strays=kl, changed=0.0) for name, (kl, _) in FILES.items()}
    seen |= {"merged": observation("merged", EXPECTED, strays=None, changed=0.0)}
    items = items_of(EXPECTED)
    held_out = Measured(
        items=items,
        measurements={
            name: tuple(m for c in CHECKS for m in c.measure(items, seen[name])) for name in ("merged", *FILES)
        },
        observations=seen,
    )
    monkeypatch.setattr(gate, "measure", lambda *_, **__: held_out)
    monkeypatch.setattr(gate, "measure_companions", lambda *_, **__: beside)
    monkeypatch.setattr(gate, "_identity", lambda *_, **__: ())
    monkeypatch.setattr(gate, "_check_reference", lambda *_: None)
    return gate.judge(
        [_described(name) for name in ("merged", *FILES)],
        items,
        CHECKS,
        tmp_path,
        tokenizer=tmp_path,
        compare=_compare(Gate()),
        thinking=False,
        threads=1,
        say=lambda _: None,
    )


def _described(name):
    subject = Subject(name=name, engine="hf", path=".")
    candidate = Candidate(subject=subject, sha256="0", size_bytes=1, ships=name != "merged")
    return Described(candidate, record(name, observation(name, EXPECTED, strays=None, changed=0.0), None))
