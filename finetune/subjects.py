"""What a run measures, in order (merged, the reference, then base, the model as trained and every export), and on what
rows.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifacts import ModelFolder, QuantizedModel
from export.chat import Conversation, Message, encode, encode_prompt, render
from export.checks import Item, Items, SafetyItem
from export.engines import Subject
from export.errors import DataError, RecipeError
from export.subjects import Described, describe, describe_made, shown_path
from finetune.base_model import BaseModelSource
from finetune.methods import TrainingResult
from finetune.recipe import CheckSettings
from finetune.safety import find, read_safety_rows

# What the shipped packs ask for takes so much room: a referral may come last.
_SAFETY_TOKENS = 256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def subjects_of_run(
    base: BaseModelSource,
    trained: TrainingResult,
    merged: ModelFolder,
    exports: Sequence[QuantizedModel],
    run_folder: Path,
) -> tuple[Described, ...]:
    """Every subject of a run, the reference first."""

    def shown(path: Path) -> str:
        return shown_path(path, run_folder)

    return (
        describe(Subject(name="merged", engine="hf", path=merged.folder), ships=False, shown_as=shown(merged.folder)),
        describe(
            Subject(name="base", engine="hf", path=base.path),
            ships=False,
            shown_as=shown(base.path),
            sha256=base.sha256,
        ),
        described_as_trained(trained, base, trained.name, shown_as=shown(trained.folder)),
        *(describe_made(model, shown_as=shown(model.path)) for model in exports),
    )


def described_as_trained(trained: TrainingResult, base: BaseModelSource, name: str, *, shown_as: str) -> Described:
    """The model as training left it, under a name: its adapter beside the base, or the whole model."""
    subject = trained.subject(base.path, name)
    sha256 = trained.weights_sha256() if subject.adapter is None else base.sha256
    return describe(subject, ships=False, shown_as=shown_as, sha256=sha256)


def items_of(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    settings: CheckSettings,
    *,
    seed: int,
    thinking: bool,
    system_prompt: str | None,
    labels: tuple[str, ...] = (),
) -> Items:
    """Held-out conversations as token ids: at most `settings.rows` of them, drawn with `seed`; and the safety items.

    `system_prompt` is what the safety items are asked behind; None takes that of the conversations, where all of them
    have the same. `labels` are the data template's. Raises DataError when there are no conversations, RecipeError where
    a check cannot be made with these labels, or a thinking budget is asked of a template that lets nothing be thought.
    """
    options = settings.options(labels)
    require_thoughts(settings, tokenizer, thinking=thinking)
    if not conversations:
        raise DataError("the held-out split is empty: there is nothing to measure on. Raise data.held_out_share.")
    with_context = any(step.needs_context for step in settings.measures.steps())
    chosen = random.Random(seed).sample(list(conversations), min(settings.rows, len(conversations)))

    def item(conversation: Conversation) -> Item:
        encoded = encode(tokenizer, conversation, thinking=thinking)
        prompt = encode_prompt(tokenizer, conversation.prompt, thinking=thinking)
        return Item(
            ids=encoded.ids,
            scored=encoded.scored_positions,
            prompt=prompt,
            answer=conversation.answer,
            options=tuple(_as_answer(tokenizer, conversation, option, prompt, thinking) for option in options),
            context=_said_by_the_user(conversation) if with_context else "",
            category=conversation.category,
        )

    return Items(
        items=tuple(item(conversation) for conversation in chosen),
        safety=_safety_items(settings, tokenizer, _opening(conversations, system_prompt), thinking=thinking),
        vocabulary_size=len(tokenizer),
        max_new_tokens=settings.max_new_tokens,
        safety_max_new_tokens=settings.safety_max_new_tokens or max(_SAFETY_TOKENS, settings.max_new_tokens),
        thinking_budget=settings.thinking_budget,
        labels=labels,
        options=options,
    )


def require_thoughts(settings: CheckSettings, tokenizer: "PreTrainedTokenizerBase", *, thinking: bool) -> None:
    """Raises RecipeError for a thinking budget where the chat template closes the thought before the model writes."""
    budget = settings.thinking_budget
    if budget is None:
        return
    opened = render(tokenizer, [Message(role="user", content="?")], thinking=thinking, open_turn=True)
    if opened.rstrip().endswith(budget.end_marker):
        raise RecipeError(
            "check.thinking_budget: the chat template closes the thought before the model writes anything, since "
            "thinking is off; expected a model that thinks. Set model.thinking to true, or leave the budget out."
        )


def _opening(conversations: Sequence[Conversation], system_prompt: str | None) -> tuple[Message, ...]:
    """The system message that the safety items are asked behind: the one that the model is served with."""
    if system_prompt is not None:
        return (Message(role="system", content=system_prompt),) if system_prompt else ()
    first = {conversation.messages[0] for conversation in conversations}
    return tuple(first) if len(first) == 1 and all(message.role == "system" for message in first) else ()


def _as_answer(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    option: str,
    prompt: tuple[int, ...],
    thinking: bool,
) -> tuple[int, ...]:
    """An option's ids where it is the conversation's answer: what was trained on, from the prompt to the turn end."""
    messages = (*conversation.prompt, Message(role="assistant", content=option))
    encoded = encode(tokenizer, Conversation(messages=messages), thinking=thinking)
    return encoded.ids[len(prompt) : encoded.scored_positions[-1] + 1]


def _said_by_the_user(conversation: Conversation) -> str:
    return "\n\n".join(message.content for message in conversation.prompt if message.role == "user")


def _safety_items(
    settings: CheckSettings, tokenizer: "PreTrainedTokenizerBase", opening: tuple[Message, ...], *, thinking: bool
) -> tuple[SafetyItem, ...]:
    if settings.safety_items is None:
        return ()
    return tuple(
        SafetyItem(
            prompt=encode_prompt(tokenizer, (*opening, Message(role="user", content=row.prompt)), thinking=thinking),
            text=row.prompt,
            safe=row.safe,
            unsafe=row.unsafe,
            id=row.id or f"row {number}",
            category=row.category or "",
            language=row.language or "",
            why=row.why or "",
        )
        for number, row in enumerate(read_safety_rows(find(settings.safety_items)), start=1)
    )
