"""General rows for the starter model: small talks of the kinds it was trained on, which fine-tuning may make it forget.

They are drawn from the same generators as its training text (`corpus.py`) with seeds of their own; in so small a world
single sentences come again, as they do in any language. Each row is a question with its one right answer, so that what
is kept can be counted.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from finetune.starter import corpus
from finetune.starter.world import FOLDER, load_world


def general_rows(rows: int, seed: int) -> Iterator[dict[str, object]]:
    """So many rows with different questions, of the form {"messages": [...]}, the same for the same seed."""
    world, draw = load_world(), random.Random(f"general {seed}")
    makers = (corpus.reading, corpus.copying)
    seen: set[str] = set()
    while len(seen) < rows:
        turns = _turns(draw.choice(makers)(world, draw))
        if turns[-2]["content"] not in seen:
            seen.add(turns[-2]["content"])
            yield {"messages": turns}


def sources() -> tuple[Path, ...]:
    """The files that decide what is drawn."""
    return tuple(FOLDER / name for name in ("general.py", "corpus.py", "world.py", "lexicon.yaml", "frames.yaml"))


def _turns(text: str) -> list[dict[str, str]]:
    """The turns of a document in ChatML, up to the first answer."""
    turns = []
    for part in text.split("<|im_start|>")[1:]:
        role, _, content = part.removesuffix("<|im_end|>\n").partition("\n")
        turns.append({"role": role, "content": content})
        if role == "assistant":
            break
    return turns
