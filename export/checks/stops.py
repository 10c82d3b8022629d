"""Does the model end its answers? A fine-tune that lost its turn-end token talks until the limit cuts it off."""

from export.checks._base import Check, Items, Measurement, Observation, measurement


class Stops(Check):
    """Share of greedy answers that end with a stop token of the artifact's own before the length limit."""

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One score of 0 or 1 per row."""
        scores = [[float(item.stopped)] for item in seen.items]
        return (measurement("stops", seen.subject, scores, unit="share", higher_is_better=True),)


step = Stops
