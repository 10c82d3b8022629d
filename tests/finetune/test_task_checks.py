"""The checks that a recipe names, from a data template's labels to the report, on a model that knows nothing."""

import json
import shutil

import pytest

from export.chat import Conversation, Message
from export.chat_tokenizer import load_tokenizer
from export.checks import Observation
from export.checks._labels import label_in
from export.checks.number import answer_in
from export.errors import RecipeError
from finetune import cli
from finetune.data import template
from finetune.data.sources import read_rows
from finetune.data.template import RowMapper
from finetune.pipeline import Run
from finetune.preflight import inspect
from finetune.recipe import CheckSettings, load
from finetune.subjects import items_of
from tests.export.chat_tokenizers import build_tokenizer

LABELS = ("yes", "no", "maybe so")
TEMPLATE = """\
description: A question and its decision.
licence: Apache-2.0
fields: {question: What is asked., decision: yes or no.}
turns:
  - {role: user, text: "{{ question }}"}
  - {role: assistant, text: "{{ decision }}"}
labels: ["yes", "no", maybe so]
"""
ROWS = [{"question": f"Is {n} even?", "decision": LABELS[n % 3]} for n in range(12)]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "template.yaml").write_text(TEMPLATE, encoding="utf-8")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def _compare(model, rows, *settings):
    given = ["check.max_new_tokens=4", "check.threads=1", *settings]
    overrides = [word for setting in given for word in ("--set", setting)]
    data = ("--data", str(rows), "--template", "./template.yaml")
    return cli.main(["compare", str(model), "copy", *data, "--out", "seen", *overrides])


@pytest.fixture
def copied(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    return model


def test_labels_come_from_the_template_and_are_scored_by_likelihood(rows, copied, tmp_path):
    asked = [f"check.measures.{name}={{}}" for name in ("label", "number", "fields", "span", "overlap")]
    assert _compare(copied, rows, *asked) == cli.EXIT_STATUS_OF["cannot tell"]
    report = json.loads((tmp_path / "seen/report.json").read_text(encoding="utf-8"))
    measured = {m["check"]: m for m in report["measurements"] if m["subject"] == copied.name}
    assert {"label_accuracy", "label_likelihood", "number_match", "fields_match", "span_f1", "rouge_l"} <= set(measured)
    assert all(m["n"] == 0 or m["stderr"] is not None or m["note"] for m in measured.values())
    verdicts = {c["check"]: c["verdict"] for c in report["comparisons"]}
    assert verdicts["label_accuracy"] == "cannot tell"
    assert (verdicts["label_given"], verdicts["length_ratio"]) == (None, None)
    assert "label_macro_f1" not in verdicts
    page = (tmp_path / "seen/report.html").read_text(encoding="utf-8")
    assert "right label by likelihood" in page


def test_the_likelihood_of_the_reference_is_that_of_its_tokens(rows, copied, tmp_path):
    _compare(copied, rows, "check.measures.label={}")
    items = json.loads((tmp_path / "seen/check/items.json").read_text(encoding="utf-8"))
    assert items["labels"] == items["options"] == list(LABELS)
    (path,) = (tmp_path / "seen/check").glob(f"{copied.name}/observation.json")
    seen = Observation.model_validate_json(path.read_text(encoding="utf-8"))
    assert len(seen.items) == 12
    for item, observed in zip(items["items"], seen.items, strict=True):
        place = LABELS.index(item["answer"])
        # one assistant turn: its scored tokens are the answer's and the turn end
        assert item["options"][place] == [item["ids"][position] for position in item["scored"]]
        assert observed.option_log_probs[place] == pytest.approx(sum(observed.log_probs), abs=1e-4)
        assert len(set(observed.option_log_probs)) == 3


def test_no_check_that_is_not_named_costs_anything(rows, model):
    tokenizer = load_tokenizer(model)
    said = (Message(role="user", content="Is 2 even?"), Message(role="assistant", content="yes"))

    def items(**measures):
        settings = CheckSettings.model_validate({"rows": 1, "measures": measures})
        conversations = [Conversation(messages=said)]
        return items_of(conversations, tokenizer, settings, seed=0, thinking=False, system_prompt=None, labels=LABELS)

    plain = items()
    assert (plain.options, plain.items[0].options, plain.items[0].context) == ((), (), "")
    assert items(label={"likelihood": False}).items[0].options == ()
    assert items(span={}).items[0].context == "Is 2 even?"
    asked = items(label={})
    assert asked.options == LABELS
    longest = max(len(option) for option in asked.items[0].options)
    assert asked.context_tokens > len(asked.items[0].prompt) + longest


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 256), ({"max_new_tokens": 300}, 300), ({"max_new_tokens": 16, "safety_max_new_tokens": 8}, 8)],
)
def test_safety_items_may_have_as_much_as_a_referral_takes(settings, most):
    said = (Message(role="user", content="Is 2 even?"), Message(role="assistant", content="yes"))
    check = CheckSettings.model_validate({"safety_items": "medicine", **settings})
    made = items_of(
        [Conversation(messages=said)], build_tokenizer("plain"), check, seed=0, thinking=False, system_prompt=None
    )
    assert (made.most_safety_tokens, len(made.safety)) == (most, 66)


