"""A domain is started from a template: its files are valid as they stand, and nothing of the user's is overwritten."""

import re

import pytest
import yaml

from finetune import cli
from finetune.data.template import load
from finetune.preflight import inspect
from finetune.recipe import load as load_recipe
from finetune.scaffold import domains, scaffold


@pytest.mark.parametrize("domain", [name for name, _ in domains()])
def test_a_started_domain_is_valid_as_it_stands(tmp_path, domain):
    paths = scaffold(domain, tmp_path / "my domain.1")
    assert [path.name for path in paths] == ["recipe.yaml", "template.yaml", "rows.sample.jsonl"]
    recipe = load_recipe(paths[0])
    assert recipe.name == "my-domain.1"
    assert "rows fit the template)" in inspect(recipe)[1]
    comment = paths[0].read_text(encoding="utf-8").split("\nname:")[0]
    assert re.findall(r"^# (\w+):", comment, re.M) == ["What", "On", "Rows", "Hardware", "Run"]
    template = load(paths[1])
    assert template.sample == "rows.sample.jsonl"
    assert not template.detect


def test_json_answers_are_compared_as_json_labels_as_text_and_free_words_not_at_all(tmp_path):
    def compared(domain):
        path = scaffold(domain, tmp_path / domain)[0]
        return yaml.safe_load(path.read_text(encoding="utf-8"))["check"]["measures"]["exact_match"]

    assert compared("home_assistant") == {"compare": "json"}
    assert compared("pubmed_decision") == {"compare": "text"}
    assert compared("counselling") is None


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("诊所", "question_answer"),
        ("2024", "2024"),
        ("yes", "yes"),
        ("1e5", "1e5"),
        ("a_b", "a_b"),
        ("我的 clinic!", "clinic"),
    ],
)
def test_any_folder_gives_a_name_that_a_recipe_may_have(tmp_path, folder, name):
    assert load_recipe(scaffold("question_answer", tmp_path / folder)[0]).name == name


def test_nothing_is_overwritten_and_nothing_is_written_beside_it(tmp_path, capsys):
    mine = tmp_path / "template.yaml"
    mine.write_text("mine")
    assert cli.main(["init", "question_answer", str(tmp_path)]) == 2
    assert "template.yaml exists already and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["template.yaml"]
    assert mine.read_text() == "mine"


def test_the_domains_are_listed_with_a_line_each(capsys):
    assert cli.main(["init"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [name for name, _ in domains()]
    assert "question_answer          A question and its answer." in listed


def test_an_unknown_domain_is_told_the_nearest_and_all(tmp_path, capsys):
    assert cli.main(["init", "medical_qq", str(tmp_path / "x")]) == 2
    said = capsys.readouterr()
    assert "Did you mean 'medical_qa'?" in said.err
    assert len(said.out.splitlines()) == len(list(domains()))
    assert not (tmp_path / "x").exists()
    assert cli.main(["init", "medical_qa"]) == 2
    assert "no folder was given" in capsys.readouterr().err


def test_rows_in_place_of_a_domain_are_told_where_they_belong(tmp_path, capsys):
    rows = tmp_path / "commands.csv"
    rows.write_text("said,do\n")
    assert cli.main(["init", str(rows), str(tmp_path / "mine")]) == 2
    assert f"set data.path of its recipe to {rows}" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_the_printed_next_step_is_one_that_succeeds(tmp_path, capsys):
    assert cli.main(["init", "review_aspects_zh", str(tmp_path / "mine")]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: fieldtune ").split()
    assert cli.main(command) == 0
