"""The whole path of a model that reasons: all weights trained on thoughts, rounded, exported, held to a budget."""

import json

import pytest
from safetensors.torch import load_file

from export.thought import answer_behind_thought
from finetune import cli

RECIPE = """\
name: reasoning
seed: 3
data: {path: rows.jsonl, template: question_answer, held_out_share: 0.1, contract: {overlap_near_share: 1.0}}
train: {method: full, epochs: 3, batch_size: 16, learning_rate: 1e-3}
export: {gguf: {types: [q8_0]}}
check:
  rows: 24
  max_new_tokens: 12
  thinking_budget: {max_thinking_tokens: 32, waits: 1, wait: " and"}
  measures: {number: {}, thinking: {}, exact_match: null}
"""
SUBJECTS = ("merged", "base", "trained", "gguf/f16", "gguf/q8_0")
pytestmark = pytest.mark.slow


def _row(first, second):
    thought = f"<think>{first} and {second} make {first + second}.</think>"
    return {"question": f"What is {first} + {second}?", "answer": f"{thought}It is {first + second}."}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning")
    rows = [_row(first, second) for first in range(30) for second in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    status = cli.main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
    report = json.loads((folder / "run/report.json").read_text(encoding="utf-8"))
    assert status == cli.EXIT_STATUS_OF[report["verdict"]]
    return folder / "run"


@pytest.fixture(scope="module")
def report(run_folder):
    return json.loads((run_folder / "report.json").read_text(encoding="utf-8"))


def _value(report, check, subject):
    (found,) = (m for m in report["measurements"] if (m["check"], m["subject"]) == (check, subject))
    return found["value"]


def test_the_trained_model_is_a_subject_and_its_rounding_is_judged(report, run_folder):
    assert [subject["name"] for subject in report["subjects"]] == list(SUBJECTS)
    assert not (run_folder / "adapter").exists()
    by_name = {subject["name"]: subject for subject in report["subjects"]}
    assert by_name["trained"]["bits_per_weight"] == 32
    assert by_name["merged"]["bits_per_weight"] == 16
    steps = {(c["before"], c["after"]) for c in report["comparisons"]}
    assert steps == {("base", "merged"), ("trained", "merged"), ("merged", "gguf/f16"), ("merged", "gguf/q8_0")}
    (rounding,) = (c for c in report["comparisons"] if (c["before"], c["check"]) == ("trained", "kl_mean"))
    assert rounding["verdict"] == "pass"
    assert 0 < rounding["delta"] < rounding["limit"]
    assert _value(report, "perplexity", "merged") < _value(report, "perplexity", "base") / 2


def test_what_was_trained_is_kept_in_the_files(report, run_folder):
    trained, merged = (load_file(run_folder / name / "model.safetensors") for name in ("trained", "merged"))
    assert all((merged[name] == trained[name].bfloat16()).all() for name in trained)
    shares = {retained["subject"]: retained["share"] for retained in report["retained"]}
    assert shares["gguf/f16"] == pytest.approx(1, abs=1e-3)
    assert 0.9 < shares["gguf/q8_0"] < 1.1
    assert [finding for finding in report["findings"] if not finding["ok"]] == []


def test_thoughts_keep_to_the_budget_and_the_answers_stand_behind_them(report, run_folder):
    for name in SUBJECTS:
        place = run_folder / "check" / name.replace("/", "-") / "observation.json"
        items = json.loads(place.read_text(encoding="utf-8"))["items"]
        assert all(item["thought"]["tokens"] <= 32 for item in items)
        assert all(item["thought"]["waits"] <= 1 for item in items)
        ended = [item["thought"]["ended"] for item in items]
        for rate in ("closed", "cut", "stopped", "none"):
            assert _value(report, f"thinking_{rate}", name) == pytest.approx(ended.count(rate) / len(ended))
        if name == "base":  # it never learned to think
            assert set(ended) == {"none"}
            continue
        assert "none" not in ended
        assert all(item["generated"].startswith("<think>") for item in items)
        assert all(item["generated"].count("</think>") >= 1 for item in items)
        right = [answer_behind_thought(item["generated"]).startswith("It is ") for item in items]
        assert sum(right) > 0.7 * len(right), [item["generated"] for item in items[:5]]
    # a thought of about sixteen tokens ends early once, and is sent on
    assert _value(report, "thinking_waits", "merged") > 0.5


def test_the_card_and_the_page_say_full_fine_tuning(run_folder):
    for card in (run_folder / "merged/README.md", run_folder / "export/gguf-q8_0/README.md"):
        assert "full fine-tuning" in card.read_text(encoding="utf-8")
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "full fine-tuning" in page and "adapter" not in page
