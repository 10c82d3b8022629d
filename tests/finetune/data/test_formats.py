"""The form of rows is told from the templates themselves, and never guessed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from export.errors import DataError
from finetune.data import formats
from finetune.data.formats import detect, detectable
from finetune.data.sources import Row, read_rows
from finetune.data.template import RowMapper, find, load

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
# Each file of ../shared/data, the template that reads it in its natural fields, and the general form that fits, if any.
SHARED_FILES: dict[str, tuple[str, str | None]] = {
    "docqa/xquad_en_zh": ("document_qa", None),
    "education/gaokao_mcq_zh": ("exam_choice_zh", None),
    "education/gsm8k": ("math_steps", "question_answer"),
    "education/gsm8k_graded_solutions": ("math_graded", None),
    "medicine/cmtmedqa_zh_multiturn": ("medical_dialogue_zh", "instruction"),
    "medicine/cmtmedqa_zh_safety": ("medical_safety_zh", None),
    "medicine/liveqa_judged_answers": ("medical_judged", "question_answer"),
    "medicine/medquad": ("medical_qa", "question_answer"),
    "medicine/pubmedqa_labeled": ("pubmed_decision", None),
    "mental_health/counsel_chat": ("counselling", None),
    "mental_health/emollm_zh_multiturn": ("conversation_rounds", "conversation_rounds"),
    "reviews/asap_zh_aspects": ("review_aspects_zh", None),
    "reviews/product_reviews_en_features": ("product_features", None),
    "robot/home_assistant_intents": ("home_assistant", None),
    "robot/nlu_home_commands": ("nlu_home_commands", None),
}


def shared(name: str) -> Path:
    path = SHARED_DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the real rows lie in ../shared, which this checkout does not have")
    return path


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(one, f"rows.jsonl, line {number}") for number, one in enumerate(fields, start=1)]


def test_every_shared_file_is_in_the_table() -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real rows lie in ../shared, which this checkout does not have")
    found = {path.relative_to(SHARED_DATA).with_suffix("").as_posix() for path in SHARED_DATA.glob("*/*.jsonl")}
    assert found == set(SHARED_FILES)


@pytest.mark.parametrize("name", SHARED_FILES)
def test_every_shared_file_is_read_in_its_natural_fields(name: str) -> None:
    path = shared(name)
    template = load(find(SHARED_FILES[name][0]))
    mapper = RowMapper(template)
    conversations = [mapper.conversation(row) for row in read_rows(path)]
    assert len(conversations) == path.read_bytes().count(b"\n")
    for conversation in conversations:
        assert all(item.content.strip() for item in conversation.messages)
        assert not template.labels or conversation.answer in template.labels


@pytest.mark.parametrize("name", SHARED_FILES)
def test_the_general_form_of_a_shared_file_is_told_where_one_fits(name: str) -> None:
    first = list(islice(read_rows(shared(name)), 50))
    expected = SHARED_FILES[name][1]
    if expected is not None:
        assert detect(first).template == expected
        return
    with pytest.raises(DataError, match="None of the known forms fits"):
        detect(first)


@pytest.mark.parametrize("name", detectable())
def test_a_templates_own_sample_is_told_to_be_of_its_form(name: str) -> None:
    path = find(name)
    found = detect(list(read_rows(path.with_name(f"{name}.sample.jsonl"))))
    assert found.template == name
    assert detectable()[name].description.rstrip(".") in found.because


def test_the_forms_are_those_that_people_have() -> None:
    assert set(detectable()) == {
        "chat_messages",
        "conversation_rounds",
        "instruction",
        "preference",
        "preference_messages",
        "preference_turns",
        "prompt_completion",
        "prompt_response",
        "question_answer",
        "sharegpt",
    }


def test_qwens_names_of_the_speakers_and_sharegpts_are_one_form() -> None:
    for names in (("human", "gpt"), ("user", "assistant")):
        turns = [{"from": name, "value": "x"} for name in names]
        assert detect(rows({"conversations": turns})).template == "sharegpt"


def test_it_is_said_what_is_learned_and_what_is_not_used() -> None:
    found = detect(rows({"id": 1, "prompt": "a", "chosen": "b", "rejected": "c"}))
    assert found == (
        "preference",
        "all of the first 1 rows have its form, with prompt, chosen, rejected: A prompt with a chosen and a rejected "
        "answer, as texts; the chosen one is learned; not used: id.",
    )


def test_a_broken_row_among_many_does_not_hide_the_form() -> None:
    good = {"question": "a", "answer": "b"}
    found = detect(rows(good, {"question": "a", "answer": None}, good))
    assert found.template == "question_answer"
    assert found.because.startswith("2 of the first 3 rows have its form")
    with pytest.raises(DataError, match=r"question_answer has these fields, but rows\.jsonl, line 1: turn 2 cannot"):
        detect(rows({"question": "a", "answer": None}, good))


def test_the_form_that_uses_more_of_the_same_fields_is_the_better(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = load(find("question_answer"))
    titled = asked.model_copy(update={"fields": {**asked.fields, "title": "x"}})
    monkeypatch.setattr(formats, "detectable", lambda: {"asked": asked, "titled": titled})
    row = {"question": "a", "answer": "b"}
    assert detect(rows(row)).template == "asked"
    assert detect(rows(row | {"title": "c"})).template == "titled"


def test_two_forms_that_fit_equally_well_are_not_chosen_between() -> None:
    both = {"question": "a", "answer": "b", "prompt": "a", "response": "b"}
    with pytest.raises(DataError) as caught:
        detect(rows(both))
    message = str(caught.value)
    assert "prompt_response (prompt, response) and question_answer (answer, question) fit equally well" in message
    assert "Set data.template to the one that is meant" in message


def test_no_form_shows_what_was_found_and_what_is_known() -> None:
    with pytest.raises(DataError) as caught:
        detect(rows({"frage": "a", "antwort": ["b"]}))
    message = str(caught.value)
    assert message.startswith("rows.jsonl, line 1: no data template can be chosen by the rows' fields, which are: ")
    assert "frage (a text), antwort (a list)" in message
    assert "question_answer: question, answer" in message
    assert "{prompt: '{question}', answer: '{answer}'}" in message
    with pytest.raises(DataError, match="there are no rows"):
        detect([])
