"""How well a model predicts the reference answers."""

from collections.abc import Sequence

from pydantic import Field

from export.checks._base import Check, Item, Items, Measurement, Observation, measurement


class Perplexity(Check):
    """Perplexity of the held-out assistant tokens: exp of the mean negative log-probability, turn ends included."""

    by_turn: bool = Field(
        default=False,
        description="Whether it is told for each answer of a conversation besides, the first to the last.",
    )

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One number over all scored tokens; its standard error counts rows, not tokens, as independent.

        By turn, a turn's number is over the rows that have so many.
        """
        losses = [[-value for value in item.log_probs] for item in seen.items]
        whole = _perplexity("perplexity", seen.subject, losses)
        if not self.by_turn:
            return (whole,)
        rows = [_turns(item, of_row) for item, of_row in zip(work.items, losses, strict=True)]
        most = max(map(len, rows), default=0)
        by_turn = (
            _perplexity(
                f"perplexity_turn_{number}", seen.subject, [row[number - 1] for row in rows if len(row) >= number]
            )
            for number in range(1, most + 1)
        )
        return (whole, *(turn.model_copy(update={"judged": False}) for turn in by_turn))


def _turns(item: Item, losses: Sequence[float]) -> list[list[float]]:
    """A row's losses by answer: between two answers stand tokens that carry none."""
    turns: list[list[float]] = []
    before: int | None = None
    for position, loss in zip(item.scored, losses, strict=True):
        if before is None or position != before + 1:
            turns.append([])
        turns[-1].append(loss)
        before = position
    return turns


def _perplexity(check: str, subject: str, sample: Sequence[Sequence[float]]) -> Measurement:
    return measurement(check, subject, sample, unit="perplexity", higher_is_better=False, statistic="exp_mean")


step = Perplexity
