"""Which sets a run measures beside its held-out rows, and what a recipe may ask of them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from export.chat import Conversation, Message
from export.chat_tokenizer import load_tokenizer
from export.errors import DataError, TrainingError
from finetune.companions import companions_of, up_to_turn
from finetune.data.generated import identity_of, made_rows
from finetune.methods._supervised import Supervised
from finetune.pipeline import Run
from finetune.recipe import GeneralSettings, Recipe, find, load


def _talk(rounds):
    turns = [(f"question {n}?", f"answer {n}") for n in range(1, rounds + 1)]
    messages = [m for q, a in turns for m in (Message(role="user", content=q), Message(role="assistant", content=a))]
    return Conversation(messages=(Message(role="system", content="Be kind."), *messages))


class _Rows:
    """What `companions_of` asks of splits."""

    def __init__(self, conversations):
        self.labels = ()
        self._conversations = conversations

    def conversations(self, split):
        assert split == "held_out"
        return self._conversations


def _recipe(**keys):
    data = {"path": "rows.jsonl", "template": "question_answer"}
    return Recipe.model_validate({"name": "x", "data": data, "train": {"method": "sft"}, **keys})


def test_an_earlier_turn_is_asked_behind_what_came_before_it():
    one, two, three = _talk(1), _talk(2), _talk(3)
    assert up_to_turn([one, two, three], 1) == [
        two.model_copy(update={"messages": two.messages[:3]}),
        three.model_copy(update={"messages": three.messages[:3]}),
    ]
    (second,) = up_to_turn([one, two, three], 2)
    assert (second.answer, len(second.prompt)) == ("answer 2", 4)


def test_a_turn_that_no_conversation_has_before_its_last_is_refused():
    with pytest.raises(DataError, match="asks for answer 2, and no held-out conversation has another behind it"):
        up_to_turn([_talk(2)], 2)


def test_the_sets_of_a_run(model):
    general = {"data": {"path": "other.jsonl"}, "share": 0.1, "check": {"rows": 2}}
    asked = []
    sets = companions_of(
        _recipe(check={"turns": [1], "rows": 3}, general=general),
        _Rows([_talk(2)] * 5),
        _Rows([_talk(1)] * 5),
        load_tokenizer(model),
        lambda gate: asked.append(gate) or (lambda _: ()),
    )
    assert [(s.name, len(s.items.items), s.items.items[0].answer) for s in sets] == [
        ("turn 1", 3, "answer 1"),
        ("general", 2, "answer 1"),
    ]
    assert asked[0] is not None  # an earlier turn is judged
    assert asked[1] is None  # of general rows nothing is asked


def test_general_rows_are_trained_on_beside_those_of_the_domain(tmp_path, monkeypatch):
    trained_on = []

    def train(self, base, splits, out, **_):
        trained_on.append(splits)
        raise TrainingError("enough was seen")

    monkeypatch.setattr(Supervised, "train", train)
    recipe = load(find(Path("mental_health_starter")), ["data.rows=300", "general.data.rows=300"])
    run = Run(recipe, tmp_path / "run", lambda _: None)
    with pytest.raises(TrainingError, match="enough was seen"):
        _ = run.trained
    (splits,) = trained_on
    domain, general, seen = (rows.conversations("train") for rows in (run.splits, run.general, splits))
    assert seen[: len(domain)] == domain
    assert len(seen) > len(domain)
    assert all(row in general for row in seen[len(domain) :])
    assert splits.conversations("held_out") == run.splits.conversations("held_out")


def test_without_a_wish_there_are_none(model):
    assert companions_of(_recipe(), _Rows([_talk(2)]), None, load_tokenizer(model), lambda _: None) == ()


@pytest.mark.parametrize("check", [{"safety_items": "medicine"}, {"turns": [1]}])
def test_general_rows_have_no_safety_items_or_turns_of_their_own(check):
    with pytest.raises(ValidationError, match="are of the recipe's own check"):
        GeneralSettings.model_validate({"data": {"path": "x.jsonl"}, "check": check})


def test_the_starter_s_general_rows_are_questions_with_one_answer():
    rows = list(made_rows("starter_general", 200, 7))
    assert rows == list(made_rows("starter_general", 200, 7))
    assert rows != list(made_rows("starter_general", 200, 8))
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles in (["user", "assistant"], ["system", "user", "assistant"])
        assert all(message["content"] and "<|" not in message["content"] for message in row["messages"])
    assert len({row["messages"][-2]["content"] for row in rows}) == 200
    assert len(identity_of("starter_general")) == 64
