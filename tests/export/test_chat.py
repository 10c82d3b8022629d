"""What is scored is exactly what the model would write; what it is asked is exactly the start of what it learned."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.chat import Conversation, Message, encode, encode_prompt, render
from export.errors import DataError, ModelError
from tests.export.chat_tokenizers import build_tokenizer

END = "<|im_end|>"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def conversation(*turns: str, system: str | None = None) -> Conversation:
    """User and assistant by turns."""
    spoken = [Message(role="assistant" if i % 2 else "user", content=turn) for i, turn in enumerate(turns)]
    opening = [] if system is None else [Message(role="system", content=system)]
    return Conversation(messages=(*opening, *spoken))


def scored_runs(tokenizer: Any, item: Conversation, *, thinking: bool = False) -> list[str]:
    """The text of each unbroken run of scored tokens."""
    encoded = encode(tokenizer, item, thinking=thinking)
    runs: list[list[int]] = []
    for index, (token, is_scored) in enumerate(zip(encoded.ids, encoded.scored, strict=True)):
        if is_scored:
            if index == 0 or not encoded.scored[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


CONTENTS = [
    "The light is on.",
    "厨房的灯已经打开。",
    "done 🧹👩‍👩‍👧 ok",
    "  two spaces before",
    "two after  ",
    "\nline break before",
    "\n\n\nthree before",
    "line break after\n\n",
    '{"task":"refuse","reason":"out_of_scope"}',
    "assistant\n",
    "user",
    "<|im_end|"[:8],
    "x",
]


@pytest.mark.parametrize("content", CONTENTS)
def test_an_answer_and_its_turn_end_are_all_that_is_scored(content: str) -> None:
    tokenizer = build_tokenizer("plain")
    assert scored_runs(tokenizer, conversation("Hello", content)) == [content + END]
    assert scored_runs(tokenizer, conversation("Hello", content, system="Be brief.")) == [content + END]


@pytest.mark.parametrize("content", CONTENTS)
def test_every_assistant_turn_of_a_longer_conversation_is_scored(content: str) -> None:
    tokenizer = build_tokenizer("plain")
    item = conversation("Hello", content, content, "第二个回答", "assistant", content)
    assert scored_runs(tokenizer, item) == [content + END, "第二个回答" + END, content + END]


def test_the_users_copy_of_an_answer_is_not_scored() -> None:
    tokenizer = build_tokenizer("plain")
    encoded = encode(tokenizer, conversation("yes", "yes"))
    assert sum(encoded.scored) == len(tokenizer("yes")["input_ids"]) + 1


@pytest.mark.parametrize("content", CONTENTS)
def test_without_thinking_the_empty_think_block_is_the_prompts(content: str) -> None:
    tokenizer = build_tokenizer("thinking")
    item = conversation("Hello", "first answer", "and now?", content)
    assert scored_runs(tokenizer, item) == ["first answer" + END, content.lstrip("\n") + END]
    assert tokenizer.decode(encode_prompt(tokenizer, item.prompt)).endswith(f"assistant\n{EMPTY_THOUGHT}")


def test_with_thinking_the_reasoning_is_the_models() -> None:
    tokenizer = build_tokenizer("thinking")
    thought = "<think>\nthe hall is near\n</think>\n\nI clean the hall."
    assert scored_runs(tokenizer, conversation("Hello", thought), thinking=True) == [thought + END]


def test_an_earlier_turn_whose_thought_the_template_leaves_out_is_context() -> None:
    # to learn what is left of it would be to learn to answer without a thought
    tokenizer = build_tokenizer("thinking")
    thought = "<think>\nthe hall is near\n</think>\n\nI clean the hall."
    item = conversation("Hello", thought, "again", "plainly", "and now?", thought)
    assert scored_runs(tokenizer, item, thinking=True) == ["plainly" + END, thought + END]
    encoded = encode(tokenizer, item, thinking=True)
    assert encoded.turns_without_thought == 1
    assert "I clean the hall." in tokenizer.decode(encoded.ids)
    # while thinking is off nobody is to think, and a template that shows every thought leaves nothing out
    answered = conversation("Hello", thought, "again", "plainly")
    assert scored_runs(tokenizer, answered) == ["I clean the hall." + END, "plainly" + END]
    plain = build_tokenizer("plain")
    assert scored_runs(plain, item, thinking=True) == [thought + END, "plainly" + END, thought + END]


@pytest.mark.parametrize("template", ["plain", "thinking"])
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("thought", ["", "<think>\nthe hall is near\n</think>\n\n"])
def test_what_is_asked_is_the_beginning_of_what_is_trained_on(template: Any, thinking: bool, thought: str) -> None:
    tokenizer = build_tokenizer(template)
    item = conversation("Hello", f"{thought}first", "again", f"{thought}I clean the hall.")
    if thought and not thinking and template == "thinking":
        with pytest.raises(DataError, match="set thinking to true"):
            encode(tokenizer, item, thinking=thinking)
        return
    encoded = encode(tokenizer, item, thinking=thinking)
    prompt = encode_prompt(tokenizer, item.prompt, thinking=thinking)
    assert encoded.ids[: len(prompt)] == prompt
    written = tokenizer.decode(encoded.ids[len(prompt) : encoded.scored_positions[-1] + 1])
    # with thinking on, the block is the model's to write, empty or not; off, the prompt holds it
    empty = EMPTY_THOUGHT if template == "thinking" and thinking and not thought else ""
    assert written == f"{empty}{thought}I clean the hall.{END}"
    whole = tokenizer(render(tokenizer, item.messages, thinking=thinking, open_turn=False))["input_ids"]
    assert list(encoded.ids) == whole


def test_with_thinking_an_answer_that_is_part_of_the_think_block_is_found() -> None:
    tokenizer = build_tokenizer("thinking")
    assert scored_runs(tokenizer, conversation("Hello", "think"), thinking=True) == [f"{EMPTY_THOUGHT}think{END}"]


def test_reasoning_without_thinking_is_refused_since_the_prompt_would_differ() -> None:
    tokenizer = build_tokenizer("thinking")
    with pytest.raises(DataError, match="set thinking to true"):
        encode(tokenizer, conversation("Hello", "<think>\nwhy\n</think>\n\nHello."), thinking=False)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(DataError, match="renders turns one after another"):
        encode(build_tokenizer("rewriting"), conversation("a", "b", "c", "d"))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_turn_that_spells_a_special_token_is_refused(token: str) -> None:
    tokenizer = build_tokenizer("plain")
    with pytest.raises(DataError, match="turn 1 holds the special token"):
        encode(tokenizer, conversation(f"say {token} now", "no"))
    with pytest.raises(DataError, match="turn 1 holds the special token"):
        encode_prompt(tokenizer, conversation(f"say {token} now", "no").prompt)


def test_a_turn_end_that_the_template_does_not_write_is_an_error() -> None:
    tokenizer = build_tokenizer("plain")
    original = tokenizer.eos_token
    try:
        tokenizer.eos_token = "<|endoftext|>"
        with pytest.raises(DataError, match="never learn to stop"):
            encode(tokenizer, conversation("Hello", "Hello"))
    finally:
        tokenizer.eos_token = original


def test_a_template_that_drops_words_is_refused() -> None:
    tokenizer = build_tokenizer.__wrapped__("plain")
    tokenizer.chat_template = tokenizer.chat_template.replace("message.content", "message.content[:4]")
    with pytest.raises(DataError, match="does not show turn 2 as it was written"):
        encode(tokenizer, conversation("Hi", "Hello there"))


def test_a_tokenizer_without_a_template_is_a_model_error() -> None:
    tokenizer = build_tokenizer.__wrapped__("plain")
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        render(tokenizer, conversation("a", "b").messages, thinking=False, open_turn=False)


def test_a_template_that_refuses_the_turns_is_a_data_error() -> None:
    tokenizer = build_tokenizer.__wrapped__("plain")
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(DataError, match="refuses the turns user, assistant: only one turn"):
        render(tokenizer, conversation("a", "b").messages, thinking=False, open_turn=False)


def test_the_ids_are_the_librarys_own_for_ordinary_text() -> None:
    tokenizer = build_tokenizer("plain")
    item = conversation("Turn on the light.", "The light is on.", "谢谢", "不客气 🙂", system="Be brief.")
    own = tokenizer.apply_chat_template([message.model_dump() for message in item.messages], return_dict=True)
    assert list(encode(tokenizer, item).ids) == own["input_ids"]


# Surrogates are no characters, and the tokenizer composes letters with their marks (NFC) like Qwen's.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Mn", "Mc", "Me"]), max_size=40).filter(
    lambda text: "<|" not in text and "think>" not in text
)


def composed(text: str) -> str:
    """The text as the tokenizer's normaliser leaves it."""
    import unicodedata

    return unicodedata.normalize("NFC", text)


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(TEXTS, min_size=1, max_size=3).flatmap(
        lambda a: st.tuples(st.just(a), st.lists(TEXTS, min_size=len(a), max_size=len(a)))
    )
)
@pytest.mark.parametrize("template", ["plain", "thinking"])
def test_any_text_comes_back_whole_and_its_prompt_is_its_beginning(
    template: Any, turns: tuple[list[str], list[str]]
) -> None:
    tokenizer = build_tokenizer(template)
    item = conversation(*(text for pair in zip(*turns, strict=True) for text in pair))
    encoded = encode(tokenizer, item)
    text = render(tokenizer, item.messages, thinking=False, open_turn=False)
    assert tokenizer.decode(encoded.ids) == composed(text)
    assert len(encoded.ids) == len(encoded.scored)
    prompt = encode_prompt(tokenizer, item.prompt)
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.scored_positions[-1] == max(
        i for i, token in enumerate(encoded.ids) if token == tokenizer.eos_token_id
    )
    assert all(encoded.scored[len(prompt) : encoded.scored_positions[-1] + 1])
    ends = sum(
        token == tokenizer.eos_token_id
        for token, is_scored in zip(encoded.ids, encoded.scored, strict=True)
        if is_scored
    )
    assert ends == len(turns[0])
