"""A sweep on a tiny model: one split, nested draws, all adapters measured on the same rows, a second run is quick."""

import json
import shutil

import pytest

from export.errors import RecipeError
from finetune import cli
from finetune.sweep import parse_budgets

RECIPE = """
name: tiny
model: {{name: {model}}}
data: {{path: rows.jsonl, template: question_answer, held_out_share: 0.3}}
train: {{max_steps: 2, batch_size: 2}}
check: {{rows: 6, max_new_tokens: 4}}
"""
ROWS = [{"question": f"Which number is {n * 7919}?", "answer": f"It is the number {n * 104729}."} for n in range(40)]


@pytest.mark.parametrize(
    ("text", "expected"), [("25k,50k", (25_000, 50_000)), ("1m, 300", (300, 1_000_000)), ("1.5K", (1_500,))]
)
def test_budgets_are_read(text, expected):
    assert parse_budgets(text) == expected


@pytest.mark.parametrize("text", ["", "25q", "0", "5k,5000", "-3", "25k;50k", "0.4,25k"])
def test_budgets_that_are_none_say_how_to_write_them(text):
    with pytest.raises(RecipeError, match=r"--tokens .*(Write, say, 25k|Keep each once)"):
        parse_budgets(text)


@pytest.fixture
def folder(start_in_folder, model):
    return start_in_folder(RECIPE.format(model=model), ROWS)


@pytest.mark.slow
def test_a_sweep_trains_each_budget_with_each_seed_and_measures_on_the_same_rows(folder, capsys):
    command = ["sweep", "recipe.yaml", "--tokens", "300,600", "--seeds", "2"]
    assert cli.main(command) == 0
    place = folder / "runs/tiny-sweep"
    report = json.loads((place / "report.json").read_text())
    assert {(p["check"], p["budget_tokens"]) for p in report["points"]} >= {("exact_match", 300), ("perplexity", 600)}
    for point in report["points"]:
        assert len(point["per_seed"]) == 2
        assert point["n_rows"] == 6
        assert point["budget_tokens"] * 0.7 < point["tokens"] <= point["budget_tokens"]
    assert {m["check"] for m in report["base"]} == {p["check"] for p in report["points"]}
    drawn = {path.parts[-3]: path.read_text().splitlines() for path in place.glob("trainings/*/data/train.jsonl")}
    assert sorted(drawn) == ["300-seed0", "300-seed1", "600-seed0", "600-seed1"]
    assert set(drawn["300-seed0"]) < set(drawn["600-seed0"])
    assert set(drawn["300-seed0"]) != set(drawn["300-seed1"])
    held = {path.read_text() for path in place.glob("trainings/*/data/held_out.jsonl")}
    assert held == {(place / "data/held_out.jsonl").read_text()}
    said = capsys.readouterr().out
    assert "training 4 of 4" in said
    assert "exact match, %" in said
    assert (place / "report.html").stat().st_size > 3000

    shutil.rmtree(place / "trainings/600-seed1")
    assert cli.main(command) == 0
    again = capsys.readouterr().out
    assert again.count("train: already done") == 3


def test_more_than_there_is_cannot_be_asked_for(folder, capsys):
    assert cli.main(["sweep", "recipe.yaml", "--tokens", "1m"]) == 2
    assert "1,000,000 tokens were asked for; the training rows hold" in capsys.readouterr().err
