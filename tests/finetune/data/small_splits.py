"""Small sets of rows in three splits, as the data stage leaves them."""

from export.chat import Conversation, Message, encode
from finetune.data.account import SplitCounts
from finetune.data.splits import Splits, fingerprint, write_conversations
from tests.export.chat_tokenizers import build_tokenizer

SPLITS = ("train", "valid", "held_out")


def conversation(word, number):
    return row_of(f"{word} {number}?", f"{word}.")


def row_of(question, answer):
    messages = Message(role="user", content=question), Message(role="assistant", content=answer)
    return Conversation(messages=messages)


def small_splits(folder, word, rows):
    folder.mkdir()
    tokenizer = build_tokenizer("plain")
    counts = {}
    for name in SPLITS:
        kept = [conversation(f"{word} {name}", number) for number in range(rows)]
        write_conversations(folder / f"{name}.jsonl", kept)
        encoded = [encode(tokenizer, row) for row in kept]
        tokens, scored = sum(len(e.ids) for e in encoded), sum(len(e.scored_positions) for e in encoded)
        counts[name] = SplitCounts(rows=rows, groups=rows, tokens=tokens, scored_tokens=scored)
    (folder / "report.json").write_text("{}")
    return Splits(
        folder=folder,
        read=3 * rows,
        sampled_out=0,
        kept=3 * rows,
        dropped={},
        max_tokens=64,
        longest_row_tokens=16,
        fingerprint=fingerprint(folder),
        source={},
        **counts,
    )
