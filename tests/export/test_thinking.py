"""Answers with thoughts: every check of answers looks behind them, and what became of them is counted."""

import pytest

from export.checks import SafetyItem
from export.checks.behaviour import Behaviour
from export.checks.exact_match import ExactMatch
from export.checks.fields import Fields
from export.checks.label import Label
from export.checks.number import LastNumber
from export.checks.overlap import Overlap
from export.checks.safety import Safety
from export.checks.span import Span
from export.checks.thinking import Thinking
from export.compare import Gate, compare_steps
from export.lost_safety import safety_record
from export.thought import ThinkingBudget, Thought
from tests.export.observing import numbers, scores, seen, work

BUDGET = ThinkingBudget(max_thinking_tokens=20, waits=2)
GOLD = "<think>\n3 and 4 make 7: not #### 9\n</think>\n\n{answer}"
SAID = "<think>maybe 12, no, {wrong}</think>{answer}"


@pytest.mark.parametrize(
    ("check", "name", "right", "wrong", "options"),
    [
        (ExactMatch(), "exact_match", "seven", "eight", {}),
        (ExactMatch(compare="json"), "exact_match", '{"n": 7}', '{"n": 8}', {}),
        (LastNumber(), "number_match", "It is 7", "It is 8", {}),
        (Label(likelihood=False), "label_accuracy", "B", "A", {"labels": ("A", "B")}),
        (Span(), "span_match", "seven days", "eight days", {"contexts": ["seven days"] * 3}),
        (Fields(), "fields_match", '{"n": 7}', '{"n": 8}', {}),
        (Overlap(), "rouge_l", "seven days", "an hour", {}),
        (Behaviour(), "valid_format", '{"n": 7}', "n is 7", {}),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "measure") else "",
)
def test_checks_look_behind_the_thought_of_the_answer_and_of_the_reference(check, name, right, wrong, options):
    # the thought says the opposite of the answer; the third answer has no thought at all
    answers = [SAID.format(wrong=wrong, answer=right), SAID.format(wrong=right, answer=wrong), right]
    found = numbers(check, [GOLD.format(answer=right)] * 3, answers, **options)
    assert scores(found[name]) == [1, 0, 1]


def test_a_thought_without_an_end_has_no_answer():
    assert scores(numbers(LastNumber(), ["7"], ["<think>it is 7"])["number_match"]) == [0]
    assert scores(numbers(LastNumber(), ["7"], ["so it is 7"])["number_match"]) == [1]


def test_the_markers_are_those_of_the_budget():
    budget = ThinkingBudget(max_thinking_tokens=5, begin="[", end="]\n")
    found = numbers(LastNumber(), ["[8]7"], ["[1 2]7 <think>"], thinking_budget=budget)
    assert scores(found["number_match"]) == [1]


def test_a_rubric_sees_the_answer_and_not_the_thought():
    item = SafetyItem(prompt=(1,), text="?", safe=("doctor",), unsafe=("take two",))
    items = work(["x"]).model_copy(update={"safety": (item, item)})
    said = ("<think>one might take two</think>Ask a doctor.", "<think>a doctor?</think>Take two.")
    observed = seen(["x"]).model_copy(update={"safety": said})
    (measured,) = Safety().measure(items, observed)
    assert scores(measured) == [1, 0]
    record = safety_record(items, {"x": observed}, ())
    assert record is not None and record.safe_in_reference == 1


def test_what_became_of_the_thoughts_is_counted_over_all_rows():
    thoughts = [
        Thought(tokens=6, ended="closed", waits=2),
        Thought(tokens=20, ended="cut", waits=0),
        Thought(tokens=4, ended="stopped", waits=1),
        Thought(tokens=0, ended="none", waits=0),
    ]
    found = numbers(Thinking(), ["a"] * 4, ["a"] * 4, thoughts=thoughts, thinking_budget=BUDGET)
    shares = {name: measured.value for name, measured in found.items()}
    assert shares == {
        **dict.fromkeys(("thinking_closed", "thinking_cut", "thinking_stopped", "thinking_none"), 0.25),
        "thinking_tokens": 7.5,
        "thinking_waits": 0.75,
    }
    # the standard error of a mean of 6, 20, 4, 0: the deviation 8.6987 over the root of 4
    assert found["thinking_tokens"].stderr == pytest.approx(4.3493, abs=1e-3)
    assert not any(measured.judged for measured in found.values())
    assert {measured.higher_is_better for measured in found.values()} == {None}


def test_without_waits_none_are_told_and_without_a_budget_nothing_is():
    thoughts = [Thought(tokens=6, ended="closed", waits=0)] * 2
    budget = ThinkingBudget(max_thinking_tokens=20)
    found = numbers(Thinking(), ["a"] * 2, ["a"] * 2, thoughts=thoughts, thinking_budget=budget)
    assert "thinking_waits" not in found
    assert numbers(Thinking(), ["a"], ["a"]) == {}


def test_thoughts_that_differ_are_compared_and_not_judged():
    def measured(*ended):
        thoughts = [Thought(tokens=5 + index, ended=one, waits=0) for index, one in enumerate(ended)]
        return tuple(numbers(Thinking(), ["a"] * 3, ["a"] * 3, thoughts=thoughts, thinking_budget=BUDGET).values())

    steps = {"merged": measured("closed", "closed", "closed"), "gguf/q8_0": measured("cut", "cut", "closed")}
    compared = {c.check: c for c in compare_steps(steps, Gate(), four_bit_base=False, seed=0)}
    assert compared["thinking_cut"].delta == pytest.approx(2 / 3)
    assert all(comparison.verdict is None for comparison in compared.values())


def test_room_is_made_for_the_longest_thought():
    plain, budgeted = work(["a"]), work(["a"], thinking_budget=BUDGET)
    # 20 tokens of thought and as many that others may have left; an end of 8 bytes, looked for and written
    assert budgeted.context_tokens - plain.context_tokens == 2 * 20 + 2 * 8
    once = work(["a"], thinking_budget=BUDGET.model_copy(update={"waits": 0}))
    assert once.context_tokens - plain.context_tokens == 20 + 2 * 8
