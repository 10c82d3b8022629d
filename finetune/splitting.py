"""Which conversations are trained on, watched and held out: what belongs together never stands in two splits."""

import random
from collections.abc import Sequence
from typing import Literal

from export.chat import Conversation

SplitName = Literal["train", "valid", "held_out"]


def split_by_group(
    conversations: Sequence[Conversation], *, valid_share: float, held_out_share: float, seed: int
) -> dict[SplitName, list[int]] | None:
    """Indexes of the conversations of each split, ascending; None when there are fewer than three groups.

    Conversations belong together when they share a group key or, read without case and spacing, the words before the
    answer. The groups are shuffled with `seed`; each goes where it fits whole: held out, else validation, else
    training. A split that no group fitted into takes the smallest that is left.
    """
    groups = together(conversations)
    if len(groups) < 3:
        return None
    random.Random(seed).shuffle(groups)
    total = len(conversations)
    wanted: dict[SplitName, int] = {
        "held_out": max(1, round(held_out_share * total)),
        "valid": max(1, round(valid_share * total)),
    }
    chosen: dict[SplitName, list[list[int]]] = {"held_out": [], "valid": [], "train": []}
    for group in groups:
        name: SplitName = next((name for name, room in wanted.items() if len(group) <= room), "train")
        chosen[name].append(group)
        if name in wanted:
            wanted[name] -= len(group)
    _fill_empty(chosen)
    return {name: sorted(index for group in chosen[name] for index in group) for name in chosen}


def together(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Indexes of conversations that share a group or a prompt, directly or through others (a union-find)."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parents.setdefault(key, key)) != key:
            parents[key] = parents[above]
            key = above
        return key

    keys = [(f"prompt {_words(item)}", f"group {item.group}") for item in conversations]
    for (prompt, group), conversation in zip(keys, conversations, strict=True):
        if conversation.group:
            parents[root(prompt)] = root(group)
    members: dict[str, list[int]] = {}
    for index, (prompt, _) in enumerate(keys):
        members.setdefault(root(prompt), []).append(index)
    return list(members.values())


def _words(conversation: Conversation) -> str:
    """The prompt's words without case and spacing; the system message is the same for all and tells nothing apart."""
    turns = (message.content for message in conversation.prompt if message.role != "system")
    return "\n".join(" ".join(turn.split()).casefold() for turn in turns)


def _fill_empty(chosen: dict[SplitName, list[list[int]]]) -> None:
    """Gives each empty split the smallest group of the split that has the most groups."""
    for name in chosen:
        if not chosen[name]:
            giver = max(chosen.values(), key=len)
            giver.remove(smallest := min(giver, key=len))
            chosen[name].append(smallest)
