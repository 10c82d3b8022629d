"""The sets that a run measures beside its held-out rows: earlier turns of the same conversations, and general rows.

Earlier turns are judged as the last one is. Of general rows nothing is asked: they show what fine-tuning and each file
cost of what the model could do besides.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from export.chat import Conversation
from export.companions import CompanionSet, Compare
from export.compare import Gate
from export.errors import DataError
from finetune.data import Splits
from finetune.recipe import Recipe
from finetune.subjects import items_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERAL = "general"


def companions_of(
    recipe: Recipe,
    splits: Splits,
    general: Splits | None,
    tokenizer: "PreTrainedTokenizerBase",
    comparing: Callable[[Gate | None], Compare],
) -> tuple[CompanionSet, ...]:
    """The sets of a run, in the order of the turns; `comparing` makes the comparison under a gate, or under none.

    Raises DataError for a turn that no held-out conversation has before its last.
    """
    held_out = splits.conversations("held_out")
    check, seed, thinking = recipe.check, recipe.seed, recipe.model.thinking
    sets = [
        CompanionSet(
            name=f"turn {turn}",
            items=items_of(
                up_to_turn(held_out, turn),
                tokenizer,
                check.model_copy(update={"safety_items": None}),
                seed=seed,
                thinking=thinking,
                system_prompt=None,
                labels=splits.labels,
            ),
            checks=check.measures.steps(),
            compare=comparing(recipe.gate),
        )
        for turn in check.turns
    ]
    if recipe.general is not None and general is not None:
        items = items_of(
            general.conversations("held_out"),
            tokenizer,
            recipe.general.check,
            seed=seed,
            thinking=thinking,
            system_prompt=None,
            labels=general.labels,
        )
        sets.append(CompanionSet(GENERAL, items, recipe.general.check.measures.steps(), comparing(None)))
    return tuple(sets)


def up_to_turn(conversations: Sequence[Conversation], turn: int) -> list[Conversation]:
    """The conversations cut behind their assistant's turn of this number, of those in which it is not the last.

    Raises DataError where there is none.
    """
    cut = []
    for conversation in conversations:
        answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        if turn < len(answers):
            cut.append(conversation.model_copy(update={"messages": conversation.messages[: answers[turn - 1] + 1]}))
    if not cut:
        raise DataError(
            f"check.turns asks for answer {turn}, and no held-out conversation has another behind it. Leave it out, or "
            "give conversations of more turns."
        )
    return cut
