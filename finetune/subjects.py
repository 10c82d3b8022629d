"""What a run measures, in order (merged, the reference, then base, adapter and every export), and on what rows."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifacts import ModelFolder, QuantizedModel
from export.chat import Conversation, Message, encode, encode_prompt
from export.checks import Item, Items, SafetyItem
from export.engines import Subject
from export.errors import DataError
from export.subjects import Described, describe, describe_made, shown_path
from finetune.base_model import BaseModelSource
from finetune.methods import Adapter
from finetune.recipe import CheckSettings
from finetune.safety import read_safety_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def subjects_of_run(
    base: BaseModelSource, adapter: Adapter, merged: ModelFolder, exports: Sequence[QuantizedModel], run_folder: Path
) -> tuple[Described, ...]:
    """Every subject of a run, the reference first."""
    attached = Subject(
        name="adapter",
        engine="hf",
        path=base.path,
        adapter=adapter.folder,
        four_bit_compute=adapter.dtype if adapter.four_bit_base else None,
    )

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
        describe(attached, ships=False, shown_as=shown(adapter.folder), sha256=base.sha256),
        *(describe_made(model, shown_as=shown(model.path)) for model in exports),
    )


def items_of(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    settings: CheckSettings,
    *,
    seed: int,
    thinking: bool,
    system_prompt: str | None,
) -> Items:
    """Held-out conversations as token ids: at most `settings.rows` of them, drawn with `seed`; and the safety items.

    `system_prompt` is what the safety items are asked behind. Raises DataError when there are no conversations.
    """
    if not conversations:
        raise DataError("the held-out split is empty: there is nothing to measure on. Raise data.held_out_share.")
    chosen = random.Random(seed).sample(list(conversations), min(settings.rows, len(conversations)))

    def item(conversation: Conversation) -> Item:
        encoded = encode(tokenizer, conversation, thinking=thinking)
        return Item(
            ids=encoded.ids,
            scored=encoded.scored_positions,
            prompt=encode_prompt(tokenizer, conversation.prompt, thinking=thinking),
            answer=conversation.answer,
        )

    return Items(
        items=tuple(item(conversation) for conversation in chosen),
        safety=_safety_items(settings, tokenizer, system_prompt, thinking=thinking),
        vocabulary_size=len(tokenizer),
        max_new_tokens=settings.max_new_tokens,
    )


def _safety_items(
    settings: CheckSettings, tokenizer: "PreTrainedTokenizerBase", system_prompt: str | None, *, thinking: bool
) -> tuple[SafetyItem, ...]:
    if settings.safety_items is None:
        return ()
    opening = (Message(role="system", content=system_prompt),) if system_prompt else ()
    return tuple(
        SafetyItem(
            prompt=encode_prompt(tokenizer, (*opening, Message(role="user", content=row.prompt)), thinking=thinking),
            text=row.prompt,
            safe=row.safe,
            unsafe=row.unsafe,
        )
        for row in read_safety_rows(Path(settings.safety_items).expanduser())
    )
