"""How much of a model's probability a grammar takes away: what the model would have said that the schema forbids.

Along each reference answer (teacher forcing), at every one of its tokens and at the turn end, the probability of all
tokens that the grammar does not allow at that place, at temperature 1 and over the whole vocabulary, is summed. 0 means
that the grammar changes nothing there; what it takes away is given to other tokens, which distorts what is left
("Grammar-Aligned Decoding", Park et al. 2024, arXiv 2405.21047). The mass is local: it says nothing of tokens that are
allowed now and lead to a dead end later.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from export.checks import Item
from export.engines.llama_library import GrammarWalk
from export.frozen import Frozen
from export.sampling import Sample, interval, paired_interval

if TYPE_CHECKING:
    from export.engines.llama_cpp import LlamaCppEngine


class RejectedMass(Frozen):
    """The mean share of probability that a grammar rejects at a token of an answer, and its 90 % interval over rows.

    `largest` is that of the one token where it is most.
    """

    subject: str
    mean: float
    interval: tuple[float, float]
    largest: float
    rows: int
    tokens: int


class Change(Frozen):
    """After minus before of the mean shares of two subjects on the same rows, with its paired 90 % interval."""

    before: str
    after: str
    delta: float
    interval: tuple[float, float]


class Rejected(NamedTuple):
    """The figures of one subject, and the shares behind them, row by row."""

    figures: RejectedMass
    sample: Sample


def rejected_mass(subject: str, engine: "LlamaCppEngine", grammar: str, items: Sequence[Item]) -> Rejected:
    """What the grammar rejects along the answers of `items`, each of which the grammar must accept.

    Raises EngineError as the engine does, ValueError for an answer that the grammar rejects.
    """
    walk = GrammarWalk(engine.vocabulary, grammar)
    try:
        sample = tuple(_along(engine, walk, item) for item in items)
    finally:
        walk.close()
    shares = [share for row in sample for share in row]
    figures = RejectedMass(
        subject=subject,
        mean=sum(shares) / len(shares),
        interval=interval(sample, "mean", seed=0),
        largest=max(shares),
        rows=len(sample),
        tokens=len(shares),
    )
    return Rejected(figures, sample)


def change(before: Rejected, after: Rejected) -> Change:
    """By how much quantization moved the mean share, rows paired."""
    return Change(
        before=before.figures.subject,
        after=after.figures.subject,
        delta=after.figures.mean - before.figures.mean,
        interval=paired_interval(before.sample, after.sample, "mean", ratio=False, seed=0),
    )


def _along(engine: "LlamaCppEngine", walk: GrammarWalk, item: Item) -> tuple[float, ...]:
    """The rejected share at each position of one answer, its turn end included."""
    import numpy as np

    positions = [position for position in item.scored if position >= len(item.prompt)]
    walk.restart()
    shares: list[float] = []
    for block in engine.log_prob_blocks(item.ids, positions):
        for log_probs in block:
            token = item.ids[positions[len(shares)]]
            allowed = walk.allowed()[: len(log_probs)]
            if not allowed[token]:
                raise ValueError(f"the grammar rejects token {len(shares)} of the answer {item.answer!r}")
            shares.append(float(np.exp(log_probs[~allowed].astype(np.float64)).sum()))
            walk.accept(token)
    return tuple(shares)