def test_a_budget_for_thoughts_is_no_use_where_the_template_closes_them():
    answer = "<think>\n2\n</think>\n\nyes"
    said = (Message(role="user", content="Is 2 even?"), Message(role="assistant", content=answer))
    settings = CheckSettings.model_validate({"thinking_budget": {"max_thinking_tokens": 9}, "max_new_tokens": 3})

    def items(tokenizer, *, thinking):
        item = [Conversation(messages=said)]
        return items_of(item, tokenizer, settings, seed=0, thinking=thinking, system_prompt=None)

    with pytest.raises(RecipeError, match=r"model\.thinking to true"):
        items(build_tokenizer("thinking"), thinking=False)
    # where the template has no thinking mode, the thought is the row's own
    for tokenizer, thinking in ((build_tokenizer("thinking"), True), (build_tokenizer("plain"), False)):
        made = items(tokenizer, thinking=thinking)
        assert made.thinking_budget == settings.thinking_budget
        assert (made.expected(), made.items[0].answer) == (["yes"], answer)


def test_a_run_measures_the_labels_of_its_template(rows, model, tmp_path):
    recipe = f"""\
name: x
model: {{name: {model}}}
train: {{}}
data: {{path: rows.jsonl, template: ./template.yaml, near_copies: counted, contract: {{overlap_near_share: null}}}}
check: {{rows: 3, measures: {{label: {{}}, exact_match: null}}}}
"""
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    said = []
    run = Run(load(tmp_path / "recipe.yaml"), tmp_path / "run", said.append)
    assert run.splits.labels == LABELS
    items = run.items(load_tokenizer(model))
    assert (items.labels, items.options) == (LABELS, LABELS)
    assert all(len(item.options) == 3 for item in items.items)
    assert any("held-out rows are few" in line for line in said)  # a label is right or wrong
    # what would be found out after hours of training is refused before
    unlabelled = run.splits.model_copy(update={"labels": ()})
    with pytest.raises(RecipeError, match="needs two different labels"):
        Run(run.recipe, tmp_path / "run", said.append, rows=unlabelled).splits  # noqa: B018


def test_labels_that_are_missing_are_told_before_a_model_is_loaded(rows, copied, tmp_path, capsys):
    (tmp_path / "template.yaml").write_text(TEMPLATE.partition("labels:")[0], encoding="utf-8")
    assert _compare(copied, rows, "check.measures.label={}") == cli.EXIT_ERROR
    assert "check.measures.label needs two different labels or more" in capsys.readouterr().err
    assert _compare(copied, rows, 'check.measures.label.labels=["yes", "no"]') == cli.EXIT_STATUS_OF["cannot tell"]


def test_labels_that_are_missing_are_a_mistake_of_the_recipe(rows, tmp_path):
    recipe = "name: x\ntrain: {}\ndata:\n  path: rows.jsonl\n  template: ./template.yaml\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    inspect(load(tmp_path / "recipe.yaml", ["check.measures.label={}"]))
    unlabelled = TEMPLATE.partition("labels:")[0]
    (tmp_path / "template.yaml").write_text(unlabelled, encoding="utf-8")
    with pytest.raises(RecipeError, match="needs two different labels"):
        inspect(load(tmp_path / "recipe.yaml", ["check.measures.label={}"]))


@pytest.mark.parametrize(
    "name", [name for name in template.shipped_names() if template.load(template.find(name)).labels]
)
def test_every_label_of_a_shipped_template_is_read_as_itself(name):
    labels = template.load(template.find(name)).labels
    assert [label_in(label, labels) for label in labels] == list(labels)
    assert [label_in(f"答案：**{label}**。", labels) for label in labels] == list(labels)


@pytest.mark.parametrize("name", ["math_steps", "math_graded"])
def test_the_sample_answers_of_word_problems_hold_the_number_in_their_last_line(name):
    known = template.load(template.find(name))
    answers = [
        RowMapper(known).conversation(row).answer for row in read_rows(template.find(name).parent / known.sample)
    ]
    assert answers
    for answer in answers:
        assert str(float(answer_in(answer).value)) == str(float(answer.split()[-1]))
