"""Thoughts under a budget: every fate, worked out by hand, on an engine whose answers are known."""

from collections.abc import Sequence

import pytest

from export.budgeted import answer_within
from export.engines import Generation
from export.thought import ThinkingBudget, Thought, answer_behind_thought


class Letters:
    """A vocabulary of single characters, and of the pieces that are added to it."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = sorted(pieces, key=len, reverse=True)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            piece = next((p for p in self.pieces if text.startswith(p)), text[0])
            ids.append(1_000_000 + self.pieces.index(piece) if piece in self.pieces else ord(piece))
            text = text[len(piece) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i - 1_000_000] if i >= 1_000_000 else chr(i) for i in ids)


class Scripted:
    """An engine that knows what it writes behind a text: the first continuation whose beginning is what stands there.

    Each script is prompt, then all that follows; a script that ends stops. What is not scripted fails the test.
    """

    def __init__(self, codec: Letters, *scripts: str) -> None:
        self.codec = codec
        self.scripts = scripts
        self.calls: list[tuple[list[str], int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        texts = [self.codec.decode(prompt) for prompt in prompts]
        self.calls.append((texts, max_new_tokens))
        return [self._one(text, max_new_tokens) for text in texts]

    def _one(self, text: str, most: int) -> Generation:
        rest = self.codec.encode(next(s for s in self.scripts if s.startswith(text))[len(text) :])
        return Generation(ids=tuple(rest[:most]), stopped=len(rest) < most, seconds=0.0)


QWEN3 = Letters("<think>", "</think>")  # markers are one token
PLAIN = Letters()  # markers are seven and eight
BUDGET = ThinkingBudget(max_thinking_tokens=12)


def _answers(codec, scripts, *, budget=BUDGET, most=6, prompts=("Q",)):
    engine = Scripted(codec, *scripts)
    found = answer_within(engine, [codec.encode(prompt) for prompt in prompts], budget, most, codec)
    return [(codec.decode(answer.ids), answer.stopped, answer.thought) for answer in found], engine


def _only(codec, *scripts, **options):
    (found,), engine = _answers(codec, scripts, **options)
    return found, engine


def test_a_thought_that_the_model_closes_is_its_own_and_the_answer_is_not_written_twice():
    found, engine = _only(QWEN3, "Q<think>ab</think>4")
    assert found == ("<think>ab</think>4", True, Thought(tokens=3, ended="closed", waits=0))
    assert len(engine.calls) == 1


def test_an_answer_that_goes_on_behind_the_budget_is_generated_behind_the_end():
    # 12 tokens and the room to see an end (8 bytes) are over before the answer is
    found, engine = _only(QWEN3, "Q<think>abcdefghij</think>1234567890abc", most=12)
    assert found == ("<think>abcdefghij</think>1234567890ab", False, Thought(tokens=11, ended="closed", waits=0))
    assert [call[0] for call in engine.calls] == [["Q"], ["Q<think>abcdefghij</think>"]]
    assert engine.calls[1][1] == 12


@pytest.mark.parametrize("codec", [QWEN3, PLAIN], ids=["one token", "several tokens"])
def test_a_thought_that_is_too_long_is_cut_to_the_token_and_closed(codec):
    whole = codec.encode("<think>" + "abcdefghijklmnopqrstuvwxyz" * 2)
    cut = codec.decode(whole[:12])
    scripts = (f"Q{cut}</think>42", f"Q{codec.decode(whole)}</think>no")
    # the engine writes the long thought until its end is put in; then what follows the shorter one
    engine = Scripted(codec, scripts[1], scripts[0])
    (answer,) = answer_within(engine, [codec.encode("Q")], BUDGET, 6, codec)
    assert codec.decode(answer.ids) == f"{cut}</think>42"
    assert (answer.stopped, answer.thought) == (True, Thought(tokens=12, ended="cut", waits=0))


@pytest.mark.parametrize(("letters", "ended"), [(10, "closed"), (11, "closed"), (12, "cut")])
def test_the_budget_counts_exactly_and_the_end_is_not_part_of_it(letters, ended):
    thought = "<think>" + "a" * letters  # one token more than letters
    kept = "<think>" + "a" * 11
    (text, _, found), _ = _only(QWEN3, f"Q{thought}</think>4", f"Q{kept}</think>4")
    assert found == Thought(tokens=min(12, letters + 1), ended=ended, waits=0)
    assert text == (f"{thought}</think>4" if ended == "closed" else f"{kept}</think>4")


def test_an_end_of_several_tokens_that_begins_within_the_budget_is_waited_for():
    # <think> has 7 characters and aaaa 4: the end begins at the last token that the budget has
    (text, stopped, found), _ = _only(PLAIN, "Q<think>aaaaa</think>4")
    assert (text, stopped) == ("<think>aaaaa</think>4", True)
    assert found == Thought(tokens=12, ended="closed", waits=0)


def test_a_turn_that_ends_within_the_thought_is_closed_and_answered():
    (text, stopped, found), _ = _only(QWEN3, "Q<think>ab", "Q<think>ab</think>4")
    assert (text, stopped) == ("<think>ab</think>4", True)
    assert found == Thought(tokens=3, ended="stopped", waits=0)


def test_a_model_that_does_not_think_is_not_made_to_and_its_answer_has_its_own_limit():
    assert _only(QWEN3, "Q42")[0] == ("42", True, Thought(tokens=0, ended="none", waits=0))
    long = "the answer is four and nothing else"
    (text, stopped, found), _ = _only(QWEN3, f"Q{long}", most=8)
    assert (text, stopped, found.ended) == (long[:8], False, "none")
    (text, stopped, found), _ = _only(QWEN3, f"Q{long}", most=34, budget=ThinkingBudget(max_thinking_tokens=2))
    assert (text, stopped, found.ended) == (long[:34], False, "none")


def test_a_thought_that_the_prompt_opens_needs_no_opening_and_a_users_word_opens_none():
    prompts = ("Q<think>\n", "what is <think>?\nA:")
    scripts = ("Q<think>\nab</think>4", "what is <think>?\nA:a marker")
    found, _ = _answers(QWEN3, scripts, prompts=prompts, most=20)
    assert found[0] == ("ab</think>4", True, Thought(tokens=2, ended="closed", waits=0))
    assert found[1] == ("a marker", True, Thought(tokens=0, ended="none", waits=0))


def test_a_thought_that_the_prompt_opens_is_cut_like_any_other():
    (text, _, found), _ = _only(
        QWEN3, "Q<think>\n" + "a" * 40, "Q<think>\n" + "a" * 12 + "</think>4", prompts=("Q<think>\n",)
    )
    assert (text, found) == ("a" * 12 + "</think>4", Thought(tokens=12, ended="cut", waits=0))


def test_an_end_without_an_opening_ends_a_thought_that_can_be_sent_on():
    budget = ThinkingBudget(max_thinking_tokens=8, waits=1, wait="W")
    scripts = ("Qab</think>4", "QabW" + "c" * 40, "QabW" + "c" * 5 + "</think>5")
    (text, _, found), _ = _only(QWEN3, *scripts, budget=budget)
    assert (text, found) == ("abW" + "c" * 5 + "</think>5", Thought(tokens=8, ended="cut", waits=1))


def test_an_answer_that_is_cut_did_not_stop_though_the_model_had_stopped_by_then():
    (text, stopped, _), engine = _only(QWEN3, "Q<think>ab</think>4567", most=2)
    assert (text, stopped, len(engine.calls)) == ("<think>ab</think>45", False, 1)


def test_a_wait_takes_the_place_of_the_end_and_the_budget_goes_on():
    budget = ThinkingBudget(max_thinking_tokens=20, waits=1, wait="Wait")
    scripts = ("Q<think>ab</think>4", "Q<think>abWaitcd</think>5")
    assert _only(QWEN3, *scripts, budget=budget)[0] == (
        "<think>abWaitcd</think>5",
        True,
        Thought(tokens=9, ended="closed", waits=1),
    )


def test_a_turn_that_ends_within_the_thought_is_sent_on_too_and_waits_are_counted():
    budget = ThinkingBudget(max_thinking_tokens=30, waits=2, wait="W")
    scripts = ("Q<think>ab", "Q<think>abWc</think>1", "Q<think>abWcWd</think>2")
    (text, _, found), _ = _only(QWEN3, *scripts, budget=budget)
    assert (text, found) == ("<think>abWcWd</think>2", Thought(tokens=7, ended="closed", waits=2))


def test_a_wait_for_which_the_budget_has_no_room_is_left_out():
    budget = ThinkingBudget(max_thinking_tokens=7, waits=5, wait="Wait")
    (text, _, found), _ = _only(QWEN3, "Q<think>ab</think>4", budget=budget)
    assert (text, found) == ("<think>ab</think>4", Thought(tokens=3, ended="closed", waits=0))


def test_a_wait_may_use_the_budget_up():
    budget = ThinkingBudget(max_thinking_tokens=8, waits=5, wait="Wait")
    scripts = ("Q<think>ab</think>4", "Q<think>abWaitcdefghijklmnop", "Q<think>abWaitc</think>5")
    (text, _, found), _ = _only(QWEN3, *scripts, budget=budget)
    assert (text, found) == ("<think>abWaitc</think>5", Thought(tokens=8, ended="cut", waits=1))


def test_a_token_that_holds_the_last_word_and_the_beginning_of_the_end_is_parted():
    codec = Letters("b</", ">4")  # as Qwen2.5 joins punctuation
    (text, _, found), _ = _only(codec, "Q<think>ab</think>4")
    assert (text, found) == ("<think>ab</think>4", Thought(tokens=9, ended="closed", waits=0))
    budget = ThinkingBudget(max_thinking_tokens=20, waits=1, wait="W")
    (text, _, found), engine = _only(codec, "Q<think>ab</think>4", "Q<think>abW</think>5", budget=budget)
    assert (text, found) == ("<think>abW</think>5", Thought(tokens=10, ended="closed", waits=1))
    assert engine.calls[1][0] == ["Q<think>abW"]


def test_white_space_around_the_end_is_written_and_not_looked_for():
    budget = ThinkingBudget(max_thinking_tokens=3, end="\n</think>\n\n")
    (text, _, found), _ = _only(QWEN3, "Q<think>abcdefghijklmnopqrst", "Q<think>ab\n</think>\n\n4", budget=budget)
    assert (text, found.ended) == ("<think>ab\n</think>\n\n4", "cut")
    assert _only(QWEN3, "Q<think>a</think>4", budget=budget)[0][2].ended == "closed"


def test_other_markers_and_characters_of_several_bytes():
    from tests.export.chat_tokenizers import build_tokenizer

    tokenizer = build_tokenizer("plain")

    class Bytes:
        def encode(self, text):
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        def decode(self, ids):
            return tokenizer.decode(list(ids), skip_special_tokens=False)

    codec = Bytes()
    budget = ThinkingBudget(max_thinking_tokens=40, waits=1, wait="等等", begin="思考:", end="结束。")
    scripts = ("问思考:🙂二加二结束。四", "问思考:🙂二加二等等,是四结束。四个")
    (text, stopped, found), _ = _only(codec, *scripts, budget=budget, most=20, prompts=("问",))
    assert (text, stopped, found.ended, found.waits) == ("思考:🙂二加二等等,是四结束。四个", True, "closed", 1)
    assert answer_behind_thought(text, "思考:", "结束。") == "四个"
    # the budget may fall between the bytes of a character: what is cut off is cut off
    short = ThinkingBudget(max_thinking_tokens=len(codec.encode("思考:")) + 1, begin="思考:", end="结束。")
    engine = Scripted(codec, "问思考:🙂🙂🙂🙂🙂🙂🙂🙂🙂🙂")
    engine._one = lambda text, most, one=engine._one: (  # type: ignore[method-assign]
        one(text, most) if "结束" not in text else Generation(ids=tuple(codec.encode("四")), stopped=True, seconds=0)
    )
    (answer,) = answer_within(engine, [codec.encode("问")], short, 5, codec)
    assert answer.thought == Thought(tokens=short.max_thinking_tokens, ended="cut", waits=0)
    assert codec.decode(answer.ids).endswith("结束。四")


def test_prompts_of_different_fates_are_answered_together_in_order_and_never_exceed_their_room():
    prompts = ("A", "B", "C", "D", "E<think>")
    scripts = (
        *("A<think>ab</think>1", "A<think>abWcd</think>2"),
        *("Bno thought", "C<think>" + "c" * 60, "C<think>" + "c" * 11 + "</think>3"),
        *("D<think>d", "D<think>dWe", "D<think>dWe</think>4"),
        *("E<think>abcdefghijk</think>5678901234567890", "E<think>abcdefghijkW"),
    )
    budget = ThinkingBudget(max_thinking_tokens=12, waits=1, wait="W")
    found, engine = _answers(QWEN3, scripts, budget=budget, most=11, prompts=prompts)
    assert [text for text, _, _ in found] == [
        "<think>abWcd</think>2",
        "no thought",
        "<think>ccccccccccc</think>3",
        "<think>dWe</think>4",
        "abcdefghijk</think>56789012345",
    ]
    assert [(t.ended, t.waits, t.tokens) for _, _, t in found] == [
        ("closed", 1, 6),
        ("none", 0, 0),
        ("cut", 0, 12),
        ("stopped", 1, 4),
        ("closed", 0, 11),
    ]
    assert [stopped for _, stopped, _ in found] == [True, True, True, True, False]
    most = max(map(len, prompts)) + budget.most_tokens + 11
    for texts, limit in engine.calls:
        assert all(len(QWEN3.encode(text)) + limit <= most for text in texts)
    # each alone is answered as among the others
    for prompt, together in zip(prompts, found, strict=True):
        assert _only(QWEN3, *scripts, budget=budget, most=11, prompts=(prompt,))[0] == together


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        ("<think>2 + 2</think>\n\n4", "4"),
        ("2 + 2\n</think>\n\n4", "4"),  # opened in the prompt
        ("<think>a</think>b</think>c", "b</think>c"),  # the first end, as where a thought is held to a budget
        ("\n<think>2 + 2", ""),
        ("</think>", ""),
        ("say <think> and </think>", "say <think> and </think>"),
        ("a <think> is a marker", "a <think> is a marker"),
    ],
)
def test_the_answer_stands_behind_the_thought(text, answer):
    assert answer_behind_thought(text) == answer
