"""report.json is JSON whatever was measured, and the terminal says what the numbers stand on."""

import json
import math

import pytest

from export.checks import measurement
from export.compare import Gate, compare_steps
from export.identity import Finding
from export.page._decision import decide
from export.report import Report, SubjectRecord, held_out_rows, scored_tokens, write
from export.wording.sentences import finding_sentence
from export.wording.table import table
from finetune.terminal import show_report


def _tokens(check, subject, rows, statistic="mean"):
    return measurement(check, subject, rows, unit="nats", higher_is_better=False, statistic=statistic)


def _safety_items(subject, count):
    labels = tuple(f"item {number}" for number in range(count))
    return _tokens("safety", subject, [[1.0]] * count).model_copy(update={"labels": labels})


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
        ({"merged": [_tokens("stops", "merged", [[1.0]] * 2), _safety_items("merged", 5)]}, 2, None),
        ({"merged": [_safety_items("merged", 5)]}, None, None),
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


def _share(subject, values):
    return measurement("stops", subject, [[float(v)] for v in values], unit="share", higher_is_better=True)


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([1] * 3, "100.0−47.4"),  # 3 / (3 + 1.645²) of the rows, by the formula of Wilson (1927)
        ([0] * 40, "0.0+6.3"),
        ([1] * 400, "100.0−0.7"),
        ([1] * 10_000, "100.00−0.03"),
        ([1], "100.0−73.0"),
        ([1] * 9_999 + [0], "99.99±0.01"),
        ([1] * 3 + [0], "75.0±25.0"),
    ],
)
def test_a_share_never_claims_to_be_without_error(values, cell, tmp_path, capsys):
    report = _report({"merged": [_share("merged", values)]})
    assert table(report)[1] == [("merged", cell, "-")]
    show_report(report, tmp_path)
    assert ("− or + behind a share" in capsys.readouterr().out) == ("±" not in cell)


def _printed(before, after, capsys, tmp_path, check="stops"):
    shares = {
        name: [measurement(check, name, [[float(v)] for v in values], unit="share", higher_is_better=True)]
        for name, values in {"merged": before, "gguf/q8_0": after}.items()
    }
    show_report(_report(shares), tmp_path)
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("gguf/q8_0 against"))


def test_a_lost_row_is_told_in_one_plain_sentence(tmp_path, capsys):
    line = _printed([1] * 40, [1] * 39 + [0], capsys, tmp_path)
    assert line == (
        "gguf/q8_0 against merged: stops: cannot tell: 1 of 40 rows lost (row 40), 0 gained; none may be lost, but "
        "chance may explain it: p 0.5, where a fail asks for at most 0.01; look at the rows. About 400 held-out rows "
        "would settle it."
    )


def test_a_verdicts_line_shows_the_bound_that_decided_and_what_was_counted(tmp_path, capsys):
    line = _printed([1] * 40, [1] * 40, capsys, tmp_path, "exact_match")
    assert "exact match: cannot tell; 0.00 points; 90 % interval −6.34 to +6.34; " in line
    assert "allowed drop ≤ 0.7, bound ≤ 2 points; 40 rows, 0 lost and 0 gained" in line


def test_a_small_divergence_is_never_printed_as_nothing(tmp_path, capsys):
    values = [[2e-5, 3e-5]] * 5
    show_report(_report({"merged": [], "gguf/q8_0": [_tokens("kl_mean", "gguf/q8_0", values)]}), tmp_path)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("gguf/q8_0 against"))
    assert "2.5×10⁻⁵ nats" in line
    assert "; 10 tokens" in line
    assert "0.0000" not in line


def test_a_broken_file_is_told_by_its_own_message_alone():
    found = Finding(what="file", subject="x", ok=False, found="x.gguf is cut short. Copy it again.", expected="whole")
    assert finding_sentence(found) == "x: x.gguf is cut short. Copy it again."


def test_checks_of_which_the_same_is_to_be_said_stand_in_one_line(tmp_path, capsys):
    def scores(subject, values):
        checks = ("fields_json", "fields_schema")
        return [measurement(c, subject, [[v] for v in values], unit="share", higher_is_better=True) for c in checks]

    measured = {"merged": scores("merged", [1.0] * 30), "gguf/q8_0": scores("gguf/q8_0", [1.0] * 30)}
    comparisons = compare_steps(measured, Gate(), four_bit_base=False, seed=0)
    report = _report(measured).model_copy(update={"comparisons": comparisons, "verdict": "cannot tell"})
    show_report(report, tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("gguf/q8_0 against merged") == 1
    assert "gguf/q8_0 against merged: JSON, by the schema: cannot tell; 0.00 points" in printed


def _trained(base, merged, check="exact_match", unit="share"):
    """A run's report: the base and the fine-tuned model on the same rows."""
    scored = [("merged", merged), ("base", base)]
    statistic = "mean" if unit == "share" else "exp_mean"
    measured = {
        name: [
            measurement(check, name, values, unit=unit, higher_is_better=unit == "share", statistic=statistic),
            measurement("stops", name, [[1.0]] * len(values), unit="share", higher_is_better=True),
        ]
        for name, values in scored
    }
    comparisons = compare_steps(measured, Gate(), four_bit_base=False, seed=0)
    trained = {"name": "tiny", "train": {"method": "sft", "learning_rate": 1e-4}}
    return _report(measured).model_copy(update={"comparisons": comparisons, "recipe": trained})


_RIGHT, _WRONG = [[1.0]], [[0.0]]
_SURE, _UNSURE = [[0.1, 0.2]], [[1.1, 1.2]]


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (_trained(_WRONG * 40, _RIGHT * 30 + _WRONG * 10), None),
        (_trained(_WRONG * 40, _RIGHT + _WRONG * 39), "exact match +2.50 points; 90 % interval "),
        (_trained(_RIGHT * 40, _WRONG * 40), "exact match −100.00 points"),
        (_trained(_UNSURE * 40, _SURE * 40, "perplexity", "perplexity"), None),
        (_trained(_SURE * 40, _UNSURE * 40, "perplexity", "perplexity"), "perplexity ×"),
        # a comparison of two folders, one of which is called base, is no training
        (_trained(_WRONG * 40, _WRONG * 40).model_copy(update={"recipe": {"name": "two folders"}}), None),
    ],
)
def test_a_training_that_is_not_seen_to_help_is_told(report, said, tmp_path, capsys):
    show_report(report, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fine-tuning: ")]
    page = decide(report).training
    if said is None:
        assert (lines, page) == ([], None)
    else:
        assert "merged is not seen to do better than the base" in lines[0]
        assert said in lines[0]
        assert "stops" not in lines[0]
        assert "learning_rate" in page
