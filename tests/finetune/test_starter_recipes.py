"""Every starter recipe from rows to a judged file, shortened: fine-tuning teaches its task, and the file keeps it."""

import json
from pathlib import Path

import pytest

from finetune import cli, shipped
from finetune.recipe import load

RECIPES = sorted(shipped.folder("recipes").glob("*_starter.yaml"))
ROWS = 60
SHORT = (f"check.rows={ROWS}", "train.max_steps=150")
# a check's section in the recipe, and the score it is known by
SCORE_OF = {"label": "label_accuracy", "number": "number_match", "fields": "fields_row_f1", "overlap": "rouge_l"}
SCORE_OF |= {"span": "span_f1", "exact_match": "exact_match"}
NORMAL_95 = 1.96
pytestmark = pytest.mark.slow


def _measured(report, check, subject):
    (found,) = (m for m in report["measurements"] if (m["check"], m["subject"]) == (check, subject))
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_starter_recipe_teaches_its_task_and_the_file_keeps_it(path: Path, tmp_path: Path) -> None:
    overrides = [word for override in SHORT for word in ("--set", override)]
    status = cli.main(["run", str(path), "--out", str(tmp_path), *overrides])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert status == cli.EXIT_STATUS_OF[report["verdict"]]

    asked = report["recipe"]["check"]["measures"]
    scores = [score for section, score in SCORE_OF.items() if asked[section] is not None]
    own = [score for score in scores if score != "exact_match"]
    assert own, "a starter recipe names a check for rows of its kind"
    for score in own:
        base, merged = (_measured(report, score, subject) for subject in ("base", "merged"))
        assert merged["n"] == base["n"] == ROWS
        apart = NORMAL_95 * (base["stderr"] + merged["stderr"])
        assert merged["value"] - base["value"] > max(apart, 0.1), (score, base["value"], merged["value"])
    if load(path).check.safety_items is not None:
        assert report["safety"]["counts"]

    judged = {subject["name"]: subject["verdict"] for subject in report["subjects"]}
    assert judged["gguf/q8_0"] in ("pass", "cannot tell"), _failed(report)
    open_ones = [c for c in report["comparisons"] if c["after"] == "gguf/q8_0" and c["verdict"] == "cannot tell"]
    assert bool(open_ones) == (judged["gguf/q8_0"] == "cannot tell")
    assert all(c["rows_needed"] is not None or c["note"] for c in open_ones), "an open verdict says what it waits for"


def _failed(report):
    compared = [(c["check"], c["delta"]) for c in report["comparisons"] if c["verdict"] == "fail"]
    return compared + [finding for finding in report["findings"] if not finding["ok"]]
