"""The domain recipes on real rows of their form: valid without a hub, and their rows keep the contract.

The rows lie in ../shared/data, beside the repository; without them each test skips and says so.
"""

import json
import os
from pathlib import Path

import pytest

from finetune import cli, shipped
from finetune.pipeline import Run
from finetune.preflight import inspect
from finetune.recipe import find, load
from tests.finetune.data.test_formats import shared

REAL_QWEN = Path(os.environ.get("FIELDTUNE_REAL_QWEN", "~/.cache/real-qwen/Qwen2.5-Coder-0.5B-Instruct")).expanduser()
# Each recipe that a user brings rows for, and the real rows that it is tried on; None: made by the test.
REAL_ROWS = {
    "cleaning_robot": "robot/nlu_home_commands",
    "cleaning_robot_dialogue": None,
    "document_qa": "docqa/xquad_en_zh",
    "document_sections": None,
    "education": "education/gaokao_mcq_zh",
    "education_advice": None,
    "education_marking": None,
    "education_math": "education/gsm8k",
    "medicine": "medicine/cmtmedqa_zh_multiturn",
    "medicine_choice": "medicine/pubmedqa_labeled",
    "mental_health": "mental_health/emollm_zh_multiturn",
    "mental_health_scale": None,
    "question_answer": "medicine/medquad",
    "reasoning": None,
    "review_tagging": "reviews/asap_zh_aspects",
}
# The other form of rows that a recipe's opening names.
OTHER_ROWS = {
    "medicine": ("medical_qa", "medicine/medquad"),
    "mental_health": ("counselling", "mental_health/counsel_chat"),
}


# No such set is free: a grammar's rows have the form.
GENERATED_ROWS = {
    "cleaning_robot_dialogue": "robot_dialogue",
    "education_advice": "mental_health",
    "mental_health_scale": "mental_health_scale",
}


def _traces():
    """GSM8K's steps as thoughts."""
    for row in _lines("education/gsm8k"):
        steps, _, number = row["answer"].partition("\n#### ")
        yield {"question": row["question"], "reasoning": steps, "answer": number}


def _marked():
    """GSM8K's graded solutions, with the reason that the grades stand on."""
    for row in _lines("education/gsm8k_graded_solutions"):
        for model in ("6b_finetuning", "175b_verification"):
            graded = row[model]
            reason = "the result is right" if graded["is_correct"] else "the result is another"
            yield {
                "question": row["question"],
                "reference": row["ground_truth"],
                "student_answer": graded["solution"],
                "score": int(graded["is_correct"]),
                "reason": reason,
            }


def _documents():
    """XQuAD's paragraphs, four to a document, each headed by its first words."""
    rows = [row for row in _lines("docqa/xquad_en_zh") if row["language"] == "en"]
    texts = list(dict.fromkeys(row["context"] for row in rows))
    for row in rows:
        first = texts.index(row["context"]) // 4 * 4
        sections = [{"heading": " ".join(text.split()[:6]), "text": text} for text in texts[first : first + 4]]
        yield {
            "title": f"document {first // 4}",
            "sections": sections,
            "question": row["question"],
            "section": texts.index(row["context"]) - first + 1,
            "answer": row["answers"][0]["text"],
        }


MADE_ROWS = {"document_sections": _documents, "education_marking": _marked, "reasoning": _traces}


def _lines(name):
    return [json.loads(line) for line in shared(name).read_text(encoding="utf-8").strip().split("\n")]


def _rows(name, folder):
    """Overrides that give a recipe real rows, or rows of its form made of them."""
    if name in GENERATED_ROWS:
        return [f"data.path=generated:{GENERATED_ROWS[name]}", "data.rows=400"]
    if name in MADE_ROWS:
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in MADE_ROWS[name]()), encoding="utf-8")
        return [f"data.path={path}"]
    return [f"data.path={shared(REAL_ROWS[name])}"]


def _recipe(name, *overrides):
    return load(find(Path(name)), overrides)


def test_every_recipe_that_a_user_brings_rows_for_is_tried():
    paths = shipped.folder("recipes").glob("*.yaml")
    brought = {path.stem for path in paths if load(path).data.origin != "generated"}
    assert brought == set(REAL_ROWS)


@pytest.mark.parametrize("name", REAL_ROWS)
def test_thinking_is_written_out(name):
    model = find(Path(name)).read_text(encoding="utf-8").partition("\nmodel:\n")[2].partition("\ndata:\n")[0]
    assert "  thinking: " in model


@pytest.mark.parametrize("name", REAL_ROWS)
def test_it_is_valid_with_a_hubs_base_and_no_hub(name, tmp_path, capsys):
    overrides = [word for override in _rows(name, tmp_path) for word in ("--set", override)]
    assert cli.main(["validate", name, *overrides]) == 0
    said = capsys.readouterr().out
    assert "rows fit the template" in said
    assert "estimate: " in said
    assert "none" not in said.partition("estimate: ")[2]


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_it_takes_the_other_rows_that_it_names(name):
    template, rows = OTHER_ROWS[name]
    lines = inspect(_recipe(name, f"data.template={template}", f"data.path={shared(rows)}"))
    assert "(first 200 rows fit the template)" in lines[1]


@pytest.mark.parametrize("name", REAL_ROWS)
def test_its_rows_become_conversations_that_keep_the_contract(name, tmp_path):
    # the starter's vocabulary is small: real text has some times as many tokens in it as in Qwen's
    starter = ["model.name=starter", "data.max_tokens=8192", "model.thinking=false"]
    _prepared(_recipe(name, *_rows(name, tmp_path), *starter), tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", REAL_ROWS)
def test_its_rows_fit_it_as_it_stands_in_qwens_tokens(name, tmp_path):
    if not (REAL_QWEN / "tokenizer.json").is_file():
        pytest.skip(f"no real Qwen at {REAL_QWEN}: set FIELDTUNE_REAL_QWEN to a Qwen2.5-0.5B folder")
    # this Qwen2.5 has no thinking mode; its template keeps the block as the text that it is
    _prepared(_recipe(name, *_rows(name, tmp_path), f"model.name={REAL_QWEN}", "model.thinking=false"), tmp_path)


def _prepared(recipe, tmp_path):
    splits = Run(recipe, tmp_path / "run", lambda line: None).splits
    for split in ("train", "valid", "held_out"):
        assert next(iter(splits.conversations(split))).messages[-1].role == "assistant"
