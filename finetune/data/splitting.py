"""Which conversations are trained on, watched and held out: what belongs together never stands in two splits.

Rows are known here by their numbers and keys alone (`finetune.data.belonging`).
"""

import random
from collections.abc import Iterable, Sequence

from finetune.data.account import SplitName

# The key that binds nothing.
NO_GROUP = 0


def split_groups(
    groups: Sequence[Sequence[int]], *, valid_share: float, held_out_share: float, seed: int
) -> dict[SplitName, list[int]] | None:
    """Row indexes of each split, ascending; None when there are fewer than three groups.

    The groups are shuffled with `seed`; each goes where it fits whole: held out, else validation, else training. A
    split that no group fitted into takes the smallest that is left.
    """
    if len(groups) < 3:
        return None
    shuffled = list(groups)
    random.Random(seed).shuffle(shuffled)
    total = sum(map(len, groups))
    wanted: dict[SplitName, int] = {
        "held_out": max(1, round(held_out_share * total)),
        "valid": max(1, round(valid_share * total)),
    }
    chosen: dict[SplitName, list[Sequence[int]]] = {"held_out": [], "valid": [], "train": []}
    for group in shuffled:
        name: SplitName = next((name for name, room in wanted.items() if len(group) <= room), "train")
        chosen[name].append(group)
        if name in wanted:
            wanted[name] -= len(group)
    _fill_empty(chosen)
    return {name: sorted(index for group in chosen[name] for index in group) for name in chosen}


def together(keys: Sequence[Sequence[int]], links: Iterable[tuple[int, int]] = ()) -> list[list[int]]:
    """Indexes of rows that share a key or are linked, directly or through others (a union-find).

    `keys` holds one sequence for each reason to belong together (a question, an opening, a group), with a key
    for every row; `NO_GROUP` binds nothing. `links` are pairs of row indexes. Groups come in the order of their first
    rows.
    """
    parents = list(range(len(keys[0])))

    def root(index: int) -> int:
        while (above := parents[index]) != index:
            parents[index] = parents[above]
            index = above
        return index

    def join(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parents[high] = low

    for of_rows in keys:
        first_with: dict[int, int] = {}
        for index, key in enumerate(of_rows):
            if key != NO_GROUP:
                join(first_with.setdefault(key, index), index)
    for first, second in links:
        join(first, second)
    members: dict[int, list[int]] = {}
    for index in range(len(parents)):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def _fill_empty(chosen: dict[SplitName, list[Sequence[int]]]) -> None:
    """Gives each empty split the smallest group of the split that has the most groups."""
    for name in chosen:
        if not chosen[name]:
            giver = max(chosen.values(), key=len)
            giver.remove(smallest := min(giver, key=len))
            chosen[name].append(smallest)
