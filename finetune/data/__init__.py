"""From rows, as people have them, to conversations in three splits, with a contract that can fail."""

from finetune.data.account import Clause, DataReport, SplitCounts
from finetune.data.preparation import prepare, usable_conversations
from finetune.data.reading import identity, read_rows
from finetune.data.settings import Contract, DataSettings
from finetune.data.splits import Splits, read_conversations

__all__ = [
    "Clause",
    "Contract",
    "DataReport",
    "DataSettings",
    "SplitCounts",
    "Splits",
    "identity",
    "prepare",
    "read_conversations",
    "read_rows",
    "usable_conversations",
]
