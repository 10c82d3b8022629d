"""report.json is JSON whatever was measured, and the terminal says what the numbers stand on."""

import json
import math

import pytest

from export.checks import measurement
from export.compare import Gate, compare_steps
from export.report import Report, SubjectRecord, held_out_rows, scored_tokens, table, write
from finetune.terminal import show_report


def _tokens(check, subject, rows, statistic="mean"):
    return measurement(check, subject, rows, unit="nats", higher_is_better=False, statistic=statistic)


def _report(measured, *, recipe_name="r"):
    comparisons = compare_steps(measured, Gate(), four_bit_base=False, seed=0)
    records = [
        SubjectRecord(
            name=name, path=name, sha256="0", size_bytes=1, bits_per_weight=16, engine="hf", tensor_types={"F32": 1}
        )
        for name in measured
    ]
    return Report(
        recipe={"name": recipe_name},
        environment={},
        stages=(),
        subjects=tuple(records),
        measurements=tuple(m for found in measured.values() for m in found),
        comparisons=comparisons,
        verdict="fail",
    )


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_a_number_that_is_not_finite_is_written_as_null_with_a_note(tmp_path):
    report = _report({"merged": [], "gguf/q4_k_m": [_tokens("kl_mean", "gguf/q4_k_m", [[0.1], [math.nan]])]})
    text = write(report, tmp_path).read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=_refuse)
    (measured,), (compared,) = content["measurements"], content["comparisons"]
    assert (measured["value"], compared["delta"], compared["interval"]) == (None, None, None)
    assert "not finite" in measured["note"]
    assert "not finite" in compared["note"]
    assert compared["verdict"] == "fail"


def test_finite_numbers_are_written_as_they_are(tmp_path):
    report = _report({"merged": [], "x": [_tokens("kl_mean", "x", [[0.125], [0.375]])]})
    content = json.loads(write(report, tmp_path).read_text(encoding="utf-8"))
    assert content["measurements"][0]["value"] == 0.25
    assert "sample" not in content["measurements"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_table_shows_what_was_not_measured_and_what_is_not_finite():
    speeds = measurement("tokens_per_second", "x", [], unit="tokens/s", higher_is_better=True)
    _, rows = table(_report({"merged": [], "x": [_tokens("kl_mean", "x", [[0.1], [math.inf]]), speeds]}))
    assert rows == [("merged", "-", "-", "-"), ("x", "not finite", "-", "-")]


@pytest.mark.parametrize(
    ("measured", "rows", "tokens"),
    [
        ({"merged": [], "x": [_tokens("kl_mean", "x", [[0.1, 0.2], [0.3], [0.4]])]}, 3, 4),
        ({"merged": [_tokens("perplexity", "merged", [[1.0] * 5, [2.0] * 2], "exp_mean")]}, 2, 7),
        ({"merged": [_tokens("stops", "merged", [[1.0]] * 6)]}, 6, None),
        ({"merged": [_tokens("tokens_per_second", "merged", [[1.0], [2.0]])]}, None, None),
    ],
)
def test_rows_and_tokens_are_counted_from_whatever_was_measured(measured, rows, tokens, tmp_path, capsys):
    report = _report(measured)
    assert (held_out_rows(report), scored_tokens(report)) == (rows, tokens)
    show_report(report, tmp_path)
    printed = capsys.readouterr().out
    assert (f"held-out rows: {rows}" in printed) == (rows is not None)
    assert (f"scored tokens: {tokens}" in printed) == (tokens is not None)
    assert "±: standard error over rows" in printed
    assert ": 0" not in printed
