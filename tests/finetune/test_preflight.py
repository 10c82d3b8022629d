"""What is wrong with a recipe is found before anything is loaded, all of it at once, and what was looked at is said."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.errors import RecipeError
from finetune import cli
from finetune.hub import resolve_model
from finetune.preflight import ROWS_LOOKED_AT, inspect
from finetune.recipe import load
from tests.export.chat_tokenizers import THINKING
from tests.finetune.data.test_sources import write

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "datasets", "peft", "trl", "scipy"}
RECIPE = """\
name: test
data: {path: rows.jsonl, template: question_answer}
train: {learning_rate: 2e-4}
export: {gguf: {types: q8_0}, gptq: {bits: 4}}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a recipe, and rows that fit its template."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write(tmp_path / "rows.jsonl", _rows(40))
    return tmp_path


def _rows(count):
    return [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(1, count + 1)]


def _inspect(work, *overrides):
    return inspect(load(work / "recipe.yaml", overrides))


def _problems(work, *overrides):
    """The lines of the refusal."""
    with pytest.raises(RecipeError) as caught:
        _inspect(work, *overrides)  # nothing is iterated: the pipeline calls it for its errors
    return str(caught.value).splitlines()


def test_template_data_model_and_exports_are_looked_at(work):
    lines = _inspect(work)
    assert [line.partition(":")[0] for line in lines] == ["template", "data", "model", "exports"]
    assert lines[1] == f"data: {work / 'rows.jsonl'} (all 40 rows fit the template)"


def test_checks_that_can_read_none_of_the_answers_are_refused_and_some_are_told(work):
    labels = "check.measures.label={labels: ['yes', 'no']}"
    (problem,) = _problems(work, labels, "check.measures.number={}", "check.measures.fields={}")[1:]
    assert "label expects one of its labels, which 40 of the 40 answers are not, such as 'It is 1.'" in problem
    assert "fields expects JSON" in problem and "number" not in problem
    rows = [*_rows(30), *({"question": f"Is {n}?", "answer": "no idea"} for n in range(10))]
    write(work / "rows.jsonl", rows)
    lines = _inspect(work, "check.measures.number={}")
    assert lines[2] == (
        "check.measures: number expects text with a number, which 10 of the 40 answers are not, such as 'no idea'"
    )
    # rows of another kind may follow the ones looked at
    mixed = [*({"question": f"Is {n}?", "answer": "no idea"} for n in range(ROWS_LOOKED_AT)), *_rows(30)]
    write(work / "rows.jsonl", mixed)
    assert (
        f"which {ROWS_LOOKED_AT} of the first {ROWS_LOOKED_AT} answers are not"
        in _inspect(work, "check.measures.number={}")[2]
    )


def test_answers_that_break_the_recipes_own_schema_are_told_before_anything_is_trained(work):
    rows = [{"question": f"Is {n}?", "answer": '{"task": "mop"}' if n % 3 else '{"job": "mop"}'} for n in range(30)]
    write(work / "rows.jsonl", rows)
    schema = '{"type": "object", "required": ["task"]}'
    lines = _inspect(work, f"check.measures.fields={{json_schema: {schema}}}")
    assert lines[2].startswith(
        "check.measures: fields expects JSON that keeps the schema, where there is one, which 10 of"
    )
    assert _inspect(work, "check.measures.fields={}")[2].startswith("model:")


def test_rows_that_are_not_there_are_told_with_the_form_that_they_should_have(work):
    problems = _problems(work, "data.path=none.jsonl")
    assert "Bring rows of the template 'question_answer', with the fields question, answer" in problems[1]


def test_a_target_that_no_mix_can_meet_is_refused_before_anything_is_trained(work, capsys):
    words = ["data", "recipe.yaml", "--set", "model.name=starter", "--set", "export={}", "--set"]
    assert cli.main([*words, "export.target={size_bytes: 1000}"]) == 2
    assert "1,000 bytes are asked for, and with every tensor in its smallest" in capsys.readouterr().err
    device = "export.target={device: raspberry_pi_5_4gb, context_tokens: 256, min_tokens_per_second: 1000000}"
    assert cli.main([*words, device]) == 2
    assert "has no room for any file" in capsys.readouterr().err
    assert cli.main([*words, "export.target={bits_per_weight: 5}"]) == 0


def test_safety_items_are_read_before_anything_is_trained(work):
    assert _problems(work, "check.safety_items=./nowhere.jsonl")[1].strip().startswith("check.safety_items:")
    assert "Did you mean 'medicine'" in _problems(work, "check.safety_items=medicin")[1]
    assert _inspect(work, "check.safety_items=medicine")[-1] == "safety items: medicine (66 items)"
    write(work / "safety.jsonl", [{"prompt": "How much?", "safe": "doctor"}])
    assert _inspect(work, "check.safety_items=safety.jsonl")[-1].endswith("safety.jsonl (1 items)")


def test_no_hub_is_asked(work):
    lines = _inspect(work, "model.name=owner/name", "model.revision=main", "data.path=hf:owner/rows")
    assert sum("on a hub" in line for line in lines) == 2


def test_every_problem_is_told_at_once_one_a_line(work, monkeypatch):
    monkeypatch.setattr("export.formats._gptq_plan.find_spec", lambda package: None)
    overrides = ("data.template=question_anser", "data.path=row.jsonl", "model.name=./nothing")
    opening, *lines = _problems(work, *overrides)
    assert opening == "the recipe 'test' has 4 problems:"
    expected = {
        "template": "Did you mean 'question_answer'?",
        "data": f"In {work}: rows.jsonl.",
        "model": "there is no model",
        "export": "pip install 'fieldtune[gptq]'",
    }
    assert [line.partition(":")[0] for line in lines] == [f"  {place}" for place in expected]
    for line, said in zip(lines, expected.values(), strict=True):
        assert said in line


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("model.revision=main", "model"),
        ("model.name=nothing", "model"),
        ("data.path=./nothing.jsonl", "data"),
        ("data.template=./recipe.yaml", "template"),
        ("data.group_by='{{ x'", "data"),
        ("data.group_by=document", "data"),
        ("train.lora.targets=[lm_head]", "train"),
    ],
)
def test_what_a_run_would_meet_later_is_told_with_its_place(work, override, place):
    opening, line, *_ = _problems(work, override)
    assert opening == "the recipe 'test' has 1 problem:"
    assert line.startswith(f"  {place}: ")


def test_the_first_row_that_does_not_fit_is_told_with_its_place(work):
    write(work / "rows.jsonl", [*_rows(3), {"question": "And?", "anser": "So."}, {}])
    (line,) = _problems(work)[1:]
    assert line.startswith(
        f"  data: {work / 'rows.jsonl'}, line 4: the field 'answer' is missing. Did you mean 'anser'?"
    )
    assert line.endswith("(of the 5 rows, 1 more cannot be used)")


def test_rows_that_the_contract_lets_be_dropped_are_told_and_stop_nothing(work):
    write(work / "rows.jsonl", [*_rows(8), {"question": "And?"}])
    with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("not json\n")
    line = _inspect(work, "data.contract.broken_share=0.2")[1]
    assert "(all 10 rows: 2 cannot be used and will be dropped, as data.contract allows: " in line
    assert "line 9: the field 'answer' is missing" in line
    write(work / "rows.jsonl", [{}, {}])
    assert "line 1: the field" in _problems(work, "data.contract.broken_share=1")[1]


def test_a_broken_line_is_told_beside_a_broken_template(work):
    (work / "rows.jsonl").write_text('{"question": "a"\n', encoding="utf-8")
    lines = _problems(work, "data.template=./recipe.yaml")
    assert any(line.startswith("  data: ") and "rows.jsonl, line 1" in line for line in lines)
    assert any("licence: this key is needed and missing." in line for line in lines)


def test_no_more_rows_are_read_than_it_says(work):
    write(work / "rows.jsonl", [*_rows(ROWS_LOOKED_AT), {}])
    assert f"(first {ROWS_LOOKED_AT} rows fit the template)" in _inspect(work)[1]
    write(work / "rows.jsonl", [*_rows(ROWS_LOOKED_AT - 1), {}])
    assert f"line {ROWS_LOOKED_AT}:" in _problems(work)[1]


def test_generated_rows_are_looked_at_too(work):
    generated = ("data.path=generated:cleaning_robot", "data.rows=500")
    assert "(first 200 rows fit the template)" in _inspect(work, *generated, "data.template=cleaning_robot")[1]
    assert "data: generated:cleaning_robot, row 1: the field 'question' is missing" in _problems(work, *generated)[1]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_rows_of_every_kind_are_read_without_anything_heavy(work, ending):
    path = write(work / f"mine.{ending}", _rows(5))
    code = "import sys; from finetune.cli import main; main(sys.argv[1:]); print('LOADED', *sys.modules)"
    command = [sys.executable, "-c", code, "validate", str(work / "recipe.yaml"), "--set", f"data.path={path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    said, _, loaded = done.stdout.partition("LOADED ")
    assert "(all 5 rows fit the template)" in said
    assert not set(loaded.split()) & HEAVY


def test_the_command_says_all_of_it_and_ends_with_2(work, capsys):
    assert cli.main(["validate", "recipe.yaml"]) == 0
    assert capsys.readouterr().out.endswith("recipe.yaml: valid\n")
    (work / "rows.jsonl").write_text(json.dumps({"question": "x"}), encoding="utf-8")
    assert cli.main(["validate", "recipe.yaml", "--set", "model.name=./nothing"]) == 2
    assert "has 2 problems:\n  data: " in capsys.readouterr().err


def test_thinking_that_a_template_ignores_is_told(work, capsys):
    assert not any(line.startswith("thinking:") for line in _inspect(work))
    (told,) = [line for line in _inspect(work, "model.thinking=true") if line.startswith("thinking:")]
    assert "asked for, and ignored" in told
    assert "has no thinking mode" in told
    # by a run as well, which reads no lines of the inspection
    overrides = ["--set", "model.thinking=true", "--set", "data.contract.overlap_near_share=null"]
    assert cli.main(["data", "recipe.yaml", *overrides]) == 0
    assert "thinking: asked for, and ignored" in capsys.readouterr().out


def test_thinking_that_a_template_knows_is_not(work):
    folder = _starter_with(work, THINKING)
    assert not any(
        line.startswith("thinking:") for line in _inspect(work, f"model.name={folder}", "model.thinking=true")
    )


def test_a_budget_for_thoughts_that_a_template_closes_is_refused_before_anything_is_trained(work, capsys):
    folder = _starter_with(work, THINKING)
    arguments = ["--set", f"model.name={folder}", "--set", "check.thinking_budget={max_thinking_tokens: 9}"]
    assert cli.main(["data", "recipe.yaml", *arguments]) == 2
    assert "Set model.thinking to true" in capsys.readouterr().err
    assert cli.main(["data", "recipe.yaml", *arguments, "--set", "model.thinking=true"]) == 0


def _starter_with(work, template):
    folder = work / "starter"
    shutil.copytree(resolve_model("starter", revision=None, offline=True), folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
